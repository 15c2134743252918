//! Lifecycle states that the group sets: a warm pool, scale-in, and instances from an image of another instance.

use super::Fleet;
use crate::support::cloud::Cloud;
use crate::support::cloud::autoscaling::Hook;
use crate::support::job::{job, until_there};
use crate::support::mayfly::{nap, read};

#[test]
fn an_instance_returned_to_the_warm_pool_works_again() {
    let fleet = Fleet::new("idle_timeout = \"1s\"");
    assert!(fleet.start().wait().success());
    assert_eq!(fleet.ends(), (1, 1));
    // The instance still exists; then it is stopped and started instead of terminated.
    fleet.assert_that_it_is_over();
    fleet.home.reboot();
    fleet.cloud.change(|group| group.state = "InService".to_owned());
    fleet.cloud.metadata.set("autoscaling/target-lifecycle-state", "InService");
    let id = fleet.queue(job(&["true"]));
    let mut agent = fleet.start();
    assert_eq!(fleet.gitlab.finished(id).state, "success", "{}", agent.log());
    assert!(agent.wait().success());
    assert_eq!(fleet.ends(), (2, 2), "{}", agent.log());
}

#[test]
fn instances_from_an_image_of_a_terminated_instance_work() {
    let mut fleet = Fleet::new("max_builds = 1");
    fleet.queue(job(&["true"]));
    assert!(fleet.start().wait().success());
    let first = read(&fleet.home.path(".runner_system_id"));
    fleet.cloud = Cloud::start();
    fleet.home.set_environment(fleet.cloud.environment());
    let id = fleet.queue(job(&["true"]));
    let mut agent = fleet.start();
    assert!(agent.wait().success());
    assert_eq!((fleet.gitlab.job_state(id).as_str(), fleet.ends()), ("success", (1, 0)), "{}", agent.log());
    assert_ne!(read(&fleet.home.path(".runner_system_id")), first);
}

#[test]
fn an_instance_in_a_warm_pool_sends_no_requests_and_has_no_idle_time() {
    let fleet = Fleet::new("idle_timeout = \"2s\"");
    fleet.cloud.metadata.set("autoscaling/target-lifecycle-state", "Warmed:Running");
    let mut agent = fleet.start();
    agent.wait_for_log("the instance is in standby or in the warm pool");
    fleet.wait_for_metadata_polls(2);
    assert_eq!(fleet.polls() + fleet.gitlab.count("POST runners/verify"), 0);
    assert!(!agent.log().contains("polling stopped"), "{}", agent.log());
    let id = fleet.queue(job(&["true"]));
    fleet.cloud.metadata.set("autoscaling/target-lifecycle-state", "InService");
    assert_eq!(fleet.gitlab.finished(id).state, "success");
    assert!(agent.wait().success());
    assert_eq!(fleet.ends(), (1, 1));
}

#[test]
fn an_instance_terminated_in_a_warm_pool_never_registers() {
    let fleet = Fleet::new("idle_timeout = \"2s\"");
    fleet.cloud.metadata.set("autoscaling/target-lifecycle-state", "Warmed:Stopped");
    fleet.cloud.change(|group| group.hooks = vec![Hook::new("drain", 300)]);
    let mut agent = fleet.start();
    agent.wait_for_log("the instance is in standby or in the warm pool");
    fleet.cloud.change(|group| group.end());
    fleet.cloud.metadata.set("autoscaling/target-lifecycle-state", "Warmed:Terminated");
    assert!(agent.wait().success());
    assert_eq!((fleet.ends(), fleet.completed()), ((0, 0), vec!["drain".to_owned()]));
    assert_eq!(fleet.polls() + fleet.gitlab.count("DELETE runners/managers"), 0);
}

#[test]
fn scale_in_waits_for_the_job() {
    let fleet = Fleet::new("idle_timeout = \"1h\"");
    // The agent extends the hook after half of its timeout. With four heartbeats the job outlasts the timeout.
    fleet.cloud.change(|group| group.hooks = vec![Hook::new("drain", 6)]);
    let go = fleet.home.path("go");
    let id = fleet.queue(job(&["echo begun", &until_there(go.display())]));
    let mut agent = fleet.start();
    fleet.gitlab.wait_for_log(id, "begun");
    fleet.cloud.scale_in();
    let waiting = fleet.queue(job(&["true"]));
    let heartbeats = || fleet.cloud.calls("RecordLifecycleActionHeartbeat").len();
    agent.wait_until("heartbeats", || heartbeats() >= 4);
    std::fs::write(&go, "").expect("write a file");
    assert!(agent.wait().success());
    assert_eq!(fleet.gitlab.job_state(id), "success", "{}", agent.log());
    assert_eq!(fleet.gitlab.job_state(waiting), "pending");
    assert_eq!((fleet.ends(), fleet.completed()), ((0, 0), vec!["drain".to_owned()]), "{}", agent.log());
    assert!(fleet.cloud.read(|group| group.expired.is_empty()));
    assert!(fleet.gitlab.managers().is_empty());
    fleet.assert_that_it_is_over();
}

#[test]
fn a_stopped_agent_does_not_delay_scale_in() {
    let fleet = Fleet::new("idle_timeout = \"1h\"");
    fleet.cloud.change(|group| group.hooks = vec![Hook::new("drain", 300)]);
    let id = fleet.queue(job(&["echo begun", &nap()]));
    let mut agent = fleet.start();
    fleet.gitlab.wait_for_log(id, "begun");
    fleet.cloud.scale_in();
    agent.wait_for_log("polling stopped reason=terminated");
    agent.signal("TERM");
    assert!(agent.wait().success());
    assert_eq!(fleet.gitlab.job(id).failure_reason.as_deref(), Some("runner_interrupted"));
    assert_eq!((fleet.ends(), fleet.completed()), ((0, 0), vec!["drain".to_owned()]), "{}", agent.log());
}
