//! The payload of a job, decoded once. If the agent cannot decode a payload, the job hangs for an hour, so everything
//! except the job's id and token may be missing, null or unknown.

pub mod expand;
pub mod input;
pub mod lenient;
mod salvage;
pub mod variables;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::input::Input;
use self::salvage::salvage;
use crate::coordinator::JobHandle;
use crate::decode;
use crate::token::Token;

/// The timeout in seconds if the server sends none.
const DEFAULT_TIMEOUT: u64 = 7200;

/// A job as the server sends it (GitLab Runner API, `POST jobs/request`).
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Payload {
    #[serde(deserialize_with = "lenient::exact")]
    pub id: i64,
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
    #[serde(deserialize_with = "lenient::is_there")]
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
    /// The value is written to a file, and the variable contains its path.
    #[serde(deserialize_with = "lenient::switch")]
    pub file: bool,
    /// The value must not appear in the log.
    #[serde(deserialize_with = "lenient::switch")]
    pub masked: bool,
    /// The value is not expanded.
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

/// The image of the job or of a service, with its settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Image {
    #[serde(deserialize_with = "lenient::text")]
    pub name: String,
    /// Host names of a service, separated by spaces or commas.
    #[serde(deserialize_with = "lenient::text")]
    pub alias: String,
    #[serde(deserialize_with = "lenient::texts")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "lenient::texts")]
    pub command: Vec<String>,
    #[serde(deserialize_with = "lenient::list")]
    pub variables: Vec<Variable>,
    /// In the order of attempts.
    #[serde(deserialize_with = "lenient::texts")]
    pub pull_policy: Vec<String>,
    #[serde(deserialize_with = "lenient::value")]
    pub executor_opts: ExecutorOptions,
}

/// Settings of an image for one kind of executor (`image:docker`, `image:kubernetes`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ExecutorOptions {
    #[serde(deserialize_with = "lenient::value")]
    pub docker: DockerOptions,
    /// Settings for another executor; ignored.
    #[serde(deserialize_with = "lenient::keys")]
    pub kubernetes: Vec<String>,
    /// Unknown kinds of executors.
    #[serde(flatten, deserialize_with = "lenient::names")]
    pub unknown: Vec<String>,
}

/// `image:docker`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DockerOptions {
    #[serde(deserialize_with = "lenient::text")]
    pub platform: String,
    #[serde(deserialize_with = "lenient::text")]
    pub user: String,
    /// Unsupported keys.
    #[serde(flatten, deserialize_with = "lenient::names")]
    pub unknown: Vec<String>,
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

/// Files to upload to GitLab.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Artifact {
    #[serde(deserialize_with = "lenient::value")]
    pub name: Option<String>,
    #[serde(deserialize_with = "lenient::switch")]
    pub untracked: bool,
    #[serde(deserialize_with = "lenient::texts")]
    pub paths: Vec<String>,
    #[serde(deserialize_with = "lenient::texts")]
    pub exclude: Vec<String>,
    #[serde(deserialize_with = "lenient::text")]
    pub when: String,
    #[serde(deserialize_with = "lenient::text")]
    pub artifact_type: String,
    #[serde(deserialize_with = "lenient::text")]
    pub artifact_format: String,
    #[serde(deserialize_with = "lenient::text")]
    pub expire_in: String,
}

/// Files to keep between jobs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Cache {
    #[serde(deserialize_with = "lenient::text")]
    pub key: String,
    #[serde(deserialize_with = "lenient::switch")]
    pub untracked: bool,
    #[serde(deserialize_with = "lenient::texts")]
    pub paths: Vec<String>,
    #[serde(deserialize_with = "lenient::text")]
    pub policy: String,
    #[serde(deserialize_with = "lenient::text")]
    pub when: String,
    #[serde(deserialize_with = "lenient::texts")]
    pub fallback_keys: Vec<String>,
}

/// A job whose artifacts this job downloads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Dependency {
    #[serde(deserialize_with = "lenient::number")]
    pub id: i64,
    #[serde(deserialize_with = "lenient::text")]
    pub name: String,
    #[serde(deserialize_with = "lenient::text")]
    pub token: String,
    #[serde(deserialize_with = "lenient::value")]
    pub artifacts_file: ArtifactsFile,
}

