//! The inputs of a job, as they come.

use serde::Deserialize;
use serde_json::Value;

use super::lenient;

/// An input of the job.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Input {
    #[serde(deserialize_with = "lenient::text")]
    pub key: String,
    #[serde(deserialize_with = "lenient::value")]
    pub value: Typed,
}

/// Its value.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Typed {
    #[serde(rename = "type", deserialize_with = "lenient::text")]
    pub kind: String,
    pub content: Value,
    #[serde(deserialize_with = "lenient::switch")]
    pub sensitive: bool,
}

impl Typed {
    /// Whether the content is what the type says.
    pub fn is_of_its_kind(&self) -> bool {
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
