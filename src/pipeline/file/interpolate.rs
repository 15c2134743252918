//! Interpolation blocks `$[[ … ]]`: replaces each block of a text by a mark, and computes the values of blocks.
//!
//! As on GitLab, a block stands for a value of the parsed file, not for a piece of its text: a value with a colon or a
//! line break stays one value, and a text such as `true` stays text. So the YAML is parsed with marks in the place of
//! blocks, and [`super::fill`] then replaces the marks by values.

use super::functions::{Function, VariableLookup};
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::{Budget, Node, Origin, Size};

/// The number of functions that one block may have.
const MAX_FUNCTIONS: usize = 3;

/// The number of steps into a value, `.key` and `[index]`, that a block may have after the name of the input.
const MAX_STEPS: usize = 10;

/// The delimiter of a mark: a character for private use in Unicode, which configurations hardly contain.
pub const EDGE: char = '\u{f8ff}';

/// The values that blocks can refer to.
pub struct BlockValues<'a> {
    /// Input values by name.
    pub inputs: &'a dyn Fn(&str) -> Option<Node>,
    /// `name`, `sha`, `version` and `reference` of the component, if the header lists them.
    pub component: &'a dyn Fn(&str) -> Option<String>,
    /// Variables for `expand_vars`.
    pub variables: &'a VariableLookup<'a>,
}

/// A block.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// The line of the file.
    pub line: u32,
    /// The text between the brackets.
    pub content: String,
}

/// A text with a mark in the place of each block.
#[derive(Debug, Default)]
pub struct MarkedText {
    pub text: String,
    /// The block of each mark, by its index.
    pub blocks: Vec<Block>,
}

/// Replaces the blocks of a text by marks. `first_line` is the line of the file on which the text begins.
///
/// As on GitLab, a block is on one line; anything else remains text. Blocks of `matrix` remain as well:
/// [`crate::pipeline::job_graph`] replaces them.
pub fn mark(text: &str, first_line: u32) -> MarkedText {
    let mut out = MarkedText { text: String::with_capacity(text.len()), blocks: Vec::new() };
    for (line, mut rest) in (first_line..).zip(text.split_inclusive('\n')) {
        while let Some(start) = rest.find("$[[") {
            let Some(length) = block_length(&rest[start..]) else {
                out.text.push_str(&rest[..start + 3]);
                rest = &rest[start + 3..];
                continue;
            };
            out.text.push_str(&rest[..start]);
            let block = &rest[start..start + length];
            let content = block[3..length - 2].trim();
            if content.split(['.', '|']).next().map(str::trim) == Some("matrix") {
                out.text.push_str(block);
            } else {
                out.text.push_str(&format!("{EDGE}{}{EDGE}", out.blocks.len()));
                out.blocks.push(Block { line, content: content.to_owned() });
            }
            rest = &rest[start + length..];
        }
        out.text.push_str(rest);
    }
    out
}

/// The length of the block at the start of `text`; `None` if there is none.
fn block_length(text: &str) -> Option<usize> {
    let mut end = text.find("]]")?;
    // The bracket of an index can be next to those of the block: `$[[ inputs.a[0]]]`.
    while text[end + 2..].starts_with(']') && text[3..end].matches('[').count() > text[3..end].matches(']').count() {
        end += 1;
    }
    (text[3..end].trim().chars().count() > 1).then_some(end + 2)
}

/// The value of a block. A function spends the size of the text that it reads.
pub fn value_of(block: &str, values: &BlockValues<'_>, budget: &mut Budget) -> Result<Node, (Class, String)> {
    let mut parts = split_pipes(block).into_iter().map(str::trim);
    let mut value = value_at(parts.next().unwrap_or_default(), block, values)?;
    let calls: Vec<&str> = parts.collect();
    if calls.len() > MAX_FUNCTIONS {
        let message = format!("`$[[ {block} ]]` has more than {MAX_FUNCTIONS} functions");
        return Err((Class::InputFunction, message));
    }
    for call in calls {
        let read = Size { nodes: 0, bytes: value.text().map_or(0, |text| text.len()) };
        budget.spend(read).map_err(|why| (Class::TooBig, format!("`$[[ {block} ]]`: {why}")))?;
        let result = Function::parse(call).and_then(|function| function.apply(&value, values.variables));
        value = result.map_err(|why| (Class::InputFunction, format!("`$[[ {block} ]]`: {why}")))?;
    }
    Ok(value)
}

/// The value of `inputs.NAME` or `component.NAME`, or of a part of an input such as `inputs.NAME[0].KEY`.
fn value_at(access: &str, block: &str, values: &BlockValues<'_>) -> Result<Node, (Class, String)> {
    match access.split_once('.') {
        Some(("inputs", path)) => {
            if let Some(value) = (values.inputs)(path) {
                return Ok(value);
            }
            let name = &path[..path.find(['.', '[']).unwrap_or(path.len())];
            let value = (values.inputs)(name)
                .ok_or_else(|| (Class::InputUnknown, format!("`{name}` is not an input that this file declares")))?;
            let part = part_of(&value, &path[name.len()..]).cloned();
            part.map_err(|why| (Class::InputSyntax, format!("`$[[ {block} ]]`: {why}")))
        }
        Some(("component", name)) => match (values.component)(name) {
            Some(fact) => Ok(Node::text_at(fact, Origin::default())),
            None => {
                let message = format!(
                    "`component.{name}` is not available; only a component can use it, and must list it in spec:component"
                );
                Err((Class::InputUnknown, message))
            }
        },
        _ => Err((Class::InputSyntax, format!("`$[[ {block} ]]`: write inputs.NAME or component.NAME"))),
    }
}

