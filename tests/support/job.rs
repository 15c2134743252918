//! Sample job payloads.

use serde_json::{Value, json};

/// A payload under construction.
pub struct JobBuilder(Value);

/// A shell command that waits for a file, with a time limit, so that no process is left if a test ends early.
pub fn until_there(path: impl std::fmt::Display) -> String {
    format!("for i in $(seq 1200); do [ -e {path} ] && break; sleep 0.1; done")
}

/// A job with these script lines and without sources.
pub fn job(script: &[&str]) -> JobBuilder {
    JobBuilder(json!({
        "allow_git_fetch": true,
        "job_info": {"id": 1, "name": "unit", "stage": "test", "project_id": 9, "project_name": "demo", "news": null},
        "git_info": {"repo_url": "https://gitlab-ci-token:x@gitlab.test/team/demo.git", "ref": "main", "sha": "0"},
        "runner_info": {"timeout": 600, "runner_session_url": null},
        "variables": [{"key": "CI_JOB_NAME", "value": "unit", "public": true, "masked": false}],
        "steps": [{"name": "script", "script": script, "timeout": 600, "when": "on_success", "allow_failure": false}],
        "artifacts": null,
        "cache": [],
        "dependencies": null,
        "unknown_key": {"x": [1, null]},
        "features": {"trace_sections": true, "token_mask_prefixes": ["glpat-"], "failure_reasons":
            ["script_failure", "runner_system_failure", "job_execution_timeout", "runner_interrupted", "job_canceled",
             "runner_configuration_error", "image_pull_failure", "runner_external_dependency_failure",
             "unknown_failure"]},
    }))
    .variable("GIT_STRATEGY", "none")
}

impl JobBuilder {
    pub fn variable(self, key: &str, value: &str) -> Self {
        self.variable_with(key, value, json!({}))
    }

    pub fn masked(self, key: &str, value: &str) -> Self {
        self.variable_with(key, value, json!({"masked": true}))
    }

    pub fn file(self, key: &str, value: &str) -> Self {
        self.variable_with(key, value, json!({"file": true}))
    }

    fn variable_with(mut self, key: &str, value: &str, with: Value) -> Self {
        let mut variable = json!({"key": key, "value": value, "public": true});
        for (name, value) in with.as_object().expect("an object") {
            variable[name] = value.clone();
        }
        self.0["variables"].as_array_mut().expect("a list").push(variable);
        self
    }

    pub fn after_script(self, lines: &[&str]) -> Self {
        self.step("after_script", lines)
    }

    pub fn step(mut self, name: &str, lines: &[&str]) -> Self {
        let step = json!({"name": name, "script": lines, "when": "always"});
        self.0["steps"].as_array_mut().expect("a list").push(step);
        self
    }

    pub fn hook(mut self, name: &str, lines: &[&str]) -> Self {
        if self.0["hooks"].is_null() {
            self.0["hooks"] = json!([]);
        }
        self.0["hooks"].as_array_mut().expect("a list").push(json!({"name": name, "script": lines}));
        self
    }

    pub fn timeout(mut self, seconds: i64) -> Self {
        self.0["runner_info"]["timeout"] = json!(seconds);
        self
    }

    /// Sets the repository and the commit.
    pub fn sources(mut self, url: &str, sha: &str) -> Self {
        let with_login = url.replacen("://", "://gitlab-ci-token:stale@", 1);
        self.0["git_info"] = json!({
            "repo_url": with_login, "ref": "main", "sha": sha, "before_sha": "0".repeat(40), "ref_type": "branch",
            "refspecs": ["+refs/heads/main:refs/remotes/origin/main"], "depth": 20, "repo_object_format": "sha1",
        });
        self.without_variable("GIT_STRATEGY")
    }

    fn without_variable(mut self, key: &str) -> Self {
        self.0["variables"].as_array_mut().expect("a list").retain(|variable| variable["key"] != key);
        self
    }

    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.0[key] = value;
        self
    }

    pub fn build(self) -> Value {
        self.0
    }
}
