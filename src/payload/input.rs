//! The inputs of a job in its payload.

use serde::Deserialize;
use serde_json::Value;

use super::lenient;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Input {
    #[serde(deserialize_with = "lenient::text")]
    pub key: String,
    #[serde(deserialize_with = "lenient::value")]
    pub value: JobInputValue,
}

/// The typed value of an input.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct JobInputValue {
    #[serde(rename = "type", deserialize_with = "lenient::text")]
    pub kind: String,
    pub content: Value,
    #[serde(deserialize_with = "lenient::switch")]
    pub sensitive: bool,
}

impl JobInputValue {
    /// Whether the content has the declared type.
    pub fn has_declared_type(&self) -> bool {
        match self.kind.as_str() {
            "string" => self.content.is_string(),
            "number" => self.content.is_number(),
            "boolean" => self.content.is_boolean(),
            "array" => self.content.is_array(),
            "struct" => self.content.is_object(),
            _ => false,
        }
    }
}
