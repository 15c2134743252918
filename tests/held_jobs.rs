//! Jobs that a manager holds until an instance takes them: at a GitLab without and with `two_phase_job_commit`, which
//! leaves a job pending until its agent acknowledges it.

use std::fs;
use std::time::Duration;

use crate::support::fleet::wait_until;
use crate::support::gitlab::{Answer, Fault, GitLab};
use crate::support::job::job;
use crate::support::pool::Pool;
use crate::support::scenario::Scenario;

#[test]
fn a_job_is_held_until_an_instance_takes_it() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo started"]).build());
    gitlab.wait_for_log(id, "waiting for an instance of pool pool");
    fleet.wait_until("the group must grow", || fleet.engine_calls().contains("\"set_target\""));
    manager.kill();
    let manager = fleet.start();
    manager.wait_for_log("held=1");
    fleet.set_members(&["i-1"]);
    let (_home, agent) = fleet.agent(&manager, "i-1");
    let done = gitlab.finished(id);
    assert_eq!(done.state, "success", "{}\n{}", agent.log(), manager.log());
    assert!(done.has("waiting for an instance") && done.has("started"), "{}", done.log());
    assert!(done.has("Running with mayfly"), "{}", done.log());
}

#[test]
fn a_held_job_that_no_instance_takes_fails_with_a_reason_for_retry() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().autoscaler("instance_acquire_timeout = \"2s\"").fleet(&gitlab);
    let _manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    let done = gitlab.finished(id);
    assert_eq!((done.state.as_str(), done.failure_reason.as_deref()), ("failed", Some("runner_system_failure")));
    assert!(done.has("no instance of pool pool took the job within 2 s"), "{}", done.log());
}

#[test]
fn a_held_job_that_is_cancelled_is_dropped() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    gitlab.wait_for_log(id, "waiting for an instance");
    gitlab.cancel(id);
    manager.wait_for_log(&format!("job={id}"));
    wait_until("the job must be dropped", || {
        let log = manager.log();
        log.contains(&format!("held job dropped: GitLab no longer expects it pool=pool job={id}"))
            || log.contains(&format!("job failed by the manager pool=pool job={id}"))
    });
}

#[test]
fn a_job_that_cannot_be_decoded_is_failed_by_the_manager() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let broken =
        gitlab.queue_text(|id| format!("{{\"id\":{id},\"token\":\"glcbt-job-{id}\",\"variables\":[{{\"key\":"));
    let done = gitlab.finished(broken);
    assert_eq!(done.state, "failed", "{}", manager.log());
    assert!(done.has("cannot be read"), "{}", done.log());
}

#[test]
fn a_drain_takes_no_more_jobs_and_fails_those_that_no_instance_took() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let mut manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    gitlab.wait_for_log(id, "waiting for an instance");
    manager.signal("TERM");
    assert!(manager.wait().success(), "{}", manager.log());
    let done = gitlab.job(id);
    assert_eq!(done.failure_reason.as_deref(), Some("runner_system_failure"), "{}", manager.log());
    assert!(done.has("the manager was stopped"), "{}", done.log());
}

#[test]
fn an_agent_that_cannot_use_the_settings_continues_the_log_of_a_held_job() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().runner("executor = \"docker-autoscaler\"").fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    gitlab.wait_for_log(id, "waiting for an instance");
    fleet.set_members(&["i-1"]);
    let home = Scenario::managed("i-1")
        .runner("[runners.docker]\nimage = \"busybox\"\nhost = \"nonsense://\"\n")
        .home_at(&fleet.url());
    let agent = home.start(&[]);
    let done = gitlab.finished(id);
    assert_eq!(done.failure_reason.as_deref(), Some("runner_system_failure"), "{}\n{}", agent.log(), manager.log());
    for part in ["waiting for an instance", "the pool's settings cannot be used on this instance"] {
        assert!(done.has(part), "{part}\n{}\n{}", done.log(), agent.log());
    }
    manager.wait_for_log(&format!("job ended pool=pool job={id}"));
}