/// The artifacts archive of a [`Dependency`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ArtifactsFile {
    #[serde(deserialize_with = "lenient::text")]
    pub filename: String,
    #[serde(deserialize_with = "lenient::number")]
    pub size: i64,
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
        Ok(payload) if payload.id > 0 && !payload.token.is_empty() => return Ok(payload),
        Ok(_) => "no id or token".to_owned(),
        // serde's message may quote a value, which could be a secret; only position and category are safe.
        Err(error) => format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column()),
    };
    Err(Undecodable { job: salvage(body), why })
}

impl Payload {
    /// Whether the job is for a protected branch or tag. Older servers only set a variable or the name of a cache.
    pub fn is_protected(&self) -> bool {
        let by_variable =
            || self.variables.iter().any(|one| one.key == "CI_COMMIT_REF_PROTECTED" && one.value == "true");
        self.git_info.protected || by_variable() || self.cache.iter().any(|cache| cache.key.ends_with("-protected"))
    }

    /// The timeout of the job.
    pub fn timeout_seconds(&self) -> u64 {
        u64::try_from(self.runner_info.timeout).ok().filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_TIMEOUT)
    }

    pub fn handle(&self) -> JobHandle {
        JobHandle { id: self.id.into(), token: Token::new(self.token.as_str()) }
    }

    pub fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.name == name)
    }

    pub fn hook(&self, name: &str) -> &[String] {
        self.hooks.iter().find(|hook| hook.name == name).map(|hook| hook.script.as_slice()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignores_nulls_and_unknown_keys() {
        let payload = decode(
            br#"{"id": 7, "token": "t", "variables": null, "steps": [{"name": "script", "script": null, "x": 1}],
                "git_info": {"depth": null, "refspecs": null}, "run": null, "features": null, "news": {}}"#,
        )
        .expect("decoded");
        assert_eq!((payload.id, payload.steps.len(), payload.variables.len()), (7, 1, 0));
    }

    #[test]
    fn drops_nulls_in_lists() {
        let payload = decode(
            br#"{"id": 7, "token": "t", "variables": [null, {"key": "A", "value": null}], "hooks": [null],
                "steps": [null, {"name": "script", "script": ["a", null, "b"]}], "cache": [{"paths": [null]}],
                "dependencies": [null, {"artifacts_file": null}], "features": {"failure_reasons": [null, "x"]}}"#,
        )
        .expect("decoded");
        assert_eq!((payload.variables.len(), payload.hooks.len(), payload.dependencies.len()), (1, 0, 1));
        assert_eq!(payload.steps[0].script, ["a", "b"]);
        assert!(payload.cache[0].paths.is_empty());
        assert_eq!(payload.features.failure_reasons, ["x"]);
    }

    #[test]
    fn accepts_numbers_as_text_and_text_as_numbers() {
        let payload = decode(
            br#"{"id": "7", "token": "t", "allow_git_fetch": "true", "runner_info": {"timeout": "60"},
                "git_info": {"depth": 20.0}, "variables": [{"key": "PORT", "value": 8080, "masked": 1, "raw": "false"},
                {"key": "ON", "value": true}], "steps": [{"name": "script", "script": ["echo", 5]}]}"#,
        )
        .expect("decoded");
        assert_eq!((payload.id, payload.timeout_seconds(), payload.git_info.depth), (7, 60, 20));
        let variable = &payload.variables[0];
        assert_eq!((variable.value.as_str(), variable.masked, variable.raw), ("8080", true, false));
        assert_eq!(payload.variables[1].value, "true");
        assert!(payload.allow_git_fetch);
        assert_eq!(payload.steps[0].script, ["echo", "5"]);
    }

    #[test]
    fn detects_unsupported_features() {
        let of = |text: &str| decode(format!(r#"{{"id": 7, "token": "t", {text}}}"#).as_bytes()).expect("decoded");
        for nothing in [r#""run": null"#, r#""run": """#, r#""run": "null""#, r#""run": []"#, r#""secrets": null"#] {
            let payload = of(nothing);
            assert!(!payload.run && payload.secrets.is_empty(), "{nothing}");
        }
        assert!(of(r#""run": [{"name": "x"}]"#).run && of(r#""run": "[{}]""#).run);
        let secrets = of(r#""secrets": {"DB": {"file": false, "token": "$T", "vault": {}}, "NONE": null}"#).secrets;
        let providers: Vec<_> =
            secrets.iter().map(|(name, secret)| (&name[..], secret.as_ref().and_then(Secret::provider))).collect();
        assert_eq!(providers, [("DB", Some("vault")), ("NONE", None)]);
    }

    #[test]
    fn accepts_unknown_image_options() {
        let payload = decode(
            br#"{"id": 7, "token": "t", "image": {"name": "alpine", "entrypoint": null, "executor_opts":
                {"docker": {"user": 1000, "platform": null, "gpus": "all"}, "kubernetes": {"user": "x"}, "podman": {}}},
                "services": [null, {"name": "db", "alias": null, "variables": null}], "credentials": null}"#,
        )
        .expect("decoded");
        let options = payload.image.executor_opts;
        assert_eq!((options.docker.user.as_str(), options.docker.platform.as_str()), ("1000", ""));
        assert_eq!((options.docker.unknown, options.unknown), (vec!["gpus".to_owned()], vec!["podman".to_owned()]));
        assert_eq!((payload.services.len(), payload.credentials.len()), (1, 0));
        assert!(decode(br#"{"id": 7, "token": "t", "image": null}"#).expect("decoded").image.name.is_empty());
    }

    #[test]
    fn finds_the_job_to_fail_in_a_broken_payload() {
        for broken in [
            r#"{"id": 7, "token": "glcbt-x", "steps": 5}"#,
            r#"{"id": 7, "token": "glcbt-x", "steps": [{"na"#,
            r#"{"id": "7", "token": "glcbt-x", "variables": {}}"#,
        ] {
            let error = decode(broken.as_bytes()).expect_err("undecodable");
            let job = error.job.expect("found");
            assert_eq!((job.id.to_string().as_str(), job.token.reveal()), ("7", "glcbt-x"));
            assert!(!error.why.contains("glcbt"));
        }
        assert!(decode(b"<html>").expect_err("undecodable").job.is_none());
    }

    #[test]
    fn never_takes_an_id_for_another() {
        let id = |text: &str| decode(format!(r#"{{"id": {text}, "token": "t"}}"#).as_bytes());
        for (text, number) in [("7", 7), ("\"7\"", 7), ("7.0", 7), ("9223372036854775807", i64::MAX)] {
            assert_eq!(id(text).expect(text).id, number);
        }
        for (text, found) in [
            ("9223372036854775808", Some("9223372036854775808")),
            ("99999999999999999999999", Some("99999999999999999999999")),
            ("\"99999999999999999999\"", Some("99999999999999999999")),
            ("\"build-7\"", Some("build-7")),
            ("1e2", Some("100")),
            ("7.5", None),
            ("1e40", None),
            ("-7", None),
            ("0", None),
            ("true", None),
            ("null", None),
            ("[7]", None),
            ("{\"id\": 7}", None),
            ("\"../7\"", None),
            ("\"7?x\"", None),
            ("\"\"", None),
        ] {
            match id(text) {
                Ok(payload) => assert_eq!(Some(payload.id.to_string().as_str()), found, "{text}"),
                Err(error) => assert_eq!(error.job.map(|job| job.id.to_string()).as_deref(), found, "{text}"),
            }
        }
    }

    proptest::proptest! {
        /// For any bytes, a job is decoded, or the error says whether it can be reported as failed.
        #[test]
        fn a_payload_with_changed_bytes_is_decoded_or_refused(
            changes in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>()), 0..8),
        ) {
            let text = br#"{"id":4711,"token":"glcbt-abc","job_info":{"id":1,"project_id":9},"git_info":{"depth":20},
                "runner_info":{"timeout":"60"},"variables":[{"key":"A","value":"b","masked":true}],"image":{"name":"x",
                "executor_opts":{"docker":{"user":1}}},"steps":[{"name":"script","script":["a"]}],"inputs":[{"key":"k",
                "value":{"type":"string","content":"c"}}],"secrets":{"S":{"vault":{}}},"cache":[{"key":"k","paths":["p"]}]}"#;
            let mut text = text.to_vec();
            for (at, byte) in changes {
                let at = at.index(text.len());
                text[at] = byte;
            }
            let lossy = String::from_utf8_lossy(&text).into_owned();
            if let Err(error) = decode(lossy.as_bytes()) {
                proptest::prop_assert!(!error.why.contains("glcbt"));
            }
        }
    }
}
