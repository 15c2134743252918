//! Tests of the state of a pool, step by step.

mod random_orders;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::agents::Agent;
use super::job::{Phase, PoolJob};
use super::state::{ACCEPT_TIMEOUT, AcceptanceResult, PoolState, Waiter};
use crate::coordinator::JobHandle;
use crate::coordinator::manager::protocol::JobReport;
use crate::failure::FailureReason;
use crate::manager::server::Ticket;
use crate::manager::store::records::AgentRecord;
use crate::manager::workload::{AgentState, RemainingJobs};
use crate::token::Token;

struct Pool {
    state: PoolState,
    now: Instant,
    tickets: u64,
}

impl Pool {
    fn new() -> Self {
        Self { state: PoolState::default(), now: Instant::now(), tickets: 0 }
    }

    fn agent(&mut self, instance: &str) {
        let record = AgentRecord {
            instance: instance.to_owned(),
            boot: "b".to_owned(),
            token_hash: instance.to_owned(),
            version: "1".to_owned(),
            capacity: 2,
            has_own_capacity: false,
            registered: 1,
            builds: 0,
        };
        let agent = Agent { record, last_heard: self.now, idle_since: self.now, leave: None, drains: false };
        self.state.agents.insert(agent);
    }

    fn waits(&mut self, instance: &str) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket::for_test(self.tickets);
        let until = self.now + Duration::from_secs(50);
        self.state.waiting.push(Waiter { ticket, instance: instance.to_owned(), until });
        ticket
    }

    fn job(&mut self, id: i64) -> String {
        self.now += Duration::from_secs(1);
        let handle = JobHandle { id: id.into(), token: Token::new("t") };
        let mut job = PoolJob::new(handle, self.now, Duration::from_secs(900));
        job.payload = Some(b"{}".to_vec().into());
        self.state.jobs.insert(id.to_string(), job);
        id.to_string()
    }

    /// Offers the next job; returns the job and the instance.
    fn offer(&mut self, offer: &str) -> Option<(String, String)> {
        let (job, offered) = self.state.offer(offer.to_owned(), self.now)?;
        assert_eq!(offered.until, self.now + ACCEPT_TIMEOUT);
        Some((job, offered.instance))
    }

    fn accept(&mut self, instance: &str, job: &str, offer: &str) -> AcceptanceResult {
        let acceptance = self.state.accept(instance, job, offer, 1);
        if let AcceptanceResult::Write(by) = &acceptance {
            assert!(self.state.confirm_acceptance(job, by.clone()));
        }
        acceptance
    }

    fn idle(&self) -> HashMap<String, AgentState> {
        self.state.snapshot().agents.into_iter().map(|agent| (agent.instance, agent.state)).collect()
    }
}

fn report(id: &str, offer: &str) -> JobReport {
    JobReport { id: id.to_owned(), offer: offer.to_owned(), phase: "script".to_owned(), token: Token::new("t") }
}

#[test]
fn a_job_is_offered_accepted_and_ends() {
    let mut pool = Pool::new();
    pool.agent("i-1");
    let job = pool.job(7);
    assert_eq!(pool.offer("a"), None, "no agent waits");
    pool.waits("i-1");
    assert_eq!(pool.offer("a"), Some((job.clone(), "i-1".to_owned())));
    assert_eq!(pool.offer("b"), None, "offered once");
    assert_eq!(pool.idle()["i-1"], AgentState::Busy, "an agent with an offer is busy");
    assert!(matches!(pool.accept("i-1", &job, "a"), AcceptanceResult::Write(_)));
    assert_eq!(pool.accept("i-1", &job, "a"), AcceptanceResult::AlreadyWritten, "a repeated acceptance");
    let snapshot = pool.state.snapshot();
    assert_eq!((snapshot.held, snapshot.running, snapshot.agents[0].builds), (0, 1, 1));
    let heard = pool.state.heartbeat("i-1", &[], std::slice::from_ref(&job), pool.now);
    assert_eq!(heard.ended, std::slice::from_ref(&job));
    assert!(pool.state.remove(&job, pool.now) && !pool.state.remove(&job, pool.now));
    assert_eq!(pool.idle()["i-1"], AgentState::Idle { since: pool.now });
}

#[test]
fn only_the_agent_with_the_offer_may_accept_and_only_once() {
    let mut pool = Pool::new();
    pool.agent("i-1");
    pool.agent("i-2");
    let job = pool.job(7);
    pool.waits("i-1");
    pool.offer("a");
    for (instance, offer) in [("i-2", "a"), ("i-1", "b"), ("i-1", "")] {
        assert_eq!(pool.accept(instance, &job, offer), AcceptanceResult::Void, "{instance} {offer}");
    }
    assert!(pool.state.withdraw_offer(&job, "a"));
    assert_eq!(pool.accept("i-1", &job, "a"), AcceptanceResult::Void, "too late");
    pool.waits("i-2");
    pool.offer("c");
    assert_eq!(pool.accept("i-1", &job, "a"), AcceptanceResult::Void, "another agent has the offer");
    assert!(matches!(pool.accept("i-2", &job, "c"), AcceptanceResult::Write(_)));
    assert!(!pool.state.withdraw_offer(&job, "c"), "an accepted job is not offered again");
    assert_eq!(pool.accept("i-1", "8", "a"), AcceptanceResult::Void, "no such job");
}

