//! The YAML tree: values with their position, cheap to clone.

use std::sync::Arc;

use serde::ser::{Serialize, Serializer};

use super::scalar;
use crate::pipeline::hash::Index;

/// The position of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// An index into the list of files.
    pub file: u32,
    /// From 1; 0 if unknown.
    pub line: u32,
}

/// A value with its position.
#[derive(Clone, Debug)]
pub struct Node {
    pub value: Value,
    pub at: Origin,
}

/// A value of YAML 1.1.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing, `~`, `null`.
    Null,
    /// A boolean, including `yes`, `no`, `on`, `off`.
    Bool(bool),
    /// An integer in any notation.
    Integer(i64),
    /// A number with a point.
    Float(f64),
    Text(Arc<str>),
    List(Arc<Vec<Node>>),
    /// A mapping in the order of the file, each key once.
    Mapping(Arc<Mapping>),
    /// `!reference [a, b]`, not yet resolved.
    Reference(Arc<Vec<Node>>),
}

/// Keys and values. A key is the text that Ruby prints for it.
pub type Mapping = Index<Arc<str>, MappingEntry>;

/// A value in a mapping.
#[derive(Clone, Debug)]
pub struct MappingEntry {
    pub key_at: Origin,
    pub node: Node,
}

/// Two nodes are equal if their values are equal; positions do not count.
impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl PartialEq for MappingEntry {
    fn eq(&self, other: &Self) -> bool {
        self.node == other.node
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Integer(a), Self::Integer(b)) => a == b,
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::List(a), Self::List(b)) | (Self::Reference(a), Self::Reference(b)) => Arc::ptr_eq(a, b) || a == b,
            (Self::Mapping(a), Self::Mapping(b)) => Arc::ptr_eq(a, b) || a == b,
            _ => false,
        }
    }
}

impl Node {
    pub fn null_at(at: Origin) -> Self {
        Self { value: Value::Null, at }
    }

    pub fn text_at(text: impl Into<Arc<str>>, at: Origin) -> Self {
        Self { value: Value::Text(text.into()), at }
    }

    pub fn list_at(items: Vec<Node>, at: Origin) -> Self {
        Self { value: Value::List(Arc::new(items)), at }
    }

    pub fn mapping_at(mapping: Mapping, at: Origin) -> Self {
        Self { value: Value::Mapping(Arc::new(mapping)), at }
    }

    /// A mapping with one entry, at the position of its value.
    pub fn mapping_of(key: &str, node: &Node) -> Self {
        let entry = MappingEntry { key_at: node.at, node: node.clone() };
        Self::mapping_at(Mapping::from_iter([(key.into(), entry)]), node.at)
    }

    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    pub fn text(&self) -> Option<&Arc<str>> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn boolean(&self) -> Option<bool> {
        match self.value {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    pub fn integer(&self) -> Option<i64> {
        match self.value {
            Value::Integer(value) => Some(value),
            _ => None,
        }
    }

    pub fn list(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// The items of a list, or the path of a reference.
    pub(super) fn list_or_path(&self) -> &[Node] {
        match &self.value {
            Value::List(items) | Value::Reference(items) => items,
            _ => &[],
        }
    }

    pub fn mapping(&self) -> Option<&Arc<Mapping>> {
        match &self.value {
            Value::Mapping(mapping) => Some(mapping),
            _ => None,
        }
    }

    /// The value of a key; `None` if it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.mapping().and_then(|mapping| mapping.get(key)).map(|entry| &entry.node).filter(|node| !node.is_null())
    }

    /// A scalar as the text that Ruby prints for it; null is empty. `None` for lists and mappings.
    pub fn printed(&self) -> Option<Arc<str>> {
        Some(match &self.value {
            Value::Null => "".into(),
            Value::Bool(value) => if *value { "true" } else { "false" }.into(),
            Value::Integer(value) => value.to_string().into(),
            Value::Float(value) => scalar::print_float(*value).into(),
            Value::Text(text) => Arc::clone(text),
            Value::List(_) | Value::Mapping(_) | Value::Reference(_) => return None,
        })
    }

    /// The type of the value, for messages.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Integer(_) | Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Mapping(_) => "a mapping",
            Value::Reference(_) => "a !reference",
        }
    }

    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Integer(value) => serializer.serialize_i64(*value),
            Value::Float(value) if value.is_finite() => serializer.serialize_f64(*value),
            Value::Float(value) => serializer.serialize_str(&scalar::print_float(*value)),
            Value::Text(text) => serializer.serialize_str(text),
            Value::List(items) | Value::Reference(items) => serializer.collect_seq(items.iter()),
            Value::Mapping(mapping) => serializer.collect_map(mapping.iter().map(|(key, entry)| (&**key, &entry.node))),
        }
    }
}

#[cfg(test)]
impl From<serde_json::Value> for Node {
    fn from(json: serde_json::Value) -> Self {
        let parsed = super::parse(&json.to_string(), 0, &|line| line, &mut super::Budget::default());
        parsed.expect("JSON is YAML").root
    }
}
