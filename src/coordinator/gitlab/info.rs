//! What the agent tells GitLab of itself (`info` of the Runner API): only what it really keeps.

use std::collections::BTreeMap;

use serde::Serialize;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The revision it was built from.
pub const REVISION: &str = env!("MAYFLY_REVISION");

/// Promises to the server; it gives out jobs by them, so each one is kept.
///
/// The executor features of containers are not among them: a job that needs one fails visibly at GitLab instead of
/// silently here.
const FEATURES: [&str; 19] = [
    "artifacts",
    "artifacts_exclude",
    "cache",
    "cancel_gracefully",
    "cancelable",
    "fallback_cache_keys",
    "masking",
    "multi_build_steps",
    "raw_variables",
    "refspecs",
    "return_exit_code",
    "shared",
    "trace_checksum",
    "trace_reset",
    "trace_size",
    "two_phase_job_commit",
    "upload_multiple_artifacts",
    "upload_raw_artifacts",
    "variables",
];

/// The `info` object of a request.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    name: &'static str,
    version: &'static str,
    revision: &'static str,
    platform: &'static str,
    architecture: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    executor: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    shell: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    features: BTreeMap<&'static str, bool>,
}

impl Info {
    /// The agent with this executor, shell and labels.
    pub fn new(executor: &str, shell: &str, labels: &BTreeMap<String, String>) -> Self {
        Self {
            name: "mayfly",
            version: VERSION,
            revision: REVISION,
            platform: "linux",
            architecture: architecture(),
            executor: executor.to_owned(),
            shell: shell.to_owned(),
            labels: labels.clone(),
            features: FEATURES.iter().map(|feature| (*feature, true)).collect(),
        }
    }
}

/// The architecture as GitLab (and Go) spell it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// The `User-Agent` of every request.
pub fn user_agent() -> String {
    format!("mayfly {VERSION} ({REVISION}; rust; linux/{})", architecture())
}