#[test]
fn an_acceptance_that_cannot_be_written_did_not_happen() {
    let mut pool = Pool::new();
    pool.agent("i-1");
    let job = pool.job(7);
    pool.waits("i-1");
    pool.offer("a");
    assert!(matches!(pool.state.accept("i-1", &job, "a", 1), AcceptanceResult::Write(_)));
    assert_eq!(pool.state.accept("i-1", &job, "a", 1), AcceptanceResult::BeingWritten);
    pool.state.revert_acceptance(&job);
    assert_eq!(pool.state.accept("i-1", &job, "a", 1), AcceptanceResult::Void);
    pool.waits("i-1");
    assert!(pool.offer("b").is_some());
}

#[test]
fn a_job_of_a_lost_instance_is_not_accepted_any_more() {
    let mut pool = Pool::new();
    pool.agent("i-1");
    let job = pool.job(7);
    pool.waits("i-1");
    pool.offer("a");
    let AcceptanceResult::Write(by) = pool.state.accept("i-1", &job, "a", 1) else { panic!("not accepted") };
    pool.state.fail(&job, FailureReason::RunnerSystemFailure, "lost".to_owned(), String::new(), pool.now);
    assert!(!pool.state.confirm_acceptance(&job, by));
    assert!(matches!(pool.state.jobs[&job].phase, Phase::Failing { .. }));
}

#[test]
fn a_client_that_is_gone_gives_its_offer_back() {
    let mut pool = Pool::new();
    pool.agent("i-1");
    let (job, ticket) = (pool.job(7), pool.waits("i-1"));
    pool.offer("a");
    assert!(pool.state.remove_poll(ticket) && !pool.state.remove_poll(ticket));
    assert_eq!(pool.state.jobs[&job].phase, Phase::Held);
    let ticket = pool.waits("i-1");
    assert!(pool.state.remove_poll(ticket));
    assert_eq!(pool.offer("b"), None, "no agent waits");
}

#[test]
fn jobs_go_to_agents_that_have_some_and_then_to_those_that_worked_last() {
    let mut pool = Pool::new();
    for instance in ["i-1", "i-2", "i-3"] {
        pool.agent(instance);
    }
    for (instance, idle) in [("i-1", 5), ("i-2", 1), ("i-3", 9)] {
        let since = pool.now + Duration::from_secs(idle);
        pool.state.agents.get_mut(instance).expect("an agent").idle_since = since;
        pool.waits(instance);
    }
    pool.job(1);
    pool.job(2);
    pool.job(3);
    assert_eq!(pool.offer("a"), Some(("1".to_owned(), "i-3".to_owned())));
    pool.waits("i-3");
    assert_eq!(pool.offer("b"), Some(("2".to_owned(), "i-3".to_owned())), "the agent with a job comes first");
    assert_eq!(pool.offer("c"), Some(("3".to_owned(), "i-1".to_owned())));
}

#[test]
fn an_agent_leaves_after_its_number_of_jobs() {
    let mut pool = Pool::new();
    pool.agent("i-1");
    pool.state.max_use_count = Some(1);
    let job = pool.job(7);
    pool.job(8);
    pool.waits("i-1");
    pool.waits("i-1");
    assert_eq!(pool.state.jobs_to_request(None), 0, "two jobs are held for the two requests");
    pool.offer("a");
    assert_eq!(pool.offer("b"), None, "the offered job counts");
    pool.accept("i-1", &job, "a");
    assert_eq!(pool.state.leave_reason("i-1").as_deref(), Some("max_use_count"));
}

#[test]
fn only_an_idle_agent_is_dismissed() {
    let mut pool = Pool::new();
    pool.agent("i-1");
    let job = pool.job(7);
    pool.waits("i-1");
    pool.offer("a");
    assert_eq!(pool.state.dismiss("i-1", "idle"), None, "it has an offer");
    pool.accept("i-1", &job, "a");
    assert_eq!(pool.state.dismiss("i-1", "idle"), None, "it has a job");
    pool.state.remove(&job, pool.now);
    let ticket = pool.waits("i-1");
    assert_eq!(pool.state.dismiss("i-1", "idle"), Some(vec![ticket]));
    assert_eq!(pool.idle()["i-1"], AgentState::Leaving(RemainingJobs::None));
    pool.job(8);
    pool.waits("i-1");
    assert_eq!(pool.offer("b"), None, "the agent must leave");
    assert_eq!(pool.state.dismiss("i-2", "idle"), None, "there is no such agent");
}

