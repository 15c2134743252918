//! The payload of a job, decoded once. If the agent cannot decode a payload, the job hangs for an hour, so everything
//! except the job's id and token may be missing, null or unknown. This layer never runs or fetches what it decodes.

pub mod expand;
pub mod files;
pub mod image;
pub mod input;
pub mod lenient;
mod salvage;
#[cfg(test)]
mod tests;
pub mod variables;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::files::{Artifact, Cache, Dependency};
pub use self::image::Image;
use self::input::Input;
use self::salvage::salvage;
use crate::decode;
use crate::job_id::{JobHandle, JobId};
use crate::token::Token;

/// The timeout in seconds if the server sends none.
const DEFAULT_TIMEOUT: u64 = 7200;

/// A job as the server sends it (GitLab Runner API, `POST jobs/request`).
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Payload {
    #[serde(deserialize_with = "lenient::job_id")]
    pub id: JobId,
    #[serde(deserialize_with = "lenient::text")]
    pub token: String,
    #[serde(deserialize_with = "lenient::switch")]
    pub allow_git_fetch: bool,
    #[serde(deserialize_with = "lenient::value")]
    pub job_info: JobInfo,
    #[serde(deserialize_with = "lenient::value")]
    pub git_info: GitInfo,
    #[serde(deserialize_with = "lenient::value")]
    pub runner_info: RunnerInfo,
    #[serde(deserialize_with = "lenient::list")]
    pub inputs: Vec<Input>,
    #[serde(deserialize_with = "lenient::list")]
    pub variables: Vec<Variable>,
    #[serde(deserialize_with = "lenient::list")]
    pub steps: Vec<Step>,
    #[serde(deserialize_with = "lenient::list")]
    pub hooks: Vec<Hook>,
    #[serde(deserialize_with = "lenient::value")]
    pub features: Features,
    /// The image of the job; without a name, the configured image is used.
    #[serde(deserialize_with = "lenient::value")]
    pub image: Image,
    #[serde(deserialize_with = "lenient::list")]
    pub services: Vec<Image>,
    #[serde(deserialize_with = "lenient::list")]
    pub credentials: Vec<Credentials>,
    #[serde(deserialize_with = "lenient::list")]
    pub artifacts: Vec<Artifact>,
    #[serde(deserialize_with = "lenient::list")]
    pub cache: Vec<Cache>,
    #[serde(deserialize_with = "lenient::list")]
    pub dependencies: Vec<Dependency>,
    /// Whether the job has `run` instead of `script`.
    #[serde(deserialize_with = "lenient::is_present")]
    pub run: bool,
    /// Variables whose values secret stores must provide.
    #[serde(deserialize_with = "lenient::value")]
    pub secrets: BTreeMap<String, Option<Secret>>,
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({})", self.id)
    }
}

/// The job's name and project.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct JobInfo {
    #[serde(deserialize_with = "lenient::text")]
    pub name: String,
    #[serde(deserialize_with = "lenient::text")]
    pub stage: String,
    #[serde(deserialize_with = "lenient::number")]
    pub project_id: i64,
    #[serde(deserialize_with = "lenient::text")]
    pub project_name: String,
    /// The time in the queue, if the server sends it.
    #[serde(deserialize_with = "lenient::fraction")]
    pub time_in_queue_seconds: Option<f64>,
}

/// The repository and commit to check out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GitInfo {
    #[serde(deserialize_with = "lenient::text")]
    pub repo_url: String,
    #[serde(rename = "ref", deserialize_with = "lenient::text")]
    pub reference: String,
    #[serde(deserialize_with = "lenient::text")]
    pub sha: String,
    #[serde(deserialize_with = "lenient::text")]
    pub before_sha: String,
    /// Whether the branch or tag is protected; older servers do not send it.
    #[serde(deserialize_with = "lenient::switch")]
    pub protected: bool,
    #[serde(deserialize_with = "lenient::texts")]
    pub refspecs: Vec<String>,
    #[serde(deserialize_with = "lenient::number")]
    pub depth: i64,
    #[serde(deserialize_with = "lenient::text")]
    pub repo_object_format: String,
}

