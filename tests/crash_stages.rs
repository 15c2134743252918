//! The agent dies in each stage of a job, and the next agent continues with that stage.

use std::thread;
use std::time::Duration;

use crate::support::git::GitServer;
use crate::support::gitlab::{GitLab, Job};
use crate::support::holds_within;
use crate::support::job::{JobBuilder, job};
use crate::support::mayfly::kill_shims;
use crate::support::scenario::Scenario;

/// The output of the stages of [`staged`], in order.
const STAGES: [&str; 8] = [
    "in pre_get_sources",
    "in the hook before git",
    "in the hook behind git",
    "in pre_build",
    "in the script",
    "in post_build",
    "in release",
    "in after_script",
];

/// A job that prints a line and sleeps in each of its stages, and the configuration of its runner. In the stage `last`
/// the job never ends.
fn staged(url: &str, sha: &str, last: Option<&str>) -> (String, JobBuilder) {
    let lines = |at: usize| {
        let stage = STAGES[at];
        format!("echo {stage}; sleep {}", if last == Some(stage) { "600" } else { "0.7" })
    };
    let runner = format!(
        "pre_get_sources_script = '{}'\npre_build_script = '{}'\npost_build_script = '{}'",
        lines(0),
        lines(3),
        lines(5)
    );
    let job = job(&[&lines(4), "cat file.txt"])
        .sources(url, sha)
        .hook("pre_get_sources_script", &[&lines(1)])
        .hook("post_get_sources_script", &[&lines(2)])
        .step("release", &[&lines(6)])
        .after_script(&[&lines(7)]);
    (runner, job)
}

/// Asserts that the log of a job of [`staged`] contains each line exactly as often as expected.
fn assert_every_stage_once(job: &Job, when: &str) {
    assert_eq!(job.state, "success", "{when}: {}", job.log());
    let lines = job.lines();
    for stage in STAGES {
        // The runner's pre- and post-build scripts run around each step.
        let times = if stage == "in pre_build" || stage == "in post_build" { 2 } else { 1 };
        assert_eq!(lines.iter().filter(|line| **line == stage).count(), times, "{stage}, {when}: {lines:#?}");
    }
    for line in ["from git", "Job succeeded", "Getting source from Git repository", "Running after_script"] {
        assert_eq!(lines.iter().filter(|other| **other == line).count(), 1, "{line}, {when}: {lines:#?}");
    }
}

#[test]
fn the_next_agent_resumes_a_job_in_any_stage() {
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    let (url, sha) = git.repository("team/demo", &[("file.txt", "from git\n")]);
    thread::scope(|scope| {
        for stage in STAGES {
            let (runner, job) = staged(&url, &sha, None);
            scope.spawn(move || {
                let gitlab = GitLab::start();
                let home = Scenario::shell().runner(&runner).home(&gitlab);
                let id = gitlab.queue(job.build());
                let agent = home.start(&[]);
                gitlab.wait_for_log(id, stage);
                agent.kill();
                let mut next = home.start(&[]);
                assert_every_stage_once(&gitlab.finished(id), stage);
                next.drain();
            });
        }
    });
}

#[test]
fn a_job_is_resumed_after_each_of_many_crashes() {
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    let (url, sha) = git.repository("team/demo", &[("file.txt", "from git\n")]);
    let (runner, job) = staged(&url, &sha, None);
    let gitlab = GitLab::start();
    let home = Scenario::shell().runner(&runner).home(&gitlab);
    let id = gitlab.queue(job.build());
    let deaths = || home.record()["progress"]["resumed_at"].as_array().map_or(0, Vec::len);
    let is_over = || !matches!(gitlab.job_state(id).as_str(), "pending" | "running");
    let mut life = 5;
    while !is_over() {
        let agent = home.start(&[]);
        agent.wait_for_log("mayfly is up");
        // Different lifetimes of the agents cover all stages and the gaps between them.
        holds_within(Duration::from_millis(200 + life * 37 % 900), is_over);
        // A job fails after the sixth death in one of its stages. On a busy machine a stage may last that long, so the
        // fifth agent lives until the next stage.
        agent.wait_until("the next stage", || deaths() < 4 || is_over());
        let taken = gitlab.job_state(id) != "pending";
        if taken && !home.path("state/slot-0/job.json").exists() && gitlab.job(id).trace.is_empty() {
            // The agent died between GitLab's response and the first write to the journal: GitLab drops such a job.
            return;
        }
        agent.kill();
        life += 1;
        assert!(life < 100, "the job does not end:\n{}", gitlab.job(id).log());
    }
    assert_every_stage_once(&gitlab.job(id), "after many deaths");
}

#[test]
fn a_job_whose_shim_died_in_any_stage_is_reported_as_failed() {
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    let (url, sha) = git.repository("team/demo", &[("file.txt", "from git\n")]);
    thread::scope(|scope| {
        for stage in STAGES {
            let (runner, job) = staged(&url, &sha, Some(stage));
            scope.spawn(move || {
                let gitlab = GitLab::start();
                let home = Scenario::shell().runner(&runner).home(&gitlab);
                let id = gitlab.queue(job.build());
                let agent = home.start(&[]);
                gitlab.wait_for_log(id, stage);
                agent.kill();
                assert!(kill_shims(id) > 0, "{stage}");
                let mut next = home.start(&[]);
                let job = gitlab.finished(id);
                next.drain();
                assert_eq!(job.failure_reason.as_deref(), Some("runner_system_failure"), "{stage}: {}", job.log());
                let lines = job.lines();
                assert!(lines.contains(&stage.to_owned()), "the log up to there");
                let last = lines.last().cloned().unwrap_or_default();
                assert!(last.starts_with("ERROR: Job failed (system failure)"), "{stage}: {lines:#?}");
            });
        }
    });
}
