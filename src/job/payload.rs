//! The payload of a job, decoded once. A 201 that nobody can read is a job that hangs for an hour, so everything but
//! the job's number and token may be missing, null or unknown.

use serde::{Deserialize, Deserializer};

use crate::coordinator::{JobHandle, Token};

/// Seconds that a job may take when the server gives no limit.
const DEFAULT_TIMEOUT: u64 = 7200;

/// A job as the server hands it out (GitLab Runner API, `POST jobs/request`).
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Payload {
    #[serde(deserialize_with = "lenient")]
    pub id: i64,
    #[serde(deserialize_with = "lenient")]
    pub token: String,
    #[serde(deserialize_with = "lenient")]
    pub allow_git_fetch: bool,
    #[serde(deserialize_with = "lenient")]
    pub job_info: JobInfo,
    #[serde(deserialize_with = "lenient")]
    pub git_info: GitInfo,
    #[serde(deserialize_with = "lenient")]
    pub runner_info: RunnerInfo,
    #[serde(deserialize_with = "lenient")]
    pub variables: Vec<Variable>,
    #[serde(deserialize_with = "lenient")]
    pub steps: Vec<Step>,
    #[serde(deserialize_with = "lenient")]
    pub hooks: Vec<Hook>,
    #[serde(deserialize_with = "lenient")]
    pub features: Features,
    #[serde(deserialize_with = "lenient")]
    pub artifacts: Vec<Artifact>,
    #[serde(deserialize_with = "lenient")]
    pub cache: Vec<Cache>,
    #[serde(deserialize_with = "lenient")]
    pub dependencies: Vec<Dependency>,
    #[serde(deserialize_with = "lenient")]
    pub run: String,
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({})", self.id)
    }
}

/// What the job is called and belongs to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct JobInfo {
    #[serde(deserialize_with = "lenient")]
    pub name: String,
    #[serde(deserialize_with = "lenient")]
    pub stage: String,
    #[serde(deserialize_with = "lenient")]
    pub project_id: i64,
    #[serde(deserialize_with = "lenient")]
    pub project_name: String,
}

/// What to check out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GitInfo {
    #[serde(deserialize_with = "lenient")]
    pub repo_url: String,
    #[serde(rename = "ref", deserialize_with = "lenient")]
    pub reference: String,
    #[serde(deserialize_with = "lenient")]
    pub sha: String,
    #[serde(deserialize_with = "lenient")]
    pub refspecs: Vec<String>,
    #[serde(deserialize_with = "lenient")]
    pub depth: i64,
    #[serde(deserialize_with = "lenient")]
    pub repo_object_format: String,
}

/// What the server decided about running it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RunnerInfo {
    /// Seconds for the whole job.
    #[serde(deserialize_with = "lenient")]
    pub timeout: i64,
}

/// A variable of the job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Variable {
    #[serde(deserialize_with = "lenient")]
    pub key: String,
    #[serde(deserialize_with = "lenient")]
    pub value: String,
    #[serde(deserialize_with = "lenient")]
    pub public: bool,
    /// The value goes into a file, the variable holds its path.
    #[serde(deserialize_with = "lenient")]
    pub file: bool,
    /// Kept out of the log.
    #[serde(deserialize_with = "lenient")]
    pub masked: bool,
    /// Not expanded.
    #[serde(deserialize_with = "lenient")]
    pub raw: bool,
}

/// Lines to run in one shell.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Step {
    #[serde(deserialize_with = "lenient")]
    pub name: String,
    #[serde(deserialize_with = "lenient")]
    pub script: Vec<String>,
}

/// Lines to run around the sources.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Hook {
    #[serde(deserialize_with = "lenient")]
    pub name: String,
    #[serde(deserialize_with = "lenient")]
    pub script: Vec<String>,
}

/// Files to hand to GitLab.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Artifact {
    #[serde(deserialize_with = "lenient")]
    pub name: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub untracked: bool,
    #[serde(deserialize_with = "lenient")]
    pub paths: Vec<String>,
    #[serde(deserialize_with = "lenient")]
    pub exclude: Vec<String>,
    #[serde(deserialize_with = "lenient")]
    pub when: String,
    #[serde(deserialize_with = "lenient")]
    pub artifact_type: String,
    #[serde(deserialize_with = "lenient")]
    pub artifact_format: String,
    #[serde(deserialize_with = "lenient")]
    pub expire_in: String,
}

/// Files to keep between jobs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Cache {
    #[serde(deserialize_with = "lenient")]
    pub key: String,
    #[serde(deserialize_with = "lenient")]
    pub untracked: bool,
    #[serde(deserialize_with = "lenient")]
    pub paths: Vec<String>,
    #[serde(deserialize_with = "lenient")]
    pub policy: String,
    #[serde(deserialize_with = "lenient")]
    pub when: String,
    #[serde(deserialize_with = "lenient")]
    pub fallback_keys: Vec<String>,
}

