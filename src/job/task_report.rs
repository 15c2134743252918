//! The report of a task of the agent's own program, which the agent reads after the task has ended.

use serde::{Deserialize, Serialize};

use crate::decode;
use crate::executor::docker::prepared::PreparedContainer;
use crate::failure::JobError;

/// The report of a task, in addition to its exit status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum TaskReport {
    /// The failure with its reason.
    Failed(JobError),
    /// The prepared container.
    Prepared(Box<PreparedContainer>),
    /// Bytes of artifacts that GitLab accepted.
    Uploaded(u64),
}

impl TaskReport {
    /// Serialises the report for [`TaskReport::parse`]; empty if that fails.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Parses the report of a finished task; `None` if the task wrote no report.
    pub fn parse(text: &str) -> Option<Self> {
        decode::json(text.as_bytes()).ok()
    }
}
