//! The manager or an agent is killed at each step of a hand-over, by the system call of the step. A checker asserts
//! that no script runs twice, and that no job hangs or is lost.
//!
//! | Step | Who | System call |
//! |---|---|---|
//! | GitLab's 201 received | manager | `recv` |
//! | job stored, then synced | manager | `write`, `fdatasync` of the state |
//! | job offered | manager, agent | `send`, `recv` |
//! | offer in the agent's journal | agent | `rename` of the record |
//! | acceptance sent | agent, manager | `send`, `recv` |
//! | acceptance stored, then synced | manager | `write`, `fdatasync` of the state |
//! | acceptance answered | manager, agent | `send`, `recv` |
//! | acceptance in the agent's journal | agent | `write` of the record |
//! | first part of the log | agent | `send` |
//! | final state | agent | `send` |
//! | end reported | agent, manager | `send`, `recv`, `write` of the state, `send` |

use std::path::PathBuf;

use crate::support::crash_point;
use crate::support::fleet::{Fleet, Manager, wait_until};
use crate::support::gitlab::{GitLab, Job};
use crate::support::job::job;
use crate::support::mayfly::{Agent, Home, read};
use crate::support::pool::Pool;
use crate::support::scenario::Scenario;

/// A fleet with one job.
struct HandOver {
    gitlab: GitLab,
    fleet: Fleet,
    /// The job's script adds a line to this file.
    count: PathBuf,
}

impl HandOver {
    fn new(pool: &Pool) -> Self {
        let gitlab = GitLab::start();
        let fleet = pool.fleet(&gitlab);
        let count = fleet.home.path("count");
        Self { gitlab, fleet, count }
    }

    fn queue(&self) -> i64 {
        self.gitlab.queue(job(&[&format!("echo x >> {}", self.count.display())]).build())
    }

    fn runs(&self) -> usize {
        read(&self.count).lines().count()
    }

    /// Asserts that the job succeeded, that its script ran once, that the manager no longer has it, and that the next
    /// job succeeds.
    fn assert_done(&self, id: i64, manager: &Manager) -> Job {
        let done = self.gitlab.finished(id);
        assert_eq!((done.state.as_str(), self.runs()), ("success", 1), "{}\n{}", done.log(), manager.log());
        self.assert_forgotten(id);
        self.assert_next(manager);
        done
    }

    /// Asserts that neither the manager nor the agent still has a job.
    fn assert_forgotten(&self, id: i64) {
        let gone = format!("\"event\":\"job_gone\",\"pool\":\"pool\",\"id\":\"{id}\"");
        wait_until("the manager must forget the job", || {
            let state = read(&self.fleet.home.path("manager/state"));
            state.contains(&gone) || !state.contains(&format!("\"id\":\"{id}\""))
        });
    }

    /// Asserts that another job succeeds.
    fn assert_next(&self, manager: &Manager) {
        let next = self.gitlab.queue(job(&["echo next"]).build());
        let done = self.gitlab.finished(next);
        assert_eq!(done.state, "success", "{}\n{}", done.log(), manager.log());
    }
}

/// The manager dies at a step and is started again, while an agent runs.
fn manager_dies(conditions: &str) {
    let (hand_over, id, manager, _agent) = after_death_of_the_manager(conditions);
    hand_over.assert_done(id, &manager);
}

fn after_death_of_the_manager(conditions: &str) -> (HandOver, i64, Manager, (Home, Agent)) {
    let hand_over = HandOver::new(&Pool::relay());
    hand_over.fleet.set_members(&["i-1"]);
    let mut manager = hand_over.fleet.start_with(&crash_point::at(conditions));
    let agent = hand_over.fleet.agent(&manager, "i-1");
    let id = hand_over.queue();
    crash_point::assert_killed(manager.wait(), &manager.log());
    let manager = hand_over.fleet.start();
    (hand_over, id, manager, agent)
}

/// The agent dies at a step and is started again, while the manager runs.
fn agent_dies(conditions: &str) {
    let (hand_over, id, manager, home) = after_death_of_the_agent(conditions);
    let agent = home.start(&[]);
    hand_over.assert_done(id, &manager);
    assert_eq!(manager.log().matches("agent registered").count(), 1, "{}\n{}", manager.log(), agent.log());
}

fn after_death_of_the_agent(conditions: &str) -> (HandOver, i64, Manager, Home) {
    let hand_over = HandOver::new(&Pool::relay());
    hand_over.fleet.set_members(&["i-1"]);
    let manager = hand_over.fleet.start();
    let home = Scenario::managed("i-1").home_at(&hand_over.fleet.url());
    let [preload, at] = crash_point::at(conditions);
    let mut agent = home.start_with(&[], &[(preload.0, &preload.1), (at.0, &at.1)]);
    manager.wait_for_log("agent registered pool=pool instance=i-1");
    let id = hand_over.queue();
    crash_point::assert_killed(agent.wait(), &agent.log());
    (hand_over, id, manager, home)
}

