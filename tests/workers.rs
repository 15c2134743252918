//! The agent's own processes that work for a job are killed: file tasks are repeated, and the job does not fail with a
//! script failure.

use std::time::Duration;

use serde_json::json;

use crate::support::docker::docker;
use crate::support::gitlab::{Fault, GitLab};
use crate::support::job::{JobBuilder, job};
use crate::support::mayfly::{Home, is_running, kill_workers, nap};
use crate::support::scenario::Scenario;

const AGAIN: &str = "was killed: memory ran out, or another program killed it. Repeating it";

/// A job whose artifacts take time to upload.
fn with_artifacts(script: &[&str]) -> JobBuilder {
    let artifact = json!({"name": "a", "paths": ["a.txt"], "artifact_type": "archive", "artifact_format": "zip"});
    job(script).set("artifacts", json!([artifact]))
}

fn slow_uploads(gitlab: &GitLab, number: usize) {
    gitlab.fail("POST artifacts", vec![Fault::Slow(Duration::from_secs(10)); number]);
}

fn wait_for_section(gitlab: &GitLab, home: &Home, section: &str) {
    gitlab.wait_until(section, |_| home.record()["progress"]["stage"]["section"] == section);
}

#[test]
fn file_work_that_is_killed_is_done_again() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    slow_uploads(&gitlab, 1);
    let id = gitlab.queue(with_artifacts(&["echo x >a.txt"]).build());
    let mut agent = home.start(&["--once"]);
    wait_for_section(&gitlab, &home, "upload_artifacts_on_success");
    gitlab.wait_until("a worker", |_| kill_workers(id) > 0);
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), job.artifacts.len()), ("success", 1), "{}", job.log());
    assert!(job.has(AGAIN), "{}", job.log());
    assert!(agent.wait().success());
}

#[test]
fn file_work_that_is_killed_again_and_again_is_no_fault_of_the_script() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    slow_uploads(&gitlab, 10);
    let id = gitlab.queue(with_artifacts(&["echo x >a.txt"]).build());
    let mut agent = home.start(&["--once"]);
    wait_for_section(&gitlab, &home, "upload_artifacts_on_success");
    gitlab.wait_until("the end", |server| {
        kill_workers(id);
        server.job_state(id) == "failed"
    });
    let job = gitlab.job(id);
    assert_eq!(job.failure_reason.as_deref(), Some("runner_system_failure"), "{}", job.log());
    assert!(job.has("was killed repeatedly"), "{}", job.log());
    assert!(agent.wait().success());
}

#[test]
fn a_script_that_kills_itself_is_to_blame() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let id = gitlab.queue(job(&["kill -9 $$"]).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert_eq!(job.failure_reason.as_deref(), Some("script_failure"), "{}", job.log());
    assert!(agent.wait().success());
}

#[test]
fn a_script_in_a_container_is_not_blamed_for_the_process_that_speaks_for_it() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let nap = nap();
    let id = gitlab.queue(job(&["echo begun", &nap]).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_until("the script", |_| is_running(&nap));
    assert!(kill_workers(id) > 0);
    let job = gitlab.finished(id);
    assert_eq!(job.failure_reason.as_deref(), Some("runner_system_failure"), "{}", job.log());
    assert!(job.has("communicated with the container engine"), "{}", job.log());
    assert!(agent.wait().success());
    assert!(!is_running(&nap), "its container is removed");
}

#[test]
fn a_container_is_got_ready_again_when_that_was_killed() {
    let gitlab = GitLab::start();
    let service = docker().image(&["EXPOSE 9999", "CMD [\"sleep\", \"600\"]"]);
    let home = Scenario::containers().docker("wait_for_services_timeout = 10").home(&gitlab);
    let services = json!([{"name": service, "alias": "quiet"}]);
    let id = gitlab.queue(job(&["echo ran"]).set("services", services).build());
    let mut agent = home.start(&["--once"]);
    let is_preparing = || home.record()["progress"]["stage"]["section"] == "prepare_executor";
    gitlab.wait_until("a worker", |_| is_preparing() && kill_workers(id) > 0);
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success", "{}", job.log());
    assert!(job.has(AGAIN) && job.has("ran"), "{}", job.log());
    assert!(agent.wait().success());
    let label = format!("label=com.gitlab.gitlab-runner.job.id={id}");
    assert_eq!(docker().run(&["ps", "-aq", "--filter", &label]), "", "one of each, and none left");
}
