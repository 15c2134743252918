//! Blocks in quotes that are whole values: `"$[[ inputs.list ]]"` is the list, not its text.
//!
//! Only the parser knows whether quotes belong to YAML or to a longer text such as a command. So the text contains
//! marks when it is parsed, and [`replace`] puts the values into the tree.

use std::sync::Arc;

use serde_json::Value as Json;

use crate::pipeline::syntax::{self, Budget, Mapping, Node, Origin, SyntaxError, Value};

/// The delimiter of a mark: a character for private use (Unicode), so no configuration contains it.
const EDGE: char = '\u{f8ff}';

/// The mark of a value, by its index.
pub fn mark(index: usize) -> String {
    format!("{EDGE}{index}{EDGE}")
}

/// Replaces all marks in a tree. A text that is one mark becomes the value; other marks become the value as JSON.
pub fn replace(root: &Node, values: &[Json], budget: &mut Budget) -> Result<Node, SyntaxError> {
    Ok(Node {
        at: root.at,
        value: match &root.value {
            Value::Text(text) if text.contains(EDGE) => return of_text(text, root.at, values, budget),
            Value::List(items) => Value::List(Arc::new(all(items, values, budget)?)),
            Value::Reference(path) => Value::Reference(Arc::new(all(path, values, budget)?)),
            Value::Mapping(mapping) => {
                let mut out = Mapping::default();
                for (key, entry) in mapping.iter() {
                    let key = if key.contains(EDGE) { filled(key, values).into() } else { Arc::clone(key) };
                    let node = replace(&entry.node, values, budget)?;
                    out.insert(key, syntax::MappingEntry { key_at: entry.key_at, node });
                }
                Value::Mapping(Arc::new(out))
            }
            other => other.clone(),
        },
    })
}

fn all(items: &[Node], values: &[Json], budget: &mut Budget) -> Result<Vec<Node>, SyntaxError> {
    items.iter().map(|item| replace(item, values, budget)).collect()
}

fn of_text(text: &str, at: Origin, values: &[Json], budget: &mut Budget) -> Result<Node, SyntaxError> {
    let inside = text.strip_prefix(EDGE).and_then(|rest| rest.strip_suffix(EDGE));
    match inside.and_then(|index| index.parse().ok()).and_then(|index: usize| values.get(index)) {
        Some(value) => Ok(syntax::parse(&value.to_string(), at.file, &|_| at.line, budget)?.root),
        None => Ok(Node { value: Value::Text(filled(text, values).into()), at }),
    }
}

/// A text with its marks replaced by JSON.
fn filled(text: &str, values: &[Json]) -> String {
    let mut parts = text.split(EDGE);
    let mut out = parts.next().unwrap_or_default().to_owned();
    while let (Some(index), Some(after)) = (parts.next(), parts.next()) {
        let value = index.parse().ok().and_then(|index: usize| values.get(index));
        out.push_str(&value.map(Json::to_string).unwrap_or_default());
        out.push_str(after);
    }
    out
}