/// The instance dies with its agent at a step, and another instance replaces it.
fn instance_dies(conditions: &str) -> (HandOver, i64, Manager, (Home, Agent)) {
    let (hand_over, id, manager, _home) = after_death_of_the_agent(conditions);
    hand_over.fleet.set_members(&["i-2"]);
    let agent = hand_over.fleet.agent(&manager, "i-2");
    (hand_over, id, manager, agent)
}

/// The only step at which a job is lost: only GitLab knows the job, and GitLab fails it after its timeout.
#[test]
fn manager_dies_before_the_job_is_stored() {
    for conditions in ["after recv socket HTTP/1.1 201", "before write /manager/state \"event\":\"job\""] {
        let (hand_over, id, manager, _agent) = after_death_of_the_manager(conditions);
        hand_over.assert_next(&manager);
        assert_eq!((hand_over.gitlab.job_state(id).as_str(), hand_over.runs()), ("running", 0), "{}", manager.log());
    }
}

#[test]
fn manager_dies_when_the_job_is_stored() {
    manager_dies("after write /manager/state \"event\":\"job\"");
}

#[test]
fn manager_dies_when_the_job_is_synced() {
    manager_dies("after write /manager/state \"event\":\"job\"\nafter fdatasync /manager/state");
}

#[test]
fn manager_dies_before_the_offer_is_sent() {
    manager_dies("before send socket \"mayfly\":{\"offer\"");
}

#[test]
fn manager_dies_when_the_offer_is_sent() {
    manager_dies("after send socket \"mayfly\":{\"offer\"");
}

#[test]
fn manager_dies_when_the_acceptance_has_come() {
    manager_dies("after recv socket \",\"state\":\"running\"}");
}

#[test]
fn manager_dies_when_the_acceptance_is_stored() {
    manager_dies("after write /manager/state \"event\":\"accepted\"");
}

#[test]
fn manager_dies_when_the_acceptance_is_synced() {
    manager_dies("after write /manager/state \"event\":\"accepted\"\nafter fdatasync /manager/state");
}

#[test]
fn manager_dies_before_the_acceptance_is_answered() {
    manager_dies("before send socket {\"message\":\"accepted\"}");
}

#[test]
fn manager_dies_when_the_acceptance_is_answered() {
    manager_dies("after send socket {\"message\":\"accepted\"}");
}

#[test]
fn manager_dies_when_the_end_is_reported() {
    manager_dies("after recv socket \"ended\":[\"");
}

#[test]
fn manager_dies_when_the_end_is_stored() {
    manager_dies("after write /manager/state \"event\":\"job_gone\"");
}

#[test]
fn manager_dies_before_the_report_of_the_end_is_answered() {
    manager_dies("after write /manager/state \"event\":\"job_gone\"\nbefore send socket HTTP/1.1 200");
}

#[test]
fn agent_dies_when_the_offer_has_come() {
    agent_dies("after recv socket HTTP/1.1 201");
}

#[test]
fn agent_dies_before_the_offer_is_in_its_journal() {
    agent_dies("before rename /slot-0/job.json");
}

#[test]
fn agent_dies_when_the_offer_is_in_its_journal() {
    agent_dies("after rename /slot-0/job.json");
}

#[test]
fn agent_dies_before_it_accepts() {
    agent_dies("before send socket \",\"state\":\"running\"}");
}

#[test]
fn agent_dies_when_it_has_accepted() {
    agent_dies("after send socket \",\"state\":\"running\"}");
}

#[test]
fn agent_dies_when_its_acceptance_is_confirmed() {
    agent_dies("after recv socket {\"message\":\"accepted\"}");
}

#[test]
fn agent_dies_when_the_confirmation_is_in_its_journal() {
    agent_dies("after write /slot-0/job.json \"offer\":\"accepted\"");
}

#[test]
fn agent_dies_before_it_sends_the_first_part_of_the_log() {
    agent_dies("before send socket PATCH ");
}

#[test]
fn agent_dies_when_it_has_sent_the_first_part_of_the_log() {
    agent_dies("after send socket PATCH ");
}

#[test]
fn agent_dies_before_it_sends_the_final_state() {
    agent_dies("before send socket \"state\":\"success\"");
}

#[test]
fn agent_dies_when_it_has_sent_the_final_state() {
    agent_dies("after send socket \"state\":\"success\"");
}

#[test]
fn agent_dies_before_it_reports_the_end() {
    agent_dies("before send socket \"ended\":[\"");
}

#[test]
fn agent_dies_when_it_has_reported_the_end() {
    agent_dies("after send socket \"ended\":[\"");
}

