//! An agent that protects its busy instance from scale-in, and raises the desired capacity of its group.

use std::fs;

use super::{Fleet, lines_with};
use crate::support::job::{job, until_there};

#[test]
fn an_instance_has_scale_in_protection_while_it_runs_a_job() {
    let fleet = Fleet::new("idle_timeout = \"1h\"");
    let go = fleet.home.path("go");
    let id = fleet.queue(job(&["echo begun", &until_there(go.display())]));
    let mut agent = fleet.start();
    fleet.cloud.wait_until("protection", |group| group.is_protected);
    fs::write(&go, "").expect("write a file");
    let done = fleet.gitlab.finished(id);
    assert_eq!(done.state, "success");
    fleet.cloud.wait_until("the end of protection", |group| !group.is_protected);
    let calls = fleet.cloud.calls("SetInstanceProtection");
    assert!(
        calls.len() == 2 && calls[1].at >= done.ended.expect("the job must have ended"),
        "while it was reported: {calls:#?}"
    );
    agent.drain();
    assert_eq!(fleet.ends(), (0, 0), "the agent was only stopped");
}

#[test]
fn a_missing_permission_for_protection_is_logged_once_and_jobs_run() {
    let fleet = Fleet::new("max_builds = 2");
    fleet.cloud.refuse("SetInstanceProtection", 403, "AccessDenied");
    let ids = [fleet.queue(job(&["true"])), fleet.queue(job(&["true"]))];
    let mut agent = fleet.start();
    assert!(agent.wait().success());
    assert!(ids.iter().all(|id| fleet.gitlab.job_state(*id) == "success"));
    assert_eq!(lines_with(&agent.log(), &["autoscaling:SetInstanceProtection", "AccessDenied"]), 1, "{}", agent.log());
    assert_eq!(fleet.ends(), (1, 0));
}

/// Another instance in service, with or without a job.
fn sibling(id: &str, has_job: bool) -> (String, String, bool) {
    (id.to_owned(), "InService".to_owned(), has_job)
}

#[test]
fn queued_jobs_raise_the_desired_capacity() {
    let fleet = Fleet::new("aws = { raise_on_job = { idle_count = 2 } }");
    fleet.cloud.change(|group| group.siblings = vec![sibling("i-1", true), sibling("i-2", false)]);
    let mut agent = fleet.start();
    fleet.gitlab.wait_until("a request", |server| server.count("POST jobs/request") > 0);
    assert!(fleet.cloud.calls("DescribeAutoScalingGroups").is_empty(), "there is no job");
    let id = fleet.queue(job(&["true"]));
    fleet.cloud.wait_until("four: two with a job, two without", |group| group.desired == 4);
    assert_eq!(fleet.gitlab.finished(id).state, "success");

    // The job had to wait, and the group is one below its maximum size.
    fleet.cloud.change(|group| group.siblings.extend((3..7).map(|number| sibling(&format!("i-{number}"), true))));
    let mut waited = job(&["true"]).build();
    waited["job_info"]["time_in_queue_seconds"] = serde_json::json!(75.5);
    let id = fleet.gitlab.queue(waited);
    fleet.cloud.wait_until("as many as there may be", |group| group.desired == 10);
    assert_eq!(fleet.gitlab.finished(id).state, "success");
    agent.drain();
    assert_eq!(lines_with(&agent.log(), &["desired capacity of the group raised"]), 2, "{}", agent.log());
    fleet.gitlab.assert_strict();
}

#[test]
fn a_group_that_cannot_grow_is_logged_once_and_jobs_run() {
    for (refused, warning) in [
        (true, ["autoscaling:SetDesiredCapacity", "AccessDenied"]),
        (false, ["protects new", "disable that protection"]),
    ] {
        let fleet = Fleet::new("max_builds = 3\naws = { raise_on_job = { idle_count = 5 } }");
        match refused {
            true => fleet.cloud.refuse("SetDesiredCapacity", 403, "AccessDenied"),
            false => fleet.cloud.change(|group| group.protects_new = true),
        }
        let ids = [(); 3].map(|()| fleet.queue(job(&["sleep 1"])));
        let mut agent = fleet.start();
        assert!(agent.wait().success());
        assert!(ids.iter().all(|id| fleet.gitlab.job_state(*id) == "success"), "{}", agent.log());
        assert_eq!(
            lines_with(&agent.log(), &[&["cannot raise the desired capacity"], &warning[..]].concat()),
            1,
            "{}",
            agent.log()
        );
        assert_eq!((fleet.cloud.read(|group| group.desired), fleet.ends()), (3, (1, 0)));
    }
}

#[test]
fn the_desired_capacity_is_raised_only_if_configured() {
    let fleet = Fleet::new("max_builds = 1");
    fleet.queue(job(&["true"]));
    assert!(fleet.start().wait().success());
    for action in ["DescribeAutoScalingGroups", "SetDesiredCapacity"] {
        assert!(fleet.cloud.calls(action).is_empty(), "{action}");
    }
}
