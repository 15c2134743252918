//! Puts the values of interpolation blocks into a parsed file.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value as Json;

use super::interpolate::{Block, EDGE, Values, value_of};
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::{Mapping, MappingEntry, Node, Origin, Value};

/// The largest size of all inserted values of a file together, as JSON.
const SIZE_LIMIT: usize = 8 << 20;

/// Replaces the marks of blocks in a tree.
pub struct Filling<'a> {
    blocks: &'a [Block],
    values: &'a Values<'a>,
    /// The value of each block that was evaluated, by its content, with its size.
    known: HashMap<&'a str, (Json, usize)>,
    size: usize,
    /// Problems: class, line, message.
    pub errors: Vec<(Class, u32, String)>,
}

impl<'a> Filling<'a> {
    pub fn new(blocks: &'a [Block], values: &'a Values<'a>) -> Self {
        Self { blocks, values, known: HashMap::new(), size: 0, errors: Vec::new() }
    }

    /// A tree with values in the place of marks. A text that is one mark becomes the value; other marks become text.
    /// A list that takes the place of an item is inserted into the list around it.
    pub fn node(&mut self, node: &Node) -> Node {
        let value = match &node.value {
            Value::Text(text) if text.contains(EDGE) => match self.whole(text) {
                Some(value) => return from_json(&value, node.at),
                None => Value::Text(self.text(text).into()),
            },
            Value::List(items) => Value::List(Arc::new(self.items(items))),
            Value::Reference(path) => Value::Reference(Arc::new(self.items(path))),
            Value::Mapping(mapping) => {
                let mut out = Mapping::with_capacity_and_hasher(mapping.len(), Default::default());
                for (key, entry) in mapping.iter() {
                    let key = if key.contains(EDGE) { self.text(key).into() } else { Arc::clone(key) };
                    let node = self.node(&entry.node);
                    out.insert(key, MappingEntry { key_at: entry.key_at, node });
                }
                Value::Mapping(Arc::new(out))
            }
            other => other.clone(),
        };
        Node { value, at: node.at }
    }

    fn items(&mut self, items: &[Node]) -> Vec<Node> {
        let mut out = Vec::with_capacity(items.len());
        for item in items {
            let filled = self.node(item);
            match (&item.value, filled.list()) {
                (Value::Text(_), Some(inserted)) => out.extend_from_slice(inserted),
                _ => out.push(filled),
            }
        }
        out
    }

    /// The value of a text that is one mark.
    fn whole(&mut self, text: &str) -> Option<Json> {
        let inside = text.strip_prefix(EDGE)?.strip_suffix(EDGE)?;
        self.value(inside.parse().ok()?)
    }

    /// A text with its marks replaced by text. A delimiter that belongs to no mark stays: the file contains it.
    fn text(&mut self, text: &str) -> String {
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once(EDGE) {
            out.push_str(before);
            let mark = after.split_once(EDGE).and_then(|(index, end)| Some((self.value(index.parse().ok()?)?, end)));
            rest = match mark {
                Some((value, end)) => {
                    out.push_str(&as_text(&value));
                    end
                }
                None => {
                    out.push(EDGE);
                    after
                }
            };
        }
        out.push_str(rest);
        out
    }

    /// The value of a block; null if it has a problem, which is reported. `None`: there is no such block.
    fn value(&mut self, index: usize) -> Option<Json> {
        let block = self.blocks.get(index)?;
        if self.size > SIZE_LIMIT {
            return Some(Json::Null);
        }
        let (value, size) = match self.known.get(block.content.as_str()) {
            Some(known) => known.clone(),
            None => match value_of(&block.content, self.values) {
                Ok(value) => {
                    let size = value.to_string().len();
                    self.known.insert(&block.content, (value.clone(), size));
                    (value, size)
                }
                Err((class, message)) => {
                    self.errors.push((class, block.line, message));
                    return Some(Json::Null);
                }
            },
        };
        self.size = self.size.saturating_add(size);
        if self.size > SIZE_LIMIT {
            let message =
                format!("the values of inputs that are inserted into this file exceed {} MiB", SIZE_LIMIT >> 20);
            self.errors.push((Class::TooBig, block.line, message));
            return Some(Json::Null);
        }
        Some(value)
    }
}

fn from_json(json: &Json, at: Origin) -> Node {
    let value = match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(value) => Value::Integer(value),
            None => Value::Float(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::Text(text.as_str().into()),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(|item| from_json(item, at)).collect())),
        Json::Object(entries) => {
            let entry = |(key, value): (&String, &Json)| {
                (key.as_str().into(), MappingEntry { key_at: at, node: from_json(value, at) })
            };
            Value::Mapping(Arc::new(entries.iter().map(entry).collect()))
        }
    };
    Node { value, at }
}

