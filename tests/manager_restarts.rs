//! A manager that restarts, hands over to a new program, drains, or shares the load with another one; and agents that
//! are lost or refused.

use std::fs;

use crate::support::fleet::{Fleet, wait_until};
use crate::support::gitlab::GitLab;
use crate::support::job::{job, until_there};
use crate::support::mayfly::kill_shims;
use crate::support::pool::Pool;
use crate::support::scenario::Scenario;

#[test]
fn a_running_job_does_not_notice_that_the_manager_is_replaced() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let (manager, home, _agent) = fleet.start_with_agent("i-1");
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display()), "echo ended"]).build());
    gitlab.wait_for_log(id, "begun");
    manager.kill();
    let manager = fleet.start();
    manager.wait_for_log("state restored pool=pool agents=1 jobs=1 held=0");
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success");
    manager.wait_for_log(&format!("job ended pool=pool job={id}"));
    let next = gitlab.queue(job(&["echo next"]).build());
    assert_eq!(gitlab.finished(next).state, "success", "the idle agent reconnects");
}

#[test]
fn the_manager_keeps_running_if_a_new_program_could_not_start() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo was held"]).build());
    gitlab.wait_for_log(id, "waiting for an instance");
    let refused = |count: usize, why: &str| {
        manager.signal("USR2");
        wait_until("the hand-over must be refused", || manager.log().matches("hand-over refused").count() == count);
        assert!(manager.log().contains(why), "{}", manager.log());
    };
    fs::write(fleet.home.config(), "nonsense [").expect("write a file");
    refused(1, "line 1");
    Pool::hold().state_dir("elsewhere").write(&fleet, &gitlab.url);
    refused(2, "but the held jobs are in");
    Pool::hold().write(&fleet, &gitlab.url);
    fleet.set_members(&["i-1"]);
    let (_home, agent) = fleet.agent(&manager, "i-1");
    let done = gitlab.finished(id);
    assert_eq!(done.state, "success", "{}\n{}", agent.log(), manager.log());
    assert_eq!(manager.log().matches("mayfly manager is up").count(), 1, "{}", manager.log());
}

#[test]
fn the_manager_hands_over_to_a_new_program_without_losing_anything() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let (manager, home, _agent) = fleet.start_with_agent("i-1");
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    gitlab.wait_for_log(id, "begun");
    manager.signal("USR2");
    wait_until("a new program must start", || manager.log().matches("mayfly manager is up").count() == 2);
    assert!(manager.log().contains("state restored pool=pool agents=1 jobs=1"), "{}", manager.log());
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success");
    let next = gitlab.queue(job(&["echo next"]).build());
    assert_eq!(gitlab.finished(next).state, "success", "{}", manager.log());
}

#[test]
fn a_manager_that_lost_its_state_takes_up_the_jobs_that_agents_run() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let (manager, home, _agent) = fleet.start_with_agent("i-1");
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    gitlab.wait_for_log(id, "begun");
    manager.kill();
    fs::remove_dir_all(fleet.home.path("manager")).expect("remove the directory");
    let manager = fleet.start();
    manager.wait_for_log(&format!("job adopted from its agent pool=pool job={id} instance=i-1"));
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success");
    manager.wait_for_log(&format!("job ended pool=pool job={id}"));
}

#[test]
fn instances_that_appear_or_vanish_while_no_manager_runs_are_detected() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let (manager, home, agent) = fleet.start_with_agent("i-1");
    let lost = gitlab.queue(job(&["echo begun", &until_there(home.path("never").display())]).build());
    gitlab.wait_for_log(lost, "begun");
    manager.kill();
    kill_shims(lost);
    agent.kill();
    fleet.set_members(&["i-2"]);
    let home = Scenario::managed("i-2").home_at(&fleet.url());
    let agent = home.start(&[]);
    agent.wait_for_log("poll failed");
    let manager = fleet.start();
    manager.wait_for_log("agent registered pool=pool instance=i-2");
    let failed = gitlab.finished(lost);
    assert_eq!(failed.failure_reason.as_deref(), Some("runner_system_failure"), "{}", manager.log());
    assert!(failed.has("instance i-1 was terminated"), "{}", failed.log());
    let next = gitlab.queue(job(&["echo next"]).build());
    assert_eq!(gitlab.finished(next).state, "success", "{}\n{}", agent.log(), manager.log());
    assert!(!fleet.engine_calls().contains("terminate"), "{}", fleet.engine_calls());
}

