//! Variables and feature flags that configure the runner.

use serde_json::json;

use crate::support::git::GitServer;
use crate::support::gitlab::{GitLab, Job};
use crate::support::job::{JobBuilder, job};
use crate::support::scenario::Scenario;

fn run(runner: &str, job: JobBuilder) -> Job {
    Scenario::shell().runner(runner).job(job)
}

#[test]
fn invalid_settings_are_reported_first() {
    let job = run(
        "[runners.feature_flags]\nFF_HASH_CACHE_KEYS = true",
        job(&["echo \"flag $FF_HASH_CACHE_KEYS $FF_NETWORK_PER_BUILD $FF_CONCRETE\""])
            .variable("GET_SOURCES_ATTEMPTS", "99")
            .variable("RUNNER_SCRIPT_TIMEOUT", "90")
            .variable("GIT_CHECKOUT", "maybe")
            .variable("FF_HASH_CACHE_KEYS", "false")
            .variable("FF_NETWORK_PER_BUILD", "true")
            .variable("FF_SCRIPT_SECTIONS", "quite")
            .variable("UID", "0"),
    );
    assert_eq!(job.state, "success", "{}", job.log());
    let lines = job.lines();
    let first = lines.iter().position(|line| line.starts_with("Preparing the")).expect("a heading");
    for part in [
        "feature flags: FF_HASH_CACHE_KEYS:true, FF_NETWORK_PER_BUILD:true",
        "feature flags without effect here: FF_NETWORK_PER_BUILD",
        "WARNING: GET_SOURCES_ATTEMPTS: `99`",
        "WARNING: RUNNER_SCRIPT_TIMEOUT: `90`",
        "WARNING: GIT_CHECKOUT: `maybe`",
        "WARNING: FF_SCRIPT_SECTIONS: `quite`",
        "variable(s) `UID`",
    ] {
        let places: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].contains(part)).collect();
        assert!(places.len() == 1 && places[0] < first, "{part} in {lines:#?}");
    }
    assert!(lines.contains(&"flag true true false".to_owned()), "{lines:#?}");
}

#[test]
fn unsupported_features_fail_the_job_instead_of_being_ignored() {
    for (key, value, word) in [
        ("run", json!([{"name": "x"}]), "`run`"),
        ("run", json!("[{\"name\": \"x\"}]"), "`run`"),
        ("secrets", json!({"DB_PASS": {"vault": {}}}), "DB_PASS from vault"),
    ] {
        let job = run("", job(&["echo ran"]).set(key, value));
        assert_eq!(job.failure_reason.as_deref(), Some("runner_configuration_error"));
        assert!(job.has(word) && !job.lines().contains(&"ran".to_owned()), "{:#?}", job.lines());
    }
}

#[test]
fn accepts_nulls_and_numbers_in_the_payload() {
    let job = run(
        "",
        job(&[])
            .set("steps", json!([null, {"name": "script", "script": ["echo \"port $PORT\"", null]}]))
            .set("variables", json!([null, {"key": "PORT", "value": 80}, {"key": "GIT_STRATEGY", "value": "none"}]))
            .set("runner_info", json!({"timeout": "600"}))
            .set("hooks", json!([null]))
            .set("secrets", json!(null)),
    );
    assert_eq!(job.state, "success", "{}", job.log());
    assert!(job.lines().contains(&"port 80".to_owned()));
}

#[test]
fn a_timeout_while_fetching_sources_ends_the_job() {
    let runner = "get_sources_timeout = \"1s\"\npre_get_sources_script = \"sleep 600\"";
    let artifact = json!([{"name": "x", "paths": ["."], "when": "always", "artifact_type": "archive",
        "artifact_format": "zip"}]);
    let git = tempfile::tempdir().expect("a directory");
    let server = GitServer::start(git.path());
    let (url, sha) = server.repository("team/demo", &[("a", "b")]);
    let job = run(
        runner,
        job(&["echo ran"])
            .sources(&url, &sha)
            .set("artifacts", artifact)
            .variable("GET_SOURCES_ATTEMPTS", "3")
            .after_script(&["echo after"]),
    );
    assert_eq!(job.failure_reason.as_deref(), Some("job_execution_timeout"));
    assert!(job.has("get_sources could not run to completion because the timeout was exceeded"));
    assert!(job.has("ERROR: Job failed: get sources timeout: exceeded timeout of 1s"));
    assert!(!job.has("Retrying") && !job.has("Uploading artifacts"), "{:#?}", job.lines());
}

#[test]
fn a_job_without_sources_does_not_change_the_checkout() {
    let root = tempfile::tempdir().expect("a directory");
    let server = GitServer::start(root.path());
    let (url, sha) = server.repository("team/demo", &[("a.txt", "b\n")]);
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    home.run(&gitlab, job(&["touch left"]).sources(&url, &sha));
    let empty = job(&["ls; pwd"]).sources(&url, &sha).variable("GIT_STRATEGY", "empty");
    let empty = home.run(&gitlab, empty);
    assert!(empty.has("/team/demo-empty") && !empty.has("a.txt"), "{:#?}", empty.lines());
    let third = home.run(&gitlab, job(&["cat a.txt"]).sources(&url, &sha));
    assert!(!third.has("Created fresh repository."), "{:#?}", third.lines());
}

#[test]
fn cleans_the_project_directory_after_a_job_on_request() {
    let root = tempfile::tempdir().expect("a directory");
    let server = GitServer::start(root.path());
    let (url, sha) = server.repository("team/demo", &[("a.txt", "as it was\n")]);
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let ran = home.path("ran");
    let plant = format!("printf '#!/bin/sh\\ntouch {}\\n' >.git/hooks/post-checkout || :", ran.display());
    let script = ["pwd", "mkdir -p .git/hooks", &plant, "chmod +x .git/hooks/* || :", "echo new >a.txt", "touch left"];
    for (strategy, kept) in [("fetch", true), ("clone", false)] {
        let ask = |job: JobBuilder| job.variable("GIT_STRATEGY", strategy).variable("FF_ENABLE_JOB_CLEANUP", "true");
        let done = home.run(&gitlab, ask(job(&script).sources(&url, &sha)));
        assert_eq!(done.state, "success", "{}", done.log());
        let lines = done.lines();
        let project = lines.iter().find(|line| line.starts_with('/')).expect("a directory");
        let project = std::path::Path::new(project);
        assert_eq!(project.exists(), kept, "{strategy}");
        if kept {
            assert_eq!(std::fs::read_to_string(project.join("a.txt")).expect("read the file"), "as it was\n");
        }
        assert!(!project.join("left").exists() && !ran.exists(), "{strategy}");
    }
}

#[test]
fn artifact_names_can_use_variables_from_scripts() {
    let artifact = json!([{"name": "demo-$VERSION", "paths": ["$FILE"], "when": "on_success",
        "artifact_type": "archive", "artifact_format": "zip"}]);
    let script = ["echo x >out.txt", "printf 'VERSION=1.2\\nFILE=out.txt\\n' >>\"$GITLAB_ENV\""];
    let job = run("", job(&script).variable("VERSION", "unset").set("artifacts", artifact));
    assert_eq!(job.state, "success", "{}", job.log());
    let names: Vec<&str> = job.artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
    assert_eq!(names, ["demo-1.2.zip"]);
}
