//! The `info` object of the Runner API: describes the agent to GitLab. It claims only features that the agent has.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::ExecutorKind;
use crate::version::{REVISION, VERSION, architecture};

/// The number of labels that GitLab accepts for one runner.
const MAX_LABELS: usize = 32;

/// Features of all executors. GitLab assigns jobs by them, so each must really be supported.
const FEATURES: [&str; 19] = [
    "artifacts",
    "artifacts_exclude",
    "cache",
    "cancel_gracefully",
    "cancelable",
    "fallback_cache_keys",
    "job_inputs",
    "masking",
    "multi_build_steps",
    "raw_variables",
    "refspecs",
    "return_exit_code",
    "trace_checksum",
    "trace_reset",
    "trace_size",
    "two_phase_job_commit",
    "upload_multiple_artifacts",
    "upload_raw_artifacts",
    "variables",
];

/// Additional features of runners with containers. If a job needs a feature that its runner does not claim, GitLab
/// fails the job with a visible reason.
const CONTAINER_FEATURES: [&str; 6] = [
    "image",
    "image_executor_opts",
    "service_executor_opts",
    "service_multiple_aliases",
    "service_variables",
    "services",
];

/// Features of the other executors: jobs share the machine.
const SHELL_FEATURES: [&str; 1] = ["shared"];

/// The `info` object of a request.
#[derive(Clone, Debug, Serialize)]
pub struct RunnerManagerInfo {
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

impl RunnerManagerInfo {
    pub fn new(executor: ExecutorKind, shell: &str, labels: &BTreeMap<String, String>) -> Self {
        let own: &[&str] = if executor.has_containers() { &CONTAINER_FEATURES } else { &SHELL_FEATURES };
        Self {
            name: "mayfly",
            version: VERSION,
            revision: REVISION,
            platform: "linux",
            architecture: architecture(),
            executor: executor.as_str().to_owned(),
            shell: shell.to_owned(),
            labels: valid_labels(labels),
            features: crate::ordered::map(FEATURES.iter().chain(own).map(|feature| (*feature, true))),
        }
    }
}

/// Returns only the labels that GitLab accepts: GitLab rejects every request that contains an invalid label.
fn valid_labels(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let (good, bad): (Vec<_>, Vec<_>) = labels.iter().partition(|(key, value)| is_label(key, value));
    for (key, _) in bad.into_iter().chain(good.iter().skip(MAX_LABELS).copied()) {
        log::warn!(
            "a label is not sent to GitLab, which accepts {MAX_LABELS} labels; a name has 3 to 65 and a value 1 to 256 of \
             the characters A-Z a-z 0-9 . _ -, and a name does not begin with . or - label={key:?}"
        );
    }
    crate::ordered::map(good.into_iter().take(MAX_LABELS).map(|(key, value)| (key.clone(), value.clone())))
}

/// Names `^[a-zA-Z0-9_][a-zA-Z0-9._-]{2,64}$`, values `^[a-zA-Z0-9._-]{1,256}$`.
fn is_label(key: &str, value: &str) -> bool {
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    (3..=65).contains(&key.len())
        && plain(key)
        && !key.starts_with(['.', '-'])
        && (1..=256).contains(&value.len())
        && plain(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_only_labels_that_the_server_accepts() {
        let long = "v".repeat(257);
        let mut labels: BTreeMap<String, String> = [
            ("zone", "a1"),
            ("_under.score-ed", "x"),
            ("ab", "too short a name"),
            ("-abc", "x"),
            ("spaced name", "x"),
            ("empty", ""),
            ("long", long.as_str()),
            ("slash", "a/b"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let kept = |labels: &BTreeMap<_, _>| {
            RunnerManagerInfo::new(ExecutorKind::Shell, "bash", labels).labels.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(kept(&labels), ["_under.score-ed", "zone"]);
        labels.extend((0..40).map(|number| (format!("label{number:02}"), "x".to_owned())));
        assert_eq!(kept(&labels).len(), MAX_LABELS);
    }

    #[test]
    fn features_depend_on_the_executor() {
        let of = |kind| RunnerManagerInfo::new(kind, "bash", &BTreeMap::new()).features;
        let (shell, docker) = (of(ExecutorKind::Shell), of(ExecutorKind::Docker));
        assert!(shell.contains_key("shared") && !shell.contains_key("image"));
        assert!(docker.contains_key("services") && !docker.contains_key("shared"));
    }

    #[test]
    fn a_request_is_small_enough_for_the_server_with_any_labels() {
        let labels = (0..40).map(|number| (format!("{number:065}"), "v".repeat(256))).collect();
        let info = serde_json::to_vec(&RunnerManagerInfo::new(ExecutorKind::DockerAutoscaler, "bash", &labels))
            .expect("encode as JSON");
        assert!(info.len() < 16 * 1024, "{}", info.len());
    }
}
