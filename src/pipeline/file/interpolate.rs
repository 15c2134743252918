//! Interpolation blocks `$[[ … ]]`: replaced in the text of a file before the YAML is parsed.

use serde_json::Value;

use super::functions::{Function, Lookup};
use super::quoted;
use crate::pipeline::problem::Class;

/// The number of functions that one block may have.
const FUNCTIONS_LIMIT: usize = 3;

/// The longest text, in bytes, after interpolation of a file.
const TEXT_LIMIT: usize = 8 << 20;

/// The values that blocks can refer to.
pub struct Values<'a> {
    /// Input values by name.
    pub inputs: &'a dyn Fn(&str) -> Option<Value>,
    /// `name`, `sha`, `version` and `reference` of the component, if the header lists them.
    pub component: &'a dyn Fn(&str) -> Option<String>,
    /// Variables for `expand_vars`.
    pub variables: &'a Lookup<'a>,
}

/// A text after interpolation.
#[derive(Debug, Default)]
pub struct Text {
    pub text: String,
    /// For each line of the text, the line in the file; empty if they are equal.
    lines: Vec<u32>,
    /// Problems: class, line, message.
    pub errors: Vec<(Class, u32, String)>,
    /// Values that are not text, of blocks in quotes; the text contains their marks.
    pub quoted: Vec<Value>,
}

impl Text {
    /// The line in the file for a line of the text, both from 1.
    pub fn line(&self, line: u32) -> u32 {
        match self.lines.get((line as usize).saturating_sub(1)).or(self.lines.last()) {
            Some(line) => *line,
            None => line,
        }
    }
}

/// Replaces all blocks in a text whose first line is line `first` of its file.
pub fn interpolate(text: &str, first: u32, values: &Values<'_>) -> Text {
    let mut out = Text::default();
    let mut line = first;
    let mut rest = text;
    while let Some(start) = rest.find("$[[") {
        out.add(&rest[..start], &mut line);
        rest = &rest[start..];
        let Some(end) = rest.find("]]").map(|end| end + 2) else {
            out.errors.push((Class::InputSyntax, line, "a block `$[[` is not closed with `]]`".to_owned()));
            break;
        };
        let (block, after) = rest.split_at(end);
        match value_of(block[3..end - 2].trim(), values) {
            Ok(Some(Value::String(text))) => out.add_value(&text, line),
            Ok(Some(value)) if is_quoted(&out.text, after) => {
                out.text.push_str(&quoted::mark(out.quoted.len()));
                out.quoted.push(value);
            }
            Ok(Some(value)) => out.add_value(&value.to_string(), line),
            // A later step replaces this block.
            Ok(None) => out.add(block, &mut line),
            Err((class, message)) => out.errors.push((class, line, message)),
        }
        line += newlines(block);
        rest = after;
        if out.text.len() > TEXT_LIMIT {
            out.errors.push((Class::TooBig, line, "inputs make more than 8 MiB of this file".to_owned()));
            return out;
        }
    }
    out.add(rest, &mut line);
    out
}

/// Whether a block is enclosed in quotes, so that it may be a whole value. `before` and `after` are the texts around
/// the block.
fn is_quoted(before: &str, after: &str) -> bool {
    ['"', '\''].into_iter().any(|quote| before.ends_with(quote) && after.starts_with(quote))
}

fn newlines(text: &str) -> u32 {
    text.bytes().filter(|byte| *byte == b'\n').count() as u32
}

impl Text {
    fn add(&mut self, text: &str, line: &mut u32) {
        if self.lines.is_empty() {
            self.lines.push(*line);
        }
        for _ in 0..newlines(text) {
            *line += 1;
            self.lines.push(*line);
        }
        self.text.push_str(text);
    }

    fn add_value(&mut self, value: &str, line: u32) {
        if self.lines.is_empty() {
            self.lines.push(line);
        }
        self.lines.extend(std::iter::repeat_n(line, newlines(value) as usize));
        self.text.push_str(value);
    }
}

