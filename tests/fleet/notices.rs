//! Notices of the cloud: spot interruptions, rebalance recommendations, and hibernation.

use std::fs;
use std::time::{Duration, Instant};

use super::{Fleet, TERMINATE};
use crate::support::git::GitServer;
use crate::support::gitlab::Fault;
use crate::support::job::{JobBuilder, job, until_there};
use crate::support::mayfly::{is_running, nap};

#[test]
fn a_notice_during_the_terminate_call_takes_effect() {
    std::thread::scope(|scope| {
        // The group refuses, or is busy, while the cloud announces the interruption of the instance.
        for at_minimum in [true, false] {
            scope.spawn(move || {
                let fleet = Fleet::new("idle_timeout = \"1s\"");
                match at_minimum {
                    true => {
                        fleet.cloud.change(|group| group.minimum = group.desired);
                        fleet.cloud.fail(TERMINATE, [Fault::Slow(Duration::from_secs(8))]);
                    }
                    false => fleet.cloud.refuse(TERMINATE, 400, "Throttling"),
                }
                let mut agent = fleet.start();
                agent.wait_for_log("shutting down strategy");
                fleet.cloud.recommend_rebalance();
                agent.wait_for_log(
                    "rebalance recommendation: the cloud is likely to interrupt this instance soon; draining",
                );
                fleet.cloud.allow(TERMINATE);
                assert!(agent.wait().success());
                assert_eq!(fleet.ends(), (1, 0), "its place is kept: {}", agent.log());
                assert!(!agent.log().contains("at its minimum size; polling resumed"), "{}", agent.log());
            });
        }
    });
}

#[test]
fn a_notice_during_the_shutdown_of_an_idle_instance_keeps_the_desired_capacity() {
    let fleet = Fleet::new("idle_timeout = \"1s\"");
    fleet.gitlab.fail("DELETE runners/managers", [Fault::Slow(Duration::from_secs(8))]);
    let mut agent = fleet.start();
    agent.wait_for_log("shutting down strategy");
    fleet.cloud.recommend_rebalance();
    assert!(agent.wait().success());
    assert_eq!(fleet.ends(), (1, 0), "{}", agent.log());
}

#[test]
fn a_rebalance_recommendation_stops_polling_and_keeps_the_desired_capacity() {
    let fleet = Fleet::new("idle_timeout = \"1h\"");
    let go = fleet.home.path("go");
    let id = fleet.queue(job(&["echo begun", &until_there(go.display())]));
    let mut agent = fleet.start();
    fleet.gitlab.wait_for_log(id, "begun");
    // The service does not answer for a while, and its tokens expire early.
    fleet.cloud.metadata.shorten_tokens(Duration::from_secs(1));
    fleet.cloud.metadata.stop_responding();
    let before = fleet.cloud.metadata.requests().len();
    agent.wait_until("a request without a response", || fleet.cloud.metadata.requests().len() > before);
    fleet.cloud.metadata.resume_responding();
    fleet.cloud.recommend_rebalance();
    agent.wait_for_log("polling stopped reason=rebalance_recommendation");
    let waiting = fleet.queue(job(&["true"]));
    fs::write(&go, "").expect("write a file");
    assert!(agent.wait().success());
    let states = [fleet.gitlab.job_state(id), fleet.gitlab.job_state(waiting)];
    assert_eq!((states, fleet.ends()), (["success".to_owned(), "pending".to_owned()], (1, 0)));
}

#[test]
fn a_hibernating_instance_ends_its_job_and_does_not_terminate() {
    let fleet = Fleet::new("idle_timeout = \"1s\"");
    let id = fleet.queue(job(&["echo begun", &nap()]));
    let agent = fleet.start();
    fleet.gitlab.wait_for_log(id, "begun");
    let notice = format!("{{\"action\": \"hibernate\", \"time\": \"{}\"}}", jiff::Timestamp::now());
    fleet.cloud.metadata.set("spot/instance-action", notice);
    assert_eq!(fleet.gitlab.finished(id).failure_reason.as_deref(), Some("runner_interrupted"));
    let waiting = fleet.queue(job(&["true"]));
    fleet.wait_for_metadata_polls(1);
    assert_eq!((fleet.gitlab.job_state(waiting).as_str(), fleet.ends()), ("pending", (0, 0)));
    assert!(!agent.log().contains("polling stopped"), "{}", agent.log());
    agent.kill();
}

/// Adds artifacts that are uploaded on success and on failure.
fn with_artifacts(job: JobBuilder) -> JobBuilder {
    job.set(
        "artifacts",
        serde_json::json!([{
            "name": "left", "paths": ["left.txt"], "when": "on_failure", "artifact_type": "archive",
            "artifact_format": "zip",
        }]),
    )
}

