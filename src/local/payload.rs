//! Converts a planned job to the payload that a GitLab server would send.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Map, Value, json};

use crate::pipeline::plan::{EnvSource, EnvVariable, Job};

/// The timeout in seconds of a job without `timeout`: GitLab's default for a project.
const DEFAULT_TIMEOUT: u64 = 3600;

/// Further input for the payload.
pub struct PayloadFacts<'a> {
    /// `CI_JOB_ID`
    pub id: i64,
    pub variables: &'a [EnvVariable],
    /// Jobs whose artifacts the job downloads: id and name.
    pub dependencies: &'a [(i64, String)],
    /// The image; `None` for the shell.
    pub image: Option<Value>,
    /// The directory of the project.
    pub project: &'a str,
    /// Whether the job runs in a container, where the repository belongs to another user than git's.
    pub is_in_container: bool,
}

/// The payload as JSON.
pub fn encode(job: &Job, facts: &PayloadFacts<'_>) -> serde_json::Result<String> {
    let (variables, others) = (variables(facts), other_entries(job, facts));
    serde_json::to_string(&Payload { variables, others })
}

/// The payload. Variables are serialized directly, because building a JSON value for each of them takes longer.
struct Payload<'a> {
    variables: Vec<PayloadVariable<'a>>,
    others: Value,
}

impl Serialize for Payload<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut entries = serializer.serialize_map(None)?;
        entries.serialize_entry("variables", &self.variables)?;
        for (key, value) in self.others.as_object().into_iter().flatten() {
            entries.serialize_entry(key, value)?;
        }
        entries.end()
    }
}

#[derive(Serialize)]
struct PayloadVariable<'a> {
    key: &'a str,
    value: &'a str,
    public: bool,
    raw: bool,
    file: bool,
    masked: bool,
}

/// All entries except the variables.
fn other_entries(job: &Job, facts: &PayloadFacts<'_>) -> Value {
    let text = |key: &str| {
        let found = facts.variables.iter().rev().find(|variable| &*variable.key == key);
        found.map(|variable| variable.value.clone()).unwrap_or_default()
    };
    let before = job.before_script.iter().flatten();
    let script: Vec<&str> = before.chain(job.script.iter().flatten()).map(|line| &**line).collect();
    let after: Vec<&str> = job.after_script.iter().flatten().map(|line| &**line).collect();
    let hook: Vec<&str> = job.pre_get_sources_script.iter().flatten().map(|line| &**line).collect();
    let dependencies: Vec<Value> = facts
        .dependencies
        .iter()
        .map(|(id, name)| json!({"id": id, "name": name, "token": "local", "artifacts_file": {"filename": "artifacts.zip"}}))
        .collect();
    json!({
        "id": facts.id,
        "token": "local",
        "job_info": {"name": &*job.name, "stage": &*job.stage, "project_id": 1, "project_name": facts.project},
        "git_info": {"ref": text("CI_COMMIT_REF_NAME"), "sha": text("CI_COMMIT_SHA")},
        "runner_info": {"timeout": job.timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.as_secs().max(1))},
        "steps": [{"name": "script", "script": script}, {"name": "after_script", "script": after}],
        "hooks": [{"name": "pre_get_sources_script", "script": hook}],
        "image": facts.image,
        "services": if facts.is_in_container { service_entries(job).into() } else { Value::Null },
        "artifacts": artifacts(job),
        "cache": caches(job),
        "dependencies": dependencies,
        "run": job.run.then_some("steps"),
        "features": {
            "trace_sections": true,
            "failure_reasons": [
                "runner_interrupted", "job_canceled", "image_pull_failure", "runner_configuration_error",
                "runner_external_dependency_failure", "unknown_failure",
            ],
        },
    })
}

fn variables<'a>(facts: &PayloadFacts<'a>) -> Vec<PayloadVariable<'a>> {
    let given = facts.variables.iter().map(|variable| PayloadVariable {
        key: &variable.key,
        value: &variable.value,
        public: !variable.masked && variable.source != EnvSource::Given,
        raw: variable.raw,
        file: variable.file,
        masked: variable.masked,
    });
    let own = |key, value| PayloadVariable { key, value, public: true, raw: true, file: false, masked: false };
    // The tree already contains the sources, regardless of the file's `GIT_STRATEGY`.
    let mut variables: Vec<_> = given.chain([own("GIT_STRATEGY", "none"), own("MAYFLY_EXEC", "true")]).collect();
    if facts.is_in_container {
        variables.extend([
            own("GIT_CONFIG_COUNT", "1"),
            own("GIT_CONFIG_KEY_0", "safe.directory"),
            own("GIT_CONFIG_VALUE_0", "*"),
        ]);
    }
    variables
}

