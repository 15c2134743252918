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
    pub value: YamlValue,
    pub at: Origin,
}

/// A value of YAML 1.1.
#[derive(Clone, Debug)]
pub enum YamlValue {
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

impl PartialEq for YamlValue {
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
        Self { value: YamlValue::Null, at }
    }

    pub fn text_at(text: impl Into<Arc<str>>, at: Origin) -> Self {
        Self { value: YamlValue::Text(text.into()), at }
    }

    pub fn list_at(items: Vec<Node>, at: Origin) -> Self {
        Self { value: YamlValue::List(Arc::new(items)), at }
    }

    pub fn mapping_at(mapping: Mapping, at: Origin) -> Self {
        Self { value: YamlValue::Mapping(Arc::new(mapping)), at }
    }

    /// A mapping with one entry, at the position of its value.
    pub fn mapping_of(key: &str, node: &Node) -> Self {
        let entry = MappingEntry { key_at: node.at, node: node.clone() };
        Self::mapping_at(Mapping::from_iter([(key.into(), entry)]), node.at)
    }

    pub fn is_null(&self) -> bool {
        matches!(self.value, YamlValue::Null)
    }

    pub fn text(&self) -> Option<&Arc<str>> {
        match &self.value {
            YamlValue::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn boolean(&self) -> Option<bool> {
        match self.value {
            YamlValue::Bool(value) => Some(value),
            _ => None,
        }
    }

    pub fn integer(&self) -> Option<i64> {
        match self.value {
            YamlValue::Integer(value) => Some(value),
            _ => None,
        }
    }

    pub fn list(&self) -> Option<&[Node]> {
        match &self.value {
            YamlValue::List(items) => Some(items),
            _ => None,
        }
    }

    /// The items of a list, or the path of a reference.
    pub(super) fn list_or_path(&self) -> &[Node] {
        match &self.value {
            YamlValue::List(items) | YamlValue::Reference(items) => items,
            _ => &[],
        }
    }

    pub fn mapping(&self) -> Option<&Arc<Mapping>> {
        match &self.value {
            YamlValue::Mapping(mapping) => Some(mapping),
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
            YamlValue::Null => "".into(),
            YamlValue::Bool(value) => if *value { "true" } else { "false" }.into(),
            YamlValue::Integer(value) => value.to_string().into(),
            YamlValue::Float(value) => scalar::print_float(*value).into(),
            YamlValue::Text(text) => Arc::clone(text),
            YamlValue::List(_) | YamlValue::Mapping(_) | YamlValue::Reference(_) => return None,
        })
    }

    /// The type of the value, for messages.
    pub fn kind(&self) -> &'static str {
        match self.value {
            YamlValue::Null => "null",
            YamlValue::Bool(_) => "a boolean",
            YamlValue::Integer(_) | YamlValue::Float(_) => "a number",
            YamlValue::Text(_) => "text",
            YamlValue::List(_) => "a list",
            YamlValue::Mapping(_) => "a mapping",
            YamlValue::Reference(_) => "a !reference",
        }
    }

    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value {
            YamlValue::Null => serializer.serialize_unit(),
            YamlValue::Bool(value) => serializer.serialize_bool(*value),
            YamlValue::Integer(value) => serializer.serialize_i64(*value),
            YamlValue::Float(value) if value.is_finite() => serializer.serialize_f64(*value),
            YamlValue::Float(value) => serializer.serialize_str(&scalar::print_float(*value)),
            YamlValue::Text(text) => serializer.serialize_str(text),
            YamlValue::List(items) | YamlValue::Reference(items) => serializer.collect_seq(items.iter()),
            YamlValue::Mapping(mapping) => {
                serializer.collect_map(mapping.iter().map(|(key, entry)| (&**key, &entry.node)))
            }
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