#[test]
fn instance_dies_with_an_offer() {
    for conditions in ["after rename /slot-0/job.json", "before send socket \",\"state\":\"running\"}"] {
        let (hand_over, id, manager, _agent) = instance_dies(conditions);
        hand_over.assert_done(id, &manager);
    }
}

/// The script may have begun, so the job is not offered again.
#[test]
fn instance_dies_with_an_accepted_job() {
    for conditions in ["after send socket \",\"state\":\"running\"}", "after recv socket {\"message\":\"accepted\"}"] {
        let (hand_over, id, manager, _agent) = instance_dies(conditions);
        let done = hand_over.gitlab.finished(id);
        assert_eq!(done.failure_reason.as_deref(), Some("runner_system_failure"), "{}", manager.log());
        assert_eq!(hand_over.runs(), 0);
        assert!(done.has("instance i-1 was terminated"), "{}", done.log());
        hand_over.assert_forgotten(id);
        hand_over.assert_next(&manager);
    }
}

/// A manager that holds a job dies at a step of the keeper; then an instance registers, and the job's log is complete.
fn holder_dies(conditions: &str) {
    let hand_over = HandOver::new(&Pool::hold());
    let mut manager = hand_over.fleet.start_with(&crash_point::at(conditions));
    let id = hand_over.queue();
    crash_point::assert_killed(manager.wait(), &manager.log());
    let manager = hand_over.fleet.start();
    manager.wait_for_log("held=1");
    hand_over.gitlab.wait_for_log(id, "waiting for an instance of pool pool");
    hand_over.fleet.set_members(&["i-1"]);
    let _agent = hand_over.fleet.agent(&manager, "i-1");
    let done = hand_over.assert_done(id, &manager);
    let told = done.lines().iter().filter(|line| line.contains("waiting for an instance")).count();
    assert_eq!(told, 1, "{}", done.log());
}

#[test]
fn holder_dies_when_the_first_line_of_the_log_is_stored() {
    holder_dies("after write /manager/state \"event\":\"trace\"");
}

#[test]
fn holder_dies_when_the_first_line_of_the_log_is_sent() {
    holder_dies("after send socket PATCH ");
}

#[test]
fn holder_dies_when_gitlab_has_the_first_line_of_the_log() {
    holder_dies("after send socket PATCH \nafter recv socket HTTP/1.1 202");
}

/// An agent that takes a held job dies at a step; the job's log continues the one that the manager began.
fn taker_dies(conditions: &str) {
    let hand_over = HandOver::new(&Pool::hold());
    let manager = hand_over.fleet.start();
    let id = hand_over.queue();
    hand_over.gitlab.wait_for_log(id, "waiting for an instance of pool pool");
    hand_over.fleet.set_members(&["i-1"]);
    let home = Scenario::managed("i-1").home_at(&hand_over.fleet.url());
    let [preload, at] = crash_point::at(conditions);
    let mut agent = home.start_with(&[], &[(preload.0, &preload.1), (at.0, &at.1)]);
    crash_point::assert_killed(agent.wait(), &agent.log());
    let _agent = home.start(&[]);
    let done = hand_over.assert_done(id, &manager);
    for part in ["waiting for an instance", "Running with mayfly"] {
        assert_eq!(done.lines().iter().filter(|line| line.contains(part)).count(), 1, "{part}\n{}", done.log());
    }
}

#[test]
fn taker_dies_before_it_begins_the_log() {
    taker_dies("before write /slot-0/trace waiting for an instance");
}

#[test]
fn taker_dies_when_it_has_begun_the_log() {
    taker_dies("after write /slot-0/trace waiting for an instance");
}

/// A manager dies while it fails a job; the job still fails, exactly once.
fn failer_dies(conditions: &str) {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().autoscaler("instance_acquire_timeout = \"1s\"").fleet(&gitlab);
    let mut manager = fleet.start_with(&crash_point::at(conditions));
    let id = gitlab.queue(job(&["echo never"]).build());
    crash_point::assert_killed(manager.wait(), &manager.log());
    let manager = fleet.start();
    let done = gitlab.finished(id);
    assert_eq!(done.failure_reason.as_deref(), Some("runner_system_failure"), "{}", manager.log());
    assert!(done.has("no instance of pool pool took the job"), "{}", done.log());
    let hand_over = HandOver { count: fleet.home.path("count"), gitlab, fleet };
    hand_over.assert_forgotten(id);
}

#[test]
fn failer_dies_when_the_failure_is_stored() {
    failer_dies("after write /manager/state \"event\":\"failed\"");
}

#[test]
fn failer_dies_when_the_last_line_of_the_log_is_sent() {
    failer_dies(
        "after write /manager/state \"event\":\"failed\"\nafter send socket PATCH \nafter recv socket HTTP/1.1 202",
    );
}

#[test]
fn failer_dies_when_the_final_state_is_sent() {
    failer_dies("after send socket \"state\":\"failed\"");
}