#[test]
fn a_job_is_interrupted_before_its_instance_with_log_and_artifacts() {
    let fleet = Fleet::new("idle_timeout = \"1h\"");
    let nap = nap();
    let script = ["echo first line", "echo some >left.txt", &nap];
    let id = fleet.queue(with_artifacts(job(&script)).after_script(&["echo never"]));
    let mut agent = fleet.start();
    fleet.gitlab.wait_until("the script", |_| is_running(&nap));
    let deadline = Instant::now() + Duration::from_secs(30);
    fleet.cloud.interrupt(Duration::from_secs(30));
    assert!(agent.wait().success());
    let job = fleet.gitlab.job(id);
    assert_eq!(job.failure_reason.as_deref(), Some("runner_interrupted"), "{}", job.log());
    assert!(job.ended.expect("the job must have ended") < deadline, "too late");
    let lines = job.lines();
    assert!(lines.contains(&"first line".to_owned()) && !lines.contains(&"never".to_owned()), "{lines:#?}");
    assert_eq!(job.artifacts.len(), 1, "{lines:#?}");
    assert!(lines.last().is_some_and(|line| line.contains("the cloud interrupts this instance")), "{lines:#?}");
    assert_eq!((fleet.ends().1, fleet.times_off()), (0, 0), "its place is kept");
    assert!(fleet.gitlab.managers().is_empty());
    fleet.assert_that_it_is_over();
    fleet.gitlab.assert_strict();
}

#[test]
fn a_job_that_ends_before_the_interruption_keeps_its_result() {
    let fleet = Fleet::new("idle_timeout = \"1h\"");
    let go = fleet.home.path("go");
    let lines = ["echo begun", &until_there(go.display()), "echo end"];
    let id = fleet.queue(job(&lines).after_script(&["echo after"]));
    let waiting = fleet.queue(job(&["true"]));
    let mut agent = fleet.start();
    fleet.gitlab.wait_for_log(id, "begun");
    fleet.cloud.interrupt(Duration::from_secs(60));
    agent.wait_for_log("polling stopped");
    fs::write(&go, "").expect("write a file");
    assert!(agent.wait().success());
    let job = fleet.gitlab.job(id);
    assert_eq!(job.state, "success", "{}", job.log());
    assert!(job.lines().contains(&"after".to_owned()));
    assert_eq!((fleet.gitlab.job_state(waiting).as_str(), fleet.ends()), ("pending", (1, 0)));
}

#[test]
fn an_interruption_in_each_stage_of_a_job() {
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    let (url, sha) = git.repository("team/demo", &[("file.txt", "from git\n")]);
    let (url, sha) = (&url, &sha);
    std::thread::scope(|scope| {
        for (stage, expected) in [("sources", "runner_interrupted"), ("after", "success"), ("upload", "success")] {
            scope.spawn(move || {
                let fleet = Fleet::new("idle_timeout = \"1h\"");
                let nap = nap();
                let job = match stage {
                    "sources" => job(&["true"]).sources(url, sha).hook("pre_get_sources_script", &["echo here", &nap]),
                    "after" => job(&["true"]).after_script(&["echo here", &nap]),
                    _ => {
                        fleet.gitlab.fail("POST artifacts", [Fault::Slow(Duration::from_secs(8))]);
                        job(&["echo here >left.txt; echo here"]).set(
                            "artifacts",
                            serde_json::json!([{"name": "left", "paths": ["left.txt"], "when": "always",
                                "artifact_type": "archive", "artifact_format": "zip"}]),
                        )
                    }
                };
                let id = fleet.queue(job);
                let mut agent = fleet.start();
                fleet.gitlab.wait_for_log(id, "here");
                if stage == "upload" {
                    fleet.gitlab.wait_until("the upload", |server| server.count("POST artifacts") > 0);
                }
                let deadline = Instant::now() + Duration::from_secs(24);
                fleet.cloud.interrupt(Duration::from_secs(24));
                assert!(agent.wait().success(), "{stage}");
                let job = fleet.gitlab.job(id);
                let outcome = job.failure_reason.clone().unwrap_or(job.state.clone());
                assert_eq!(outcome, expected, "{stage}: {}", job.log());
                assert!(job.ended.expect("the job must have ended") < deadline, "{stage}: too late");
                assert_eq!(job.artifacts.len(), usize::from(stage == "upload"), "{stage}: {}", job.log());
            });
        }
    });
}
