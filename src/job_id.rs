//! Identifies a job in requests to its server: its id, and the id with the job's token.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::token::Token;

/// A job's id as it appears in the path of its requests. It is text, so that a job with an id beyond any integer type
/// can still be reported as failed. Only the id of a payload that has none is empty; the decoder of payloads rejects
/// it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(String);

impl JobId {
    /// The longest id, in characters.
    const MAX_LENGTH: usize = 64;

    /// Parses an id; `None` if the text could change the path of the URL.
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        (is_plain && (1..=Self::MAX_LENGTH).contains(&text.len())).then(|| Self(text.to_owned()))
    }

    /// Whether the payload had no id.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<i64> for JobId {
    fn from(number: i64) -> Self {
        Self(number.to_string())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Identifies a job in all later requests.
#[derive(Clone, Debug)]
pub struct JobHandle {
    /// The job's id, part of the path of its requests.
    pub id: JobId,
    /// The job's own token; it is invalid after the job has ended.
    pub token: Token,
}