/// Settings for the runner.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RunnerInfo {
    /// The timeout of the job, in seconds.
    #[serde(deserialize_with = "lenient::number")]
    pub timeout: i64,
}

/// A variable of the job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Variable {
    #[serde(deserialize_with = "lenient::text")]
    pub key: String,
    #[serde(deserialize_with = "lenient::text")]
    pub value: String,
    #[serde(deserialize_with = "lenient::switch")]
    pub public: bool,
    /// The agent writes the value to a file, and the variable contains the path of the file.
    #[serde(deserialize_with = "lenient::switch")]
    pub file: bool,
    /// The value must not appear in the log.
    #[serde(deserialize_with = "lenient::switch")]
    pub masked: bool,
    /// The agent does not expand references to variables in the value.
    #[serde(deserialize_with = "lenient::switch")]
    pub raw: bool,
}

/// Script lines that run in one shell.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Step {
    #[serde(deserialize_with = "lenient::text")]
    pub name: String,
    #[serde(deserialize_with = "lenient::texts")]
    pub script: Vec<String>,
}

/// Script lines that run before or after the sources are fetched.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Hook {
    #[serde(deserialize_with = "lenient::text")]
    pub name: String,
    #[serde(deserialize_with = "lenient::texts")]
    pub script: Vec<String>,
}

/// A login for the duration of the job (`type` `registry`: for pulling images).
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Credentials {
    #[serde(rename = "type", deserialize_with = "lenient::text")]
    pub kind: String,
    #[serde(deserialize_with = "lenient::text")]
    pub url: String,
    #[serde(deserialize_with = "lenient::text")]
    pub username: String,
    #[serde(deserialize_with = "lenient::text")]
    pub password: String,
}

/// A variable whose value a secret store must provide.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret {
    #[serde(deserialize_with = "lenient::keys")]
    keys: Vec<String>,
}

impl Secret {
    /// The kind of the store, as GitLab calls it.
    pub fn provider(&self) -> Option<&str> {
        self.keys.iter().map(String::as_str).find(|key| !matches!(*key, "file" | "token"))
    }
}

/// The features that the server supports.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Features {
    #[serde(deserialize_with = "lenient::switch")]
    pub trace_sections: bool,
    #[serde(deserialize_with = "lenient::texts")]
    pub token_mask_prefixes: Vec<String>,
    #[serde(deserialize_with = "lenient::texts")]
    pub failure_reasons: Vec<String>,
}

/// A payload that cannot be decoded, with the data needed to report the job as failed.
#[derive(Debug)]
pub struct Undecodable {
    /// The job to fail, if its id and token were found.
    pub job: Option<JobHandle>,
    /// The reason, without content of the payload.
    pub why: String,
}

/// Decodes a payload. Fails if it is not JSON, is incomplete, or has no id and token.
pub fn decode(body: &[u8]) -> Result<Payload, Undecodable> {
    let why = match decode::json::<Payload>(body) {
        Ok(payload) if !payload.id.is_empty() && !payload.token.is_empty() => return Ok(payload),
        Ok(_) => "no id or token".to_owned(),
        // serde's message may quote a value, which could be a secret; only position and category are safe.
        Err(error) => format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column()),
    };
    Err(Undecodable { job: salvage(body), why })
}

impl Payload {
    /// Whether the job is for a protected branch or tag. Older servers only set a variable or the name of a cache.
    pub fn is_protected(&self) -> bool {
        let by_variable = || {
            self.variables.iter().any(|variable| variable.key == "CI_COMMIT_REF_PROTECTED" && variable.value == "true")
        };
        self.git_info.protected || by_variable() || self.cache.iter().any(|cache| cache.key.ends_with("-protected"))
    }

    /// The timeout of the job.
    pub fn timeout_seconds(&self) -> u64 {
        u64::try_from(self.runner_info.timeout).ok().filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_TIMEOUT)
    }

    pub fn handle(&self) -> JobHandle {
        JobHandle { id: self.id.clone(), token: Token::new(self.token.as_str()) }
    }

    pub fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.name == name)
    }

    pub fn hook(&self, name: &str) -> &[String] {
        self.hooks.iter().find(|hook| hook.name == name).map(|hook| hook.script.as_slice()).unwrap_or_default()
    }
}