/// A value as it appears inside of a longer text.
pub fn as_text(value: &Json) -> String {
    match value {
        Json::Null => String::new(),
        Json::String(text) => text.clone(),
        other => {
            let mut out = String::new();
            push_json(other, &mut out);
            out
        }
    }
}

/// Appends JSON with a space after commas and colons.
fn push_json(value: &Json, out: &mut String) {
    match value {
        Json::Array(items) => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                out.push_str(if number > 0 { ", " } else { "" });
                push_json(item, out);
            }
            out.push(']');
        }
        Json::Object(entries) => {
            out.push('{');
            for (number, (key, item)) in entries.iter().enumerate() {
                out.push_str(if number > 0 { ", " } else { "" });
                out.push_str(&format!("{}: ", Json::from(key.as_str())));
                push_json(item, out);
            }
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::interpolate::mark;
    use super::*;
    use crate::pipeline::syntax::{Budget, parse};

    fn filled(text: &str) -> Result<Json, Vec<(Class, u32)>> {
        let marked = mark(text, 1);
        let root = parse(&marked.text, 0, &|line| line, &mut Budget::default()).expect("must be YAML").root;
        let inputs = |name: &str| match name {
            "text" => Some(serde_json::json!("yes: \"no\" # 'x'")),
            "true" => Some(serde_json::json!("true")),
            "lines" => Some(serde_json::json!("x\ny")),
            "list" => Some(serde_json::json!([1, "a", {"k": null}])),
            "flag" => Some(serde_json::json!(true)),
            "none" => Some(Json::Null),
            "big" => Some("x".repeat(3 << 20).into()),
            _ => None,
        };
        let values = Values { inputs: &inputs, component: &|_| None, variables: &|_| None };
        let mut filling = Filling::new(&marked.blocks, &values);
        let root = filling.node(&root);
        if filling.errors.is_empty() {
            return Ok(root.to_json());
        }
        Err(filling.errors.into_iter().map(|(class, line, _)| (class, line)).collect())
    }

    #[test]
    fn a_whole_value_keeps_its_type_and_parts_of_text_become_text() {
        let text = "a: $[[ inputs.list ]]\nb: \"$[[ inputs.flag ]]\"\nc: x$[[ inputs.flag ]]$[[ inputs.list ]]\nd: $[[ inputs.true ]]\ne: $[[ inputs.none ]]\nf: x$[[ inputs.none ]]\n";
        let expected = serde_json::json!({
            "a": [1, "a", {"k": null}], "b": true, "c": "xtrue[1, \"a\", {\"k\": null}]", "d": "true", "e": null, "f": "x",
        });
        assert_eq!(filled(text), Ok(expected));
    }

    #[test]
    fn values_are_never_read_as_yaml() {
        let text = "'$[[ inputs.text ]]': {s: [\"$[[ inputs.lines ]]\", echo $[[ inputs.text ]], $[[ inputs.text ]]]}\n# $[[ inputs.unknown ]]\n";
        let written = "yes: \"no\" # 'x'";
        let expected = serde_json::json!({written: {"s": ["x\ny", format!("echo {written}"), written]}});
        assert_eq!(filled(text), Ok(expected));
    }

    #[test]
    fn a_list_is_inserted_into_the_list_around_it() {
        let text = "a: [x, $[[ inputs.list ]], y]\nb: [[$[[ inputs.list ]]]]\nc: [\"$[[ inputs.list ]] \"]\n";
        let expected = serde_json::json!({
            "a": ["x", 1, "a", {"k": null}, "y"], "b": [[1, "a", {"k": null}]], "c": ["[1, \"a\", {\"k\": null}] "],
        });
        assert_eq!(filled(text), Ok(expected));
    }

    #[test]
    fn the_delimiter_of_marks_may_be_in_the_file() {
        let text = format!("a: 'x{EDGE} $[[ inputs.flag ]]{EDGE}{EDGE}y{EDGE}'\n");
        assert_eq!(filled(&text), Ok(serde_json::json!({"a": format!("x{EDGE} true{EDGE}{EDGE}y{EDGE}")})));
    }

    #[test]
    fn reports_bad_blocks_with_their_line_and_bounds_the_size() {
        assert_eq!(filled("a: 1\nb: [x, $[[ inputs.no ]]]\n"), Err(vec![(Class::InputUnknown, 2)]));
        let big = "a: $[[ inputs.big ]]\nb: $[[ inputs.big ]]\nc: $[[ inputs.big ]]\nd: $[[ inputs.big ]]\n";
        assert_eq!(filled(big), Err(vec![(Class::TooBig, 3)]));
    }
}
