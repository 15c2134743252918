//! A manager without access to GitLab, to AWS, or to its state directory: no job is lost, and the manager keeps
//! running.

use std::fs;

use crate::fleet_from_zero::Cloud;
use crate::support::cloud::refusal;
use crate::support::fleet::wait_until;
use crate::support::gitlab::GitLab;
use crate::support::job::{job, until_there};
use crate::support::mayfly::read;
use crate::support::pool::Pool;
use crate::support::scenario::Scenario;

/// An outage of ten minutes looks the same as this one: the manager and the agent retry until GitLab responds.
#[test]
fn an_outage_of_gitlab_loses_neither_held_nor_running_jobs() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let (manager, home, agent) = fleet.start_with_agent("i-1");
    let go = home.path("go");
    let running = gitlab.queue(job(&["echo begun", &until_there(go.display()), "echo ended"]).build());
    gitlab.wait_for_log(running, "begun");
    let held = gitlab.queue(job(&["echo was held"]).build());
    gitlab.wait_until("the job must be taken", |gitlab| gitlab.job_state(held) == "running");
    let queued = gitlab.queue(job(&["echo was queued"]).build());
    gitlab.stop_responding();
    fs::write(&go, "").expect("write a file");
    // Both sides have noticed: the manager cannot poll or keep the held job alive, the agent cannot deliver a result.
    for route in ["POST jobs/request", "PUT job"] {
        gitlab.wait_until(route, |gitlab| gitlab.unanswered(route).len() >= 4);
    }
    let polls = gitlab.unanswered("POST jobs/request");
    // The delays are at least 0.5 s, 1 s, and 2 s.
    assert!((polls[3] - polls[0]).as_millis() >= 3000, "the manager must slow down: {polls:?}");
    assert_eq!(gitlab.job_state(running), "running");
    gitlab.resume_responding();
    for (id, text) in [(running, "ended"), (held, "was held"), (queued, "was queued")] {
        let done = gitlab.finished(id);
        assert!(done.state == "success" && done.has(text), "{}\n{}\n{}", done.log(), agent.log(), manager.log());
    }
    assert_eq!(manager.log().matches("job accepted").count(), 3, "{}", manager.log());
}

#[test]
fn a_manager_that_restarts_in_an_outage_of_gitlab_keeps_its_jobs() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo was held"]).build());
    gitlab.wait_for_log(id, "waiting for an instance");
    gitlab.stop_responding();
    manager.kill();
    let manager = fleet.start();
    manager.wait_for_log("state restored pool=pool agents=0 jobs=1 held=1");
    // The manager may have died before it recorded that GitLab has its line; then it sends that line again.
    let tries = |gitlab: &GitLab| ["PUT job", "PATCH trace"].iter().any(|route| !gitlab.unanswered(route).is_empty());
    gitlab.wait_until("the manager must try", tries);
    // The agent gets the job without GitLab, and reports when GitLab responds.
    fleet.set_members(&["i-1"]);
    let (_home, agent) = fleet.agent(&manager, "i-1");
    manager.wait_for_log(&format!("job accepted pool=pool job={id} instance=i-1"));
    gitlab.resume_responding();
    let done = gitlab.finished(id);
    assert!(done.state == "success" && done.has("was held"), "{}\n{}", done.log(), agent.log());
}