/// The part of a value at a path, such as `[0].key`.
fn part_of<'v>(mut value: &'v Node, path: &str) -> Result<&'v Node, String> {
    let mut rest = path;
    let mut steps = 0;
    while !rest.is_empty() {
        steps += 1;
        if steps > MAX_STEPS {
            return Err(format!("the path has more than {MAX_STEPS} steps"));
        }
        if let Some(after) = rest.strip_prefix('[') {
            let (index, after) = after.split_once(']').ok_or("`[` is not closed")?;
            let at: usize = index.parse().map_err(|_| format!("`{index}` is not an index from 0"))?;
            let items = value.list().ok_or_else(|| format!("[{index}] takes a list"))?;
            let size = items.len();
            value = items.get(at).ok_or_else(|| format!("there is no item [{index}]; the list has {size} items"))?;
            rest = after;
        } else {
            let name = rest.strip_prefix('.').ok_or("an index is followed by `.` or `[`")?;
            let name = &name[..name.find(['.', '[']).unwrap_or(name.len())];
            let mapping = value.mapping().ok_or_else(|| format!("`.{name}` takes a mapping"))?;
            value = &mapping.get(name).ok_or_else(|| format!("there is no key `{name}`"))?.node;
            rest = &rest[1 + name.len()..];
        }
    }
    Ok(value)
}

/// Splits at `|` outside of quotes.
fn split_pipes(block: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quote) = (Vec::new(), 0, None);
    for (at, c) in block.char_indices() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '|') => {
                parts.push(&block[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&block[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_blocks_of_one_line_and_leaves_everything_else() {
        let text =
            "a: $[[ inputs.a ]] $[[inputs.b[0]]]\n[$[[ inputs.c ]]]: $[[ matrix.X ]]\n$[[\ninputs.d ]] $[[ ]] $[[ x\n";
        let marked = mark(text, 7);
        let mark_of = |index: usize| format!("{EDGE}{index}{EDGE}");
        let expected = format!(
            "a: {} {}\n[{}]: $[[ matrix.X ]]\n$[[\ninputs.d ]] $[[ ]] $[[ x\n",
            mark_of(0),
            mark_of(1),
            mark_of(2)
        );
        assert_eq!(marked.text, expected);
        let blocks: Vec<(u32, &str)> = marked.blocks.iter().map(|block| (block.line, block.content.as_str())).collect();
        assert_eq!(blocks, [(7, "inputs.a"), (7, "inputs.b[0]"), (8, "inputs.c")]);
    }

    fn value(block: &str) -> Result<serde_json::Value, Class> {
        let inputs = |name: &str| match name {
            "text" => Some(serde_json::json!("a b")),
            "list" => Some(serde_json::json!([1, {"host": ["x", "y"]}])),
            _ => None,
        };
        let inputs = |name: &str| inputs(name).map(Node::from);
        let component = |name: &str| (name == "sha").then(|| "abc".to_owned());
        let values = BlockValues { inputs: &inputs, component: &component, variables: &|_| None };
        let value = value_of(block, &values, &mut Budget::default());
        value.map(|value| value.to_json()).map_err(|(class, _)| class)
    }

    #[test]
    fn reads_inputs_and_their_parts() {
        for (block, expected) in [
            ("inputs.text", serde_json::json!("a b")),
            ("inputs.text | truncate(0,1)", serde_json::json!("a")),
            ("inputs.list[0]", serde_json::json!(1)),
            ("inputs.list[1].host[1]", serde_json::json!("y")),
            ("inputs.list[1].host[0] | truncate(0,3)", serde_json::json!("x")),
            ("component.sha", serde_json::json!("abc")),
        ] {
            assert_eq!(value(block), Ok(expected), "{block}");
        }
    }

    #[test]
    fn refuses_bad_blocks() {
        for (block, class) in [
            ("inputs.no", Class::InputUnknown),
            ("foo", Class::InputSyntax),
            ("inputs.text | nope", Class::InputFunction),
            ("inputs.list | expand_vars", Class::InputFunction),
            ("inputs.text | expand_vars | expand_vars | expand_vars | expand_vars", Class::InputFunction),
            ("component.version", Class::InputUnknown),
            ("inputs.list[2]", Class::InputSyntax),
            ("inputs.list[-1]", Class::InputSyntax),
            ("inputs.list[0", Class::InputSyntax),
            ("inputs.list[0][0]", Class::InputSyntax),
            ("inputs.list[1].port", Class::InputSyntax),
            ("inputs.list[1]host", Class::InputSyntax),
            ("inputs.text.size", Class::InputSyntax),
        ] {
            assert_eq!(value(block), Err(class), "{block}");
        }
    }
}