#[test]
fn held_jobs_fail_when_the_state_directory_is_lost() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    gitlab.wait_for_log(id, "waiting for an instance");
    manager.kill();
    fs::remove_dir_all(fleet.home.path("manager")).expect("remove the directory");
    let manager = fleet.start();
    let done = gitlab.finished(id);
    assert_eq!(done.failure_reason.as_deref(), Some("runner_system_failure"), "{}", manager.log());
    assert!(done.has("the manager lost its state"), "{}", done.log());
}

fn two_phase() -> GitLab {
    let gitlab = GitLab::start();
    gitlab.enable_two_phase();
    gitlab
}

/// Waits until the manager has sent GitLab an update of a held job.
fn wait_until_kept(gitlab: &GitLab, id: i64) {
    gitlab.wait_until("the job must be kept", |gitlab| !gitlab.job(id).updates.is_empty());
}

#[test]
fn a_held_job_stays_pending_and_runs_when_an_instance_takes_it() {
    let gitlab = two_phase();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo started"]).build());
    wait_until_kept(&gitlab, id);
    let held = gitlab.job(id);
    assert_eq!((held.state.as_str(), held.updates[0].as_str(), held.log().as_str()), ("pending", "pending", ""));
    fleet.set_members(&["i-1"]);
    let (_home, agent) = fleet.agent(&manager, "i-1");
    let done = gitlab.finished(id);
    assert_eq!(done.state, "success", "{}\n{}\n{}", done.log(), agent.log(), manager.log());
    assert!(done.has("started") && !done.has("waiting for an instance"), "{}", done.log());
    let acknowledged = done.updates.iter().position(|state| state == "running").expect("an acknowledgement");
    assert!(done.updates[..acknowledged].iter().all(|state| state == "pending"), "{:?}", done.updates);
    assert!(!done.updates[acknowledged..].contains(&"pending".to_owned()), "{:?}", done.updates);
}

#[test]
fn a_relayed_job_is_acknowledged_by_its_agent() {
    let gitlab = two_phase();
    let fleet = Pool::relay().fleet(&gitlab);
    let (_manager, _home, agent) = fleet.start_with_agent("i-1");
    let id = gitlab.queue(job(&["echo relayed"]).build());
    let done = gitlab.finished(id);
    assert_eq!((done.state.as_str(), done.updates[0].as_str()), ("success", "running"), "{}", agent.log());
}

#[test]
fn a_pending_job_whose_hold_expires_fails() {
    let gitlab = two_phase();
    let fleet = Pool::hold().autoscaler("instance_acquire_timeout = \"5s\"").fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    wait_until_kept(&gitlab, id);
    assert_eq!(gitlab.job_state(id), "pending");
    let done = gitlab.finished(id);
    assert_eq!(done.failure_reason.as_deref(), Some("runner_system_failure"), "{}", manager.log());
    assert!(done.has("no instance of pool pool took the job within 5 s"), "{}", done.log());
}

/// The state does not record whether the server supports `two_phase_job_commit`, so a job that may be pending is
/// acknowledged before it fails.
#[test]
fn a_pending_job_fails_after_a_restart() {
    let gitlab = two_phase();
    let fleet = Pool::hold().autoscaler("instance_acquire_timeout = \"2s\"").fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    wait_until_kept(&gitlab, id);
    gitlab.stop_responding();
    manager.wait_for_log("no instance of pool pool took the job");
    manager.kill();
    gitlab.resume_responding();
    let manager = fleet.start();
    let done = gitlab.finished(id);
    assert_eq!(done.failure_reason.as_deref(), Some("runner_system_failure"), "{}", manager.log());
}