/// The value of a block; `None` if a later step replaces the block.
fn value_of(block: &str, values: &Values<'_>) -> Result<Option<Value>, (Class, String)> {
    let mut parts = split_pipes(block).into_iter().map(str::trim);
    let access = parts.next().unwrap_or_default();
    let mut value = match access.split_once('.') {
        Some(("matrix", _)) => return Ok(None),
        Some(("inputs", name)) => (values.inputs)(name)
            .ok_or_else(|| (Class::InputUnknown, format!("`{name}` is not an input that this file declares")))?,
        Some(("component", name)) => (values.component)(name).map(Value::String).ok_or_else(|| {
            let message = format!(
                "`component.{name}` is not available; only a component can use it, and must list it in spec:component"
            );
            (Class::InputUnknown, message)
        })?,
        _ => {
            let message = format!("`$[[ {block} ]]`: write inputs.NAME or component.NAME");
            return Err((Class::InputSyntax, message));
        }
    };
    let calls: Vec<&str> = parts.collect();
    if calls.len() > FUNCTIONS_LIMIT {
        let message = format!("`$[[ {block} ]]` has more than {FUNCTIONS_LIMIT} functions");
        return Err((Class::InputFunction, message));
    }
    for call in calls {
        let result = Function::parse(call).and_then(|function| function.apply(&value, values.variables));
        value = result.map_err(|why| (Class::InputFunction, format!("`$[[ {block} ]]`: {why}")))?;
    }
    Ok(Some(value))
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

    fn filled(text: &str) -> Text {
        let inputs = |name: &str| match name {
            "text" => Some(serde_json::json!("a b")),
            "lines" => Some(serde_json::json!("x\ny")),
            "list" => Some(serde_json::json!([1, "a"])),
            "flag" => Some(serde_json::json!(true)),
            _ => None,
        };
        let component = |name: &str| (name == "sha").then(|| "abc".to_owned());
        interpolate(text, 1, &Values { inputs: &inputs, component: &component, variables: &|_| None })
    }

    #[test]
    fn replaces_blocks_by_text_or_json() {
        let text =
            filled("k: $[[ inputs.list ]] $[[inputs.flag]] \"$[[ inputs.text | truncate(0,1) ]]\" $[[ matrix.X ]]");
        assert_eq!(text.text, "k: [1,\"a\"] true \"a\" $[[ matrix.X ]]");
        assert_eq!(filled("$[[ component.sha ]]").text, "abc");
        assert!(text.errors.is_empty());
    }

    #[test]
    fn line_numbers_refer_to_the_file() {
        let text = filled("a: |\n  $[[ inputs.lines ]]\nb: 1\n$[[\ninputs.flag ]]: 2\nc: 3");
        let line_of = |part: &str| {
            let number = text.text.lines().position(|line| line.contains(part)).expect("the line") + 1;
            text.line(number as u32)
        };
        assert_eq!([line_of("x"), line_of("y"), line_of("b:"), line_of("c:")], [2, 2, 3, 6]);
    }

    #[test]
    fn reports_bad_blocks_with_their_line() {
        for (text, class, line) in [
            ("a\n$[[ inputs.no ]]", Class::InputUnknown, 2),
            ("$[[ foo ]]", Class::InputSyntax, 1),
            ("\n\n$[[ inputs.text", Class::InputSyntax, 3),
            ("$[[ inputs.text | nope ]]", Class::InputFunction, 1),
            ("$[[ inputs.list | expand_vars ]]", Class::InputFunction, 1),
            ("$[[ inputs.text | expand_vars | expand_vars | expand_vars | expand_vars ]]", Class::InputFunction, 1),
            ("$[[ component.version ]]", Class::InputUnknown, 1),
        ] {
            let errors = filled(text).errors;
            assert_eq!((errors[0].0, errors[0].1), (class, line), "{text}");
        }
    }
}