#[test]
fn an_instance_is_closed_for_its_termination_unless_its_agent_came_back() {
    let mut pool = Pool::new();
    let decided_at = pool.now;
    pool.agent("i-1");
    pool.state.members = Some(["i-1", "i-2"].map(str::to_owned).into());
    let job = pool.job(7);
    pool.waits("i-1");
    pool.offer("a");
    assert_eq!(pool.state.close_instance("i-1", "silent", pool.now), None, "it has an offer");
    assert!(pool.state.withdraw_offer(&job, "a"));
    pool.state.agents.get_mut("i-1").expect("an agent").last_heard = pool.now;
    assert_eq!(pool.state.close_instance("i-1", "silent", decided_at), None, "it has sent a request since");
    let ticket = pool.waits("i-1");
    assert_eq!(pool.state.close_instance("i-1", "silent", pool.now), Some(vec![ticket]));
    let agent = pool.state.agents.get_mut("i-1").expect("an agent");
    agent.drains = true;
    let came_back = pool.state.close_instance("i-1", "silent", decided_at);
    assert_eq!(came_back, None, "it may have jobs of other servers, and has sent a request since");
    pool.waits("i-1");
    assert_eq!(pool.offer("b"), None, "its instance is being terminated");
    assert_eq!(pool.state.close_instance("i-2", "no agent", pool.now), Some(Vec::new()));
    assert_eq!(pool.state.members, Some(HashSet::new()), "neither instance may register");
}

#[test]
fn an_agent_that_leaves_reports_the_jobs_it_finishes_first() {
    let mut pool = Pool::new();
    pool.agent("i-1");
    pool.state.max_use_count = Some(1);
    let job = pool.job(7);
    pool.waits("i-1");
    pool.offer("a");
    pool.accept("i-1", &job, "a");
    pool.state.leave_reason("i-1");
    assert_eq!(pool.idle()["i-1"], AgentState::Leaving(RemainingJobs::Known));
    pool.state.remove(&job, pool.now);
    assert_eq!(pool.idle()["i-1"], AgentState::Leaving(RemainingJobs::None));
    pool.state.agents.get_mut("i-1").expect("an agent").drains = true;
    assert_eq!(pool.idle()["i-1"], AgentState::Leaving(RemainingJobs::Possible));
}

#[test]
fn jobs_are_asked_for_as_agents_wait_and_holds_are_allowed() {
    let mut pool = Pool::new();
    assert_eq!(pool.state.jobs_to_request(None), 0);
    pool.agent("i-1");
    pool.waits("i-1");
    assert_eq!(pool.state.jobs_to_request(None), 1);
    pool.state.polls_in_flight = 1;
    assert_eq!(pool.state.jobs_to_request(None), 0, "the poll in flight may return the job");
    pool.state.hold_budget = 3;
    assert_eq!((pool.state.jobs_to_request(None), pool.state.jobs_to_request(Some(2))), (3, 1));
    pool.state.polls_in_flight = 0;
    pool.job(1);
    pool.job(2);
    assert_eq!((pool.state.jobs_to_request(None), pool.state.jobs_to_request(Some(2))), (2, 0));
    pool.state.closed = true;
    assert_eq!(pool.state.jobs_to_request(None), 0);
}

#[test]
fn a_job_that_an_agent_forgets_is_noticed_and_one_that_the_manager_forgot_is_taken_up() {
    let mut pool = Pool::new();
    pool.agent("i-1");
    let job = pool.job(7);
    pool.waits("i-1");
    pool.offer("a");
    pool.accept("i-1", &job, "a");
    for _ in 0..2 {
        assert!(pool.state.heartbeat("i-1", &[], &[], pool.now).vanished.is_empty());
    }
    pool.state.heartbeat("i-1", &[report("7", "a")], &[], pool.now);
    assert_eq!(pool.state.snapshot().agents[0].jobs[0].phase, "script");
    for number in 0..3 {
        let heard = pool.state.heartbeat("i-1", &[], &[], pool.now);
        assert_eq!((heard.vanished.is_empty(), heard.lacks_jobs), (number < 2, number < 2), "heartbeat {number}");
    }
    let heard = pool.state.heartbeat("i-1", &[report("9", "x")], &[], pool.now);
    assert_eq!(heard.adopted, ["9"]);
    let heard = pool.state.heartbeat("i-1", &[report("9", "x")], &["9".to_owned()], pool.now);
    assert!(heard.adopted.is_empty(), "the job has ended");
    let reports = ["11", "12", "13"].map(|id| report(id, "x"));
    let heard = pool.state.heartbeat("i-1", &reports, &[], pool.now);
    assert_eq!(heard.adopted, ["11"], "the agent has one job and can run two");
}