#[test]
fn two_managers_with_one_runner_token_share_the_load() {
    let gitlab = GitLab::start();
    let fleets = [Pool::relay().fleet(&gitlab), Pool::relay().fleet(&gitlab)];
    fleets.iter().for_each(|fleet| fleet.set_members(&["i-1"]));
    let managers = fleets.each_ref().map(Fleet::start);
    let agents = [0, 1].map(|at| fleets[at].agent(&managers[at], "i-1"));
    let go = fleets[0].home.path("go");
    let script = ["echo begun", &until_there(go.display())];
    let ids = [gitlab.queue(job(&script).build()), gitlab.queue(job(&script).build())];
    ids.iter().for_each(|id| gitlab.wait_for_log(*id, "begun"));
    for manager in &managers {
        assert_eq!(manager.log().matches("job accepted").count(), 1, "{}", manager.log());
    }
    let mut systems = gitlab.managers();
    systems.dedup();
    assert!(systems.len() > 1, "GitLab must tell the managers on this machine apart: {systems:?}");
    // One manager is lost; the other one continues.
    let [first, second] = managers;
    first.kill();
    fs::write(&go, "").expect("write a file");
    ids.iter().for_each(|id| assert_eq!(gitlab.finished(*id).state, "success"));
    let next = gitlab.queue(job(&["echo next"]).build());
    assert_eq!(gitlab.finished(next).state, "success", "{}\n{}", agents[1].1.log(), second.log());
}

#[test]
fn a_drain_without_a_limit_waits_until_an_instance_takes_the_held_job() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let mut manager = fleet.start();
    let held = gitlab.queue(job(&["echo was held"]).build());
    gitlab.wait_for_log(held, "waiting for an instance");
    manager.signal("QUIT");
    manager.wait_for_log("draining");
    let later = gitlab.queue(job(&["echo later"]).build());
    fleet.set_members(&["i-1"]);
    let (_home, agent) = fleet.agent(&manager, "i-1");
    assert_eq!(gitlab.finished(held).state, "success", "{}\n{}", agent.log(), manager.log());
    assert!(manager.wait().success(), "{}", manager.log());
    assert_eq!(gitlab.job_state(later), "pending", "a manager that drains takes no more jobs");
}

#[test]
fn agents_of_another_fleet_and_instances_of_no_group_are_refused_with_the_reason() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let home = Scenario::managed("i-1").token("token-of-another-fleet").home_at(&fleet.url());
    let stranger = home.start(&[]);
    stranger.wait_for_log(
        "the token is not the fleet token of this manager; write `agent_token` of the manager as `token`",
    );
    let home = Scenario::managed("i-9").home_at(&fleet.url());
    let lost = home.start(&[]);
    lost.wait_for_log("instance i-9 is not a running member of a pool's group (yet)");
    let (_home, agent) = fleet.agent(&manager, "i-1");
    let id = gitlab.queue(job(&["echo fine"]).build());
    assert_eq!(gitlab.finished(id).state, "success", "{}\n{}", agent.log(), manager.log());
    assert!(!manager.log().contains("token-of-another-fleet"), "{}", manager.log());
}

/// GitLab fails the job of an agent that is dead on a living instance; the manager then counts the instance as idle.
#[test]
fn a_job_of_a_silent_agent_ends_when_gitlab_has_failed_it() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let (manager, home, agent) = fleet.start_with_agent("i-1");
    let id = gitlab.queue(job(&["echo begun", &until_there(home.path("never").display())]).build());
    gitlab.wait_for_log(id, "begun");
    kill_shims(id);
    agent.kill();
    gitlab.set_job_state(id, "failed");
    manager.wait_for_log(&format!("GitLab has ended the job of an agent that sends no requests pool=pool job={id}"));
    let agent = home.start(&[]);
    let next = gitlab.queue(job(&["echo next"]).build());
    assert_eq!(gitlab.finished(next).state, "success", "{}\n{}", agent.log(), manager.log());
}