/// Throttled, failed and refused calls are repeated in the next rounds; the fleet grows from zero and shrinks to zero.
#[test]
fn throttled_and_refused_calls_of_aws_do_not_stop_the_loop() {
    let gitlab = GitLab::start();
    let cloud = Cloud::behind_front(&gitlab, Pool::short_lived().autoscaler("deletion_retry_interval = \"1s\""));
    let aws_proxy = cloud.aws_proxy.clone().expect("the proxy before the AWS API");
    let throttled = || refusal(400, "Throttling", "Rate exceeded");
    aws_proxy.answer("DescribeAutoScalingGroups", [throttled(), refusal(503, "ServiceUnavailable", "Try later")]);
    aws_proxy.answer("SetDesiredCapacity", [throttled(), throttled(), refusal(403, "AccessDenied", "not authorized")]);
    aws_proxy.answer(
        "TerminateInstanceInAutoScalingGroup",
        [throttled(), refusal(403, "AccessDenied", "not authorized"), refusal(500, "InternalFailure", "Oops")],
    );
    let manager = cloud.scaled.fleet.start();
    let id = gitlab.queue(job(&["echo from zero"]).build());
    manager.wait_for_log("desired capacity set from=0 to=1 pool=pool");
    let (desired, instances) = cloud.group();
    assert_eq!((desired, instances.len()), (1, 1), "{instances:?}");
    let home = Scenario::managed(&instances[0]).mayfly("leave = \"exit\"").home_at(&cloud.scaled.fleet.url());
    let mut agent = home.start(&[]);
    assert_eq!(gitlab.finished(id).state, "success", "{}\n{}", agent.log(), manager.log());
    assert!(agent.wait().success(), "{}", agent.log());
    manager.wait_for_log(&format!("instance terminated instance={} decrement=true", instances[0]));
    assert_eq!(cloud.group(), (0, vec![]));
    cloud.scaled.wait_until_empty(&manager);
    let log = manager.log();
    assert!(log.contains("AWS refused the call with AccessDenied") && log.contains("in the manager's policy"), "{log}");
    assert!(log.contains("engine call succeeded again pool=pool call=terminate"), "{log}");
}

#[test]
fn after_an_outage_of_aws_the_fleet_grows_again() {
    let gitlab = GitLab::start();
    let cloud = Cloud::behind_front(&gitlab, Pool::short_lived());
    let aws_proxy = cloud.aws_proxy.clone().expect("the proxy before the AWS API");
    let manager = cloud.scaled.fleet.start();
    wait_until("the group must be known", || cloud.scaled.status()["group"].is_object());
    aws_proxy.rule(|_| Some(refusal(503, "ServiceUnavailable", "an outage")));
    manager.wait_for_log("engine call failed; retrying in the next round pool=pool");
    let id = gitlab.queue(job(&["echo from zero"]).build());
    let refused = aws_proxy.calls("DescribeAutoScalingGroups").len();
    wait_until("the manager must try again", || aws_proxy.calls("DescribeAutoScalingGroups").len() >= refused + 3);
    aws_proxy.rule(|_| None);
    manager.wait_for_log("desired capacity set from=0 to=1 pool=pool");
    let (_, instances) = cloud.group();
    let home = Scenario::managed(&instances[0]).mayfly("leave = \"exit\"").home_at(&cloud.scaled.fleet.url());
    let agent = home.start(&[]);
    assert_eq!(gitlab.finished(id).state, "success", "{}\n{}", agent.log(), manager.log());
}

#[test]
fn a_lost_state_directory_fails_held_jobs_and_leaves_running_ones_alone() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let (manager, home, agent) = fleet.start_with_agent("i-1");
    let (go, count) = (home.path("go"), home.path("count"));
    let line = format!("echo x >> {}", count.display());
    let running = gitlab.queue(job(&[&line, "echo begun", &until_there(go.display())]).build());
    gitlab.wait_for_log(running, "begun");
    let held = gitlab.queue(job(&["echo never"]).build());
    gitlab.wait_for_log(held, "waiting for an instance");
    manager.kill();
    fs::remove_dir_all(fleet.home.path("manager")).expect("remove the directory");
    let manager = fleet.start();
    let failed = gitlab.finished(held);
    assert_eq!(failed.failure_reason.as_deref(), Some("runner_system_failure"), "{}", manager.log());
    manager.wait_for_log(&format!("job adopted from its agent pool=pool job={running} instance=i-1"));
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(running).state, "success", "{}", agent.log());
    assert_eq!(read(&count), "x\n");
    manager.wait_for_log(&format!("job ended pool=pool job={running}"));
    let next = gitlab.queue(job(&["echo next"]).build());
    assert_eq!(gitlab.finished(next).state, "success", "{}\n{}", agent.log(), manager.log());
}