/// A job whose artifacts are needed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Dependency {
    #[serde(deserialize_with = "lenient")]
    pub id: i64,
    #[serde(deserialize_with = "lenient")]
    pub name: String,
    #[serde(deserialize_with = "lenient")]
    pub token: String,
    #[serde(deserialize_with = "lenient")]
    pub artifacts_file: ArtifactsFile,
}

/// The artifacts of a [`Dependency`], if it has some.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ArtifactsFile {
    #[serde(deserialize_with = "lenient")]
    pub filename: String,
    #[serde(deserialize_with = "lenient")]
    pub size: i64,
}

/// What the server understands.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Features {
    #[serde(deserialize_with = "lenient")]
    pub trace_sections: bool,
    #[serde(deserialize_with = "lenient")]
    pub token_mask_prefixes: Vec<String>,
    #[serde(deserialize_with = "lenient")]
    pub failure_reasons: Vec<String>,
}

/// Null is the zero value.
fn lenient<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A payload that cannot be run, and as much of it as is needed to tell the server.
#[derive(Debug)]
pub struct Undecodable {
    /// Whom to fail, where number and token could be found.
    pub job: Option<JobHandle>,
    /// What is wrong, without the payload's content.
    pub why: String,
}

/// Decodes a payload. Errors: it is not JSON, cut off, or has no number and token.
pub fn decode(body: &[u8]) -> Result<Payload, Undecodable> {
    let why = match serde_json::from_slice::<Payload>(body) {
        Ok(payload) if payload.id > 0 && !payload.token.is_empty() => return Ok(payload),
        Ok(_) => "it has no number or no token".to_owned(),
        // The message of serde names positions and types; a value it quotes could be a secret.
        Err(error) => format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column()),
    };
    Err(Undecodable { job: salvage(body), why })
}

impl Payload {
    /// Seconds that the job may take.
    pub fn timeout_seconds(&self) -> u64 {
        u64::try_from(self.runner_info.timeout).ok().filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_TIMEOUT)
    }

    /// What names the job in later calls.
    pub fn handle(&self) -> JobHandle {
        JobHandle { id: self.id, token: Token::new(self.token.as_str()) }
    }

    /// A step by name.
    pub fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// The lines of a hook.
    pub fn hook(&self, name: &str) -> &[String] {
        self.hooks.iter().find(|hook| hook.name == name).map(|hook| hook.script.as_slice()).unwrap_or_default()
    }
}

/// Number and token of a job whose payload is broken: from JSON of the wrong shape, or from the text of one that was
/// cut. Both stand at the top level, before anything deep.
fn salvage(body: &[u8]) -> Option<JobHandle> {
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) {
        let id = value.get("id").and_then(|id| id.as_i64().or_else(|| id.as_str()?.parse().ok()))?;
        let token = value.get("token")?.as_str()?;
        return Some(JobHandle { id, token: Token::new(token) });
    }
    let text = String::from_utf8_lossy(body);
    let after = |key: &str| {
        let rest = &text[text.find(&format!("\"{key}\""))? + key.len() + 2..];
        Some(rest.trim_start().strip_prefix(':')?.trim_start().to_owned())
    };
    let id: String = after("id")?.chars().take_while(char::is_ascii_digit).collect();
    let token = after("token")?;
    let token = token.strip_prefix('"')?.split_once('"')?.0.to_owned();
    Some(JobHandle { id: id.parse().ok()?, token: Token::new(token) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_unknown_keys_are_nothing() {
        let payload = decode(
            br#"{"id": 7, "token": "t", "variables": null, "steps": [{"name": "script", "script": null, "x": 1}],
                "git_info": {"depth": null, "refspecs": null}, "run": null, "features": null, "news": {}}"#,
        )
        .expect("decoded");
        assert_eq!((payload.id, payload.steps.len(), payload.variables.len()), (7, 1, 0));
    }

    #[test]
    fn finds_whom_to_fail_in_a_broken_payload() {
        for broken in [
            r#"{"id": 7, "token": "glcbt-x", "steps": 5}"#,
            r#"{"id": 7, "token": "glcbt-x", "steps": [{"na"#,
            r#"{"id": "7", "token": "glcbt-x", "variables": {}}"#,
        ] {
            let error = decode(broken.as_bytes()).expect_err("undecodable");
            let job = error.job.expect("found");
            assert_eq!((job.id, job.token.reveal()), (7, "glcbt-x"));
            assert!(!error.why.contains("glcbt"));
        }
        assert!(decode(b"<html>").expect_err("undecodable").job.is_none());
    }
}