#[test]
fn a_pending_job_fails_when_the_state_directory_is_lost() {
    let gitlab = two_phase();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    wait_until_kept(&gitlab, id);
    manager.kill();
    fs::remove_dir_all(fleet.home.path("manager")).expect("remove the directory");
    let manager = fleet.start();
    let done = gitlab.finished(id);
    assert_eq!(done.failure_reason.as_deref(), Some("runner_system_failure"), "{}", manager.log());
}

#[test]
fn a_pending_job_that_is_canceled_is_dropped() {
    let gitlab = two_phase();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    wait_until_kept(&gitlab, id);
    gitlab.set_job_state(id, "canceled");
    let dropped = format!("held job dropped: GitLab no longer expects it pool=pool job={id}");
    wait_until("the job must be dropped", || manager.log().contains(&dropped));
}

#[test]
fn an_undecodable_job_fails_though_it_is_pending() {
    let gitlab = two_phase();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue_text(|id| format!("{{\"id\":{id},\"token\":\"glcbt-job-{id}\",\"variables\":[{{\"key\":"));
    let done = gitlab.finished(id);
    assert!(done.state == "failed" && done.has("cannot be read"), "{}\n{}", done.log(), manager.log());
}

/// A load balancer swallows the first request: it is abandoned soon, and delays no other job.
#[test]
fn a_request_that_hangs_does_not_let_held_jobs_die() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    gitlab.fail("PUT job", [Fault::Slow(Duration::from_secs(1000))]);
    let ids = [(); 3].map(|()| gitlab.queue(job(&["echo started"]).build()));
    ids.iter().for_each(|id| gitlab.wait_for_log(*id, "waiting for an instance of pool pool"));
    fleet.set_members(&["i-1"]);
    let (_home, _agent) = fleet.agent(&manager, "i-1");
    for id in ids {
        let done = gitlab.finished(id);
        assert_eq!(done.state, "success", "{}\n{}", done.log(), manager.log());
    }
}

/// GitLab gets the feature while the manager is down. The job runs already, so a question whether it is pending would
/// say that another runner has it.
#[test]
fn a_held_job_with_a_log_stays_held_when_the_server_gets_the_feature() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo was held"]).build());
    gitlab.wait_for_log(id, "waiting for an instance of pool pool");
    manager.kill();
    gitlab.enable_two_phase();
    let before = gitlab.job(id).updates.len();
    let manager = fleet.start();
    gitlab.wait_until("the manager must keep the job alive", |gitlab| gitlab.job(id).updates.len() > before);
    fleet.set_members(&["i-1"]);
    let (_home, _agent) = fleet.agent(&manager, "i-1");
    let done = gitlab.finished(id);
    assert_eq!(done.state, "success", "{}\n{}", done.log(), manager.log());
}

/// GitLab says that the job runs already, which means that another runner has acknowledged it.
#[test]
fn a_pending_job_that_another_runner_has_is_dropped() {
    let gitlab = two_phase();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    gitlab.fail("PUT job", [Fault::Answer(Answer::new(409))]);
    let id = gitlab.queue(job(&["echo never"]).build());
    manager.wait_for_log(&format!("held job dropped: GitLab no longer expects it pool=pool job={id}"));
    fleet.set_members(&["i-1"]);
    let (_home, _agent) = fleet.agent(&manager, "i-1");
    let next = gitlab.queue(job(&["echo next"]).build());
    assert_eq!(gitlab.finished(next).state, "success", "{}", manager.log());
    assert_eq!(gitlab.job_state(id), "pending");
}

/// A server without the feature answers 400 to the first attempt; the manager does not repeat it.
#[test]
fn a_server_without_the_feature_is_asked_once() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo started"]).build());
    gitlab.wait_for_log(id, "waiting for an instance of pool pool");
    fleet.set_members(&["i-1"]);
    let (_home, _agent) = fleet.agent(&manager, "i-1");
    let done = gitlab.finished(id);
    assert_eq!(done.updates.iter().filter(|state| *state == "pending").count(), 1, "{:?}", done.updates);
    assert_eq!((done.state.as_str(), done.updates[0].as_str()), ("success", "pending"));
}