/// Variables about the runner that a server knows.
pub fn runner_variables() -> Vec<(String, String)> {
    let own = [("CI_RUNNER_ID", "1"), ("CI_RUNNER_DESCRIPTION", "mayfly exec"), ("CI_RUNNER_TAGS", "[]")];
    own.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// An image or a service in the format of the payload.
pub fn image_entry(node: &Value) -> Value {
    let mut image = match node {
        Value::String(name) => crate::ordered::map([("name".to_owned(), json!(name))]),
        Value::Object(entries) => entries.clone(),
        _ => Map::new(),
    };
    for list in ["entrypoint", "command", "pull_policy"] {
        if let Some(text @ Value::String(_)) = image.get(list).cloned() {
            image.insert(list.to_owned(), json!([text]));
        }
    }
    if let Some(docker) = image.remove("docker") {
        image.insert("executor_opts".to_owned(), json!({"docker": docker}));
    }
    image.remove("kubernetes");
    if let Some(Value::Object(variables)) = image.remove("variables") {
        let list =
            variables.into_iter().map(|(key, value)| json!({"key": key, "value": scalar_text(&value), "public": true}));
        image.insert("variables".to_owned(), list.collect());
    }
    Value::Object(image)
}

/// The text of a value, or of a variable with attributes.
fn scalar_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Object(entries) => entries.get("value").map(scalar_text).unwrap_or_default(),
        other => other.to_string(),
    }
}

/// The services of a job in the format of the payload.
pub fn service_entries(job: &Job) -> Vec<Value> {
    let services = job.services.as_ref().map(|services| services.to_json()).unwrap_or_default();
    services.as_array().into_iter().flatten().map(image_entry).collect()
}

/// A string or a list of strings, as a list.
fn string_list(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) => items.iter().flat_map(|item| string_list(Some(item))).collect(),
        _ => Vec::new(),
    }
}

/// The artifacts archive, and each report by its type.
fn artifacts(job: &Job) -> Vec<Value> {
    let Some(artifacts) = job.artifacts.as_ref().map(|artifacts| artifacts.to_json()) else { return Vec::new() };
    let archive = json!({
        "name": artifacts.get("name").map(scalar_text),
        "untracked": artifacts.get("untracked"),
        "paths": string_list(artifacts.get("paths")),
        "exclude": string_list(artifacts.get("exclude")),
        "when": artifacts.get("when"),
        "artifact_type": "archive",
        "artifact_format": "zip",
    });
    let has_files =
        archive["untracked"] == json!(true) || archive["paths"].as_array().is_some_and(|paths| !paths.is_empty());
    let mut all: Vec<Value> = has_files.then_some(archive).into_iter().collect();
    for (kind, paths) in artifacts.get("reports").and_then(Value::as_object).into_iter().flatten() {
        let paths = string_list(paths.get("path").or(Some(paths)));
        // The runner itself parses dotenv reports.
        let format = if kind == "dotenv" { "gzip" } else { "zip" };
        all.push(json!({"paths": paths, "when": "always", "artifact_type": kind, "artifact_format": format}));
    }
    all
}

fn caches(job: &Job) -> Vec<Value> {
    let caches = job.cache.as_ref().map(|cache| cache.to_json()).unwrap_or_default();
    let entries = caches.as_array().into_iter().flatten().enumerate();
    entries
        .map(|(index, cache)| {
            json!({
                "key": job.cache_keys.get(index).map_or("default", String::as_str),
                "untracked": cache.get("untracked"),
                "paths": string_list(cache.get("paths")),
                "policy": cache.get("policy"),
                "when": cache.get("when"),
                "fallback_keys": string_list(cache.get("fallback_keys")),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_the_fields_of_the_runner_protocol() {
        assert_eq!(image_entry(&json!("alpine")), json!({"name": "alpine"}));
        let full = json!({
            "name": "db", "alias": "a b", "entrypoint": "x", "pull_policy": ["never"], "kubernetes": {"user": "1"},
            "docker": {"user": "1000"}, "variables": {"A": 1, "B": {"value": "b"}},
        });
        let expected = json!({
            "name": "db", "alias": "a b", "entrypoint": ["x"], "pull_policy": ["never"],
            "executor_opts": {"docker": {"user": "1000"}},
            "variables": [{"key": "A", "value": "1", "public": true}, {"key": "B", "value": "b", "public": true}],
        });
        assert_eq!(image_entry(&full), expected);
    }
}
