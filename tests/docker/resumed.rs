//! Container jobs after the death of their agent, of their shim or of their journal.

use std::time::Duration;

use super::assert_nothing_left;
use crate::support::docker::docker;
use crate::support::gitlab::GitLab;
use crate::support::job::{job, until_there};
use crate::support::mayfly::{is_running, kill_shims, nap};
use crate::support::scenario::Scenario;

#[test]
fn the_next_agent_resumes_a_job_whose_container_runs() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let count = "for i in 1 2 3 4 5 6; do echo \"tick $i\"; sleep 0.5; done";
    let id = gitlab.queue(job(&[count]).after_script(&["echo after; sleep 1; echo end"]).build());
    for moment in ["tick 1", "tick 4", "after"] {
        let agent = home.start(&[]);
        gitlab.wait_for_log(id, moment);
        agent.kill();
    }
    let mut last = home.start(&[]);
    last.wait_for_log("mayfly is up");
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success", "{}", job.log());
    let lines = job.lines();
    for line in ["tick 1", "tick 2", "tick 3", "tick 4", "tick 5", "tick 6", "after", "end", "Job succeeded"] {
        assert_eq!(lines.iter().filter(|other| *other == line).count(), 1, "{line} in {lines:#?}");
    }
    last.drain();
    assert_nothing_left(id, &last.log());
}

#[test]
fn the_next_agent_resumes_a_job_whose_container_is_being_created() {
    for millis in [0, 60, 150, 300, 500] {
        let gitlab = GitLab::start();
        let home = Scenario::containers().home(&gitlab);
        let id = gitlab.queue(job(&["echo only once"]).build());
        let agent = home.start(&[]);
        gitlab.wait_for_log(id, "Preparing the \"docker\" executor");
        // The requests to the engine at which the agent dies are random; the assertions hold for every one.
        std::thread::sleep(Duration::from_millis(millis));
        agent.kill();
        let mut next = home.start(&[]);
        next.wait_for_log("mayfly is up");
        let job = gitlab.finished(id);
        assert_eq!(job.state, "success", "after {millis} ms: {}", job.log());
        for line in ["only once", "Using Docker executor with image busybox:local ...", "Job succeeded"] {
            let times = job.lines().iter().filter(|other| *other == line).count();
            assert_eq!(times, 1, "{line} after {millis} ms: {}", job.log());
        }
        next.drain();
        assert_nothing_left(id, &next.log());
    }
}

#[test]
fn the_timeout_of_a_job_in_a_container_applies_while_no_agent_runs() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let nap = nap();
    let id = gitlab.queue(job(&["echo begun", &nap]).after_script(&[&nap]).timeout(30).build());
    let agent = home.start(&[]);
    gitlab.wait_until("the script", |_| is_running(&nap));
    agent.kill();
    assert!(is_running(&nap), "the engine runs the script");
    gitlab.wait_until("the end of the script", |_| !is_running(&nap));
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!(job.failure_reason.as_deref(), Some("job_execution_timeout"), "{}", job.log());
    next.drain();
    gitlab.assert_strict();
    assert_nothing_left(id, &next.log());
}

/// Without a log, the agent asks GitLab whether the job is still assigned to it.
#[test]
fn a_job_without_its_log_that_gitlab_has_ended_leaves_no_container() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let nap = nap();
    let id = gitlab.queue(job(&["echo begun", &nap]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    std::fs::remove_file(home.path("state/slot-0/trace")).expect("remove the log");
    gitlab.set_job_state(id, "failed");
    let mut next = home.start(&[]);
    next.wait_for_log("job dropped");
    next.drain();
    assert!(!is_running(&nap), "{}", next.log());
    assert_nothing_left(id, &next.log());
    gitlab.assert_strict();
}

#[test]
fn a_job_whose_shim_died_is_reported_and_its_container_removed() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let nap = nap();
    let id = gitlab.queue(job(&["echo begun", &nap]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    assert!(kill_shims(id) > 0);
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!(job.failure_reason.as_deref(), Some("runner_system_failure"));
    assert!(job.lines().contains(&"begun".to_owned()), "the log up to there");
    next.drain();
    assert!(!is_running(&nap));
    assert_nothing_left(id, &next.log());
}

#[test]
fn a_job_whose_journal_cannot_be_written_is_removed_and_the_agent_continues() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().docker("volumes = [\"/scratch\"]\ndisable_cache = true").home(&gitlab);
    let nap = nap();
    let lines = ["echo begun", &format!("{}; ({nap} &) ; echo never heard", until_there("go"))];
    let id = gitlab.queue(job(&lines).variable("FF_NETWORK_PER_BUILD", "true").after_script(&[&nap]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    // The journal cannot be written, so the job cannot be resumed.
    std::fs::remove_file(home.path("state/slot-0/job.json")).expect("remove the file");
    let container = docker().containers(&format!("com.gitlab.gitlab-runner.job.id={id}")).swap_remove(0);
    docker().run(&["exec", "--detach", &container, "touch", "/builds/team/demo/go"]);
    let done = gitlab.finished(id);
    assert_eq!(done.failure_reason.as_deref(), Some("runner_system_failure"), "{}", agent.log());
    let last = done.lines().last().cloned().unwrap_or_default();
    assert!(last.contains("cannot use its state directory"), "{}\n{}", done.log(), agent.log());
    let next = gitlab.queue(job(&["echo well"]).build());
    assert_eq!(gitlab.finished(next).state, "success");
    let label = format!("com.gitlab.gitlab-runner.job.id={id}");
    gitlab.wait_until("the removal of the job's container", |_| docker().containers(&label).is_empty());
    agent.drain();
    assert_nothing_left(id, &agent.log());
    assert!(!is_running(&nap));
}

#[test]
fn removes_orphaned_containers_and_no_foreign_ones() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let nap = nap();
    let id = gitlab.queue(job(&["echo begun", &nap]).variable("FF_NETWORK_PER_BUILD", "true").build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    let foreign = docker().run(&[
        "run",
        "-d",
        "--label",
        "com.gitlab.gitlab-runner.managed=true",
        "busybox:local",
        "sleep",
        "600",
    ]);
    agent.kill();
    kill_shims(id);
    std::fs::remove_dir_all(home.path("state/slot-0")).expect("remove the directory");
    let mut next = home.start(&[]);
    next.wait_for_log("mayfly is up");
    next.drain();
    assert_nothing_left(id, &next.log());
    assert!(!is_running(&nap));
    assert_eq!(docker().inspect(&foreign)["State"]["Running"], true);
    docker().run(&["rm", "-f", &foreign]);
}
