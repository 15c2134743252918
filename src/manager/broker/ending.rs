//! Stops a pool from taking jobs: for a drain, for a new program, or because the pool is no longer configured.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Broker;
use super::job::{LogOrigin, Phase, PoolJob};
use super::log_line::LineFormat;
use super::state::PoolState;
use crate::coordinator::{JobHandle, JobId};
use crate::failure::FailureReason;
use crate::manager::held;
use crate::manager::store::records::StoreEvent;

/// The failure message of held jobs of a removed pool.
pub const REMOVED: &str = "the pool of this job was removed from the manager's configuration";
/// The time within which an agent must report a job that the manager has lost, before the job fails.
const FORGOTTEN_GRACE: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 60 });
/// The interval of reads of a pool's group while the pool ends.
const GROUP_READ_INTERVAL: Duration = Duration::from_secs(5);

impl Broker {
    /// Stops polling. [`Broker::wait_for_polls`] waits for polls in flight.
    pub fn close(&self) {
        self.lock().closed = true;
        self.bell.ring();
    }

    /// Resumes polling.
    pub fn open(&self) {
        self.lock().closed = false;
        self.bell.ring();
    }

    /// Waits until no poll is in flight. Returns false after the timeout.
    pub fn wait_for_polls(&self, until: Instant) -> bool {
        self.wait_until(until, |state| state.polls_in_flight == 0)
    }

    /// Waits until no poll is in flight and no job is held. Returns false after the timeout.
    pub fn wait_for_held_jobs(&self, until: Instant) -> bool {
        let is_running = |job: &PoolJob| matches!(job.phase, Phase::Running { .. });
        self.wait_until(until, |state| state.polls_in_flight == 0 && state.jobs.values().all(is_running))
    }

    fn wait_until(&self, until: Instant, condition: impl Fn(&PoolState) -> bool) -> bool {
        loop {
            let seen = self.bell.count();
            if condition(&self.lock()) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.bell.wait_past(seen, left);
        }
    }

    /// Fails all jobs that no agent has.
    pub fn fail_held(&self, why: &str) {
        let held: Vec<String> = {
            let state = self.lock();
            let held = |phase: &Phase| matches!(phase, Phase::Held | Phase::Offered(_));
            state.jobs.iter().filter(|(_, job)| held(&job.phase)).map(|(id, _)| id.clone()).collect()
        };
        for id in held {
            self.fail(&id, FailureReason::RunnerSystemFailure, why);
        }
    }

    /// Stops polling, and orders all agents to leave: idle agents now, busy ones after their jobs, and agents that
    /// register later at once.
    pub fn retire(&self, reason: &str) {
        let tickets: Vec<_> = {
            let mut state = self.lock();
            state.closed = true;
            state.retired = Some(reason.to_owned());
            for agent in state.agents.iter_mut() {
                agent.leave.get_or_insert_with(|| reason.to_owned());
            }
            std::mem::take(&mut state.waiting).into_iter().map(|waiter| waiter.ticket).collect()
        };
        self.send_order_to_leave(tickets, reason);
        self.changed();
    }

    /// Stops polling, and forgets the agents and their running jobs, because the group now belongs to another pool: the
    /// agents register there and report their jobs.
    pub fn release(&self) {
        let (tickets, agents, running) = {
            let mut state = self.lock();
            state.closed = true;
            state.retired = Some(REMOVED.to_owned());
            state.members = Some(HashSet::new());
            let waiting = std::mem::take(&mut state.waiting);
            let agents: Vec<String> = state.agents.iter().map(|agent| agent.record.instance.clone()).collect();
            agents.iter().for_each(|instance| drop(state.agents.remove(instance)));
            let is_running = |job: &PoolJob| matches!(job.phase, Phase::Accepting(_) | Phase::Running { .. });
            let running: Vec<String> =
                state.jobs.iter().filter(|(_, job)| is_running(job)).map(|(id, _)| id.clone()).collect();
            (waiting, agents, running)
        };
        self.released.store(true, Ordering::SeqCst);
        for waiter in tickets {
            self.responder.respond(waiter.ticket, self.stay_response());
        }
        for instance in agents {
            self.note(StoreEvent::AgentGone { pool: self.name.clone(), instance });
        }
        running.iter().for_each(|id| self.forget(id));
    }

    /// Whether another pool has the agents.
    pub fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }

    /// Resumes polling after [`Broker::retire`]. Agents that have received the order to leave still leave.
    pub fn take_back(&self) {
        {
            let mut state = self.lock();
            state.closed = false;
            state.retired = None;
        }
        self.released.store(false, Ordering::SeqCst);
        self.changed();
    }

    /// Waits until a retired pool has no jobs, agents and instances; after `until`, instances without an agent do not
    /// count. Returns false if the pool is no longer retired.
    pub fn wait_until_empty(&self, until: Instant) -> bool {
        loop {
            let seen = self.bell.count();
            {
                let state = self.lock();
                if state.retired.is_none() {
                    return false;
                }
                let has_instances = state.members.as_ref().is_none_or(|members| !members.is_empty());
                let is_unused = state.jobs.is_empty() && state.agents.len() == 0 && state.polls_in_flight == 0;
                if is_unused && (!has_instances || Instant::now() >= until) {
                    return true;
                }
            }
            self.bell.wait_past(seen, GROUP_READ_INTERVAL);
        }
    }

    /// Fails a job that an earlier manager held and that the state directory no longer contains, unless an agent
    /// reports in time that it has the job.
    pub fn fail_forgotten(&self, id: &str, sealed: &str) {
        let token = held::token_of(&self.settings().runner.token, &self.name, id, sealed);
        let (Some(token), Some(job)) = (token, JobId::parse(id)) else { return };
        let now = Instant::now();
        {
            let mut state = self.lock();
            if state.jobs.contains_key(id) {
                return;
            }
            let why = "the manager lost its state while it held this job";
            let job = PoolJob {
                phase: Phase::failing(why, LineFormat::Timestamped, now),
                keep_at: now + FORGOTTEN_GRACE,
                // The content of the job's log is unknown.
                log_origin: LogOrigin::Foreign,
                ..PoolJob::new(JobHandle { id: job, token }, now, Duration::ZERO)
            };
            state.jobs.insert(id.to_owned(), job);
        }
        log::warn!("held job not in the state directory; it fails at GitLab pool={} job={id}", self.name);
        self.job_limit.reserve(1);
        self.changed();
    }
}
