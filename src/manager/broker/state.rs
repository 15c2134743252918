//! A pool's jobs, agents and waiting requests, and their transitions. This module does no I/O and reads no clock.
//!
//! A job is held until an agent waits, then offered to that agent, then accepted by it. Each offer has its own id; only
//! its agent can accept it, with this id and in time. So a job has only one agent at a time, even if messages are lost.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::agents::{Agent, Agents};
use super::job::{LogOrigin, Offered, Phase, PoolJob};
use crate::failure::FailureReason;
use crate::manager::pool::PoolSettings;
use crate::manager::server::Ticket;
use crate::manager::store::records::Accepted;

/// The time within which an agent must accept an offer.
pub const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);

/// The variable state of a pool.
#[derive(Default)]
pub struct PoolState {
    /// Registered agents.
    pub agents: Agents,
    /// Jobs by their id in GitLab.
    pub jobs: BTreeMap<String, PoolJob>,
    /// Waiting polls, the oldest first. All wait equally long, so the first one is also due first.
    pub waiting: Vec<Waiter>,
    /// Whether a polling thread waits because no agent could take another job.
    pub starved: bool,
    /// The number of threads that poll GitLab.
    pub polling_threads: u32,
    /// Members of the pool's group; `None` until the engine has answered.
    pub members: Option<HashSet<String>>,
    /// Requests for jobs to GitLab in flight.
    pub polls_in_flight: u32,
    /// Requests of the keeper to GitLab in flight.
    pub keeper_requests: u32,
    /// The number of jobs that may be held in addition to those for waiting agents.
    pub hold_budget: u32,
    /// Whether polling has stopped.
    pub closed: bool,
    /// The reason for all agents to leave, if the pool is no longer configured.
    pub retired: Option<String>,
    /// The number of jobs after which an agent leaves.
    pub max_use_count: Option<u32>,
}

/// A waiting poll for a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The connection for the response.
    pub ticket: Ticket,
    /// The instance of the agent.
    pub instance: String,
    /// The time at which the request is answered without a job.
    pub until: Instant,
}

/// The result of an acceptance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcceptanceResult {
    /// The acceptance must be written to the state before the agent may start the job.
    Write(Accepted),
    /// The same acceptance was written before.
    AlreadyWritten,
    /// The same acceptance is being written now.
    BeingWritten,
    /// The offer is void.
    Void,
}

impl PoolState {
    /// Applies the settings of the pool (start, reload).
    pub fn apply_settings(&mut self, settings: &PoolSettings) {
        self.max_use_count = settings.max_use_count;
        for agent in self.agents.iter_mut().filter(|agent| !agent.record.has_own_capacity) {
            agent.record.capacity = settings.capacity_per_instance;
        }
    }

    /// Offers the job that has waited longest, and removes the poll that the offer answers. `id` is the id of the
    /// offer. Returns `None` without a job or a suitable poll.
    pub fn offer(&mut self, id: String, now: Instant) -> Option<(String, Offered)> {
        let held = self.jobs.iter().filter(|(_, job)| job.phase == Phase::Held && !job.has_request_in_flight);
        let job = held.min_by_key(|(_, job)| job.taken_at)?.0.clone();
        let index = self.best_waiter()?;
        let waiter = self.waiting.remove(index);
        let offered = Offered { id, instance: waiter.instance, ticket: waiter.ticket, until: now + ACCEPT_TIMEOUT };
        let offered_job = self.jobs.get_mut(&job)?;
        offered_job.offered_at = now;
        offered_job.phase = Phase::Offered(offered.clone());
        Some((job, offered))
    }

    /// The index of the poll that gets the next job: first that of an agent with jobs, so that others stay idle; then
    /// that of the agent that worked last, so that agents that are idle for long can leave.
    fn best_waiter(&self) -> Option<usize> {
        let offers = self.offers();
        let busy: HashSet<&str> = self.jobs.values().filter_map(|job| job.phase.instance()).collect();
        let rank = |waiter: &Waiter| {
            let agent = self.agents.get(&waiter.instance)?;
            let is_free = agent.leave.is_none() && !self.has_used_up_jobs(agent, &offers);
            is_free.then_some((busy.contains(waiter.instance.as_str()), agent.idle_since))
        };
        let ranked = self.waiting.iter().enumerate().filter_map(|(index, waiter)| Some((rank(waiter)?, index)));
        // Of equal polls the first one, which has waited longest.
        ranked.max_by_key(|(rank, index)| (*rank, std::cmp::Reverse(*index))).map(|(_, index)| index)
    }

    /// The number of offered, not yet accepted jobs by instance. Only counted if `max_use_count` is set.
    fn offers(&self) -> HashMap<&str, u32> {
        let mut offers = HashMap::new();
        if self.max_use_count.is_some() {
            for job in self.jobs.values() {
                if let Phase::Offered(offered) | Phase::Accepting(offered) = &job.phase {
                    *offers.entry(offered.instance.as_str()).or_default() += 1;
                }
            }
        }
        offers
    }

    /// Whether an agent has reached its maximum number of jobs (`max_use_count`). `offers` is the result of
    /// [`PoolState::offers`].
    fn has_used_up_jobs(&self, agent: &Agent, offers: &HashMap<&str, u32>) -> bool {
        let offered = offers.get(agent.record.instance.as_str()).copied().unwrap_or(0);
        self.max_use_count.is_some_and(|max| agent.record.builds.saturating_add(offered) >= max)
    }

    /// The number of jobs that an agent has or is offered.
    pub fn jobs_of(&self, instance: &str) -> usize {
        self.jobs.values().filter(|job| job.phase.instance() == Some(instance)).count()
    }

    /// The reason for an agent to leave, if there is one: an order, or its maximum number of jobs.
    pub fn leave_reason(&mut self, instance: &str) -> Option<String> {
        let is_used_up = self.agents.get(instance).is_some_and(|agent| self.has_used_up_jobs(agent, &self.offers()));
        let agent = self.agents.get_mut(instance)?;
        if is_used_up && agent.leave.is_none() {
            agent.leave = Some("max_use_count".to_owned());
        }
        if agent.leave.is_none() {
            agent.leave.clone_from(&self.retired);
        }
        agent.leave.clone()
    }

    /// Withdraws an offer that the agent did not accept; the job is held again. Returns false if the job is not in the
    /// phase [`Phase::Offered`].
    pub fn withdraw_offer(&mut self, job: &str, offer: &str) -> bool {
        match self.jobs.get_mut(job) {
            Some(job) if matches!(&job.phase, Phase::Offered(offered) if offered.id == offer) => {
                job.phase = Phase::Held;
                true
            }
            _ => false,
        }
    }

    /// Removes the poll of a disconnected client and voids its offer. Returns true if anything changed.
    pub fn remove_poll(&mut self, ticket: Ticket) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiter| waiter.ticket != ticket);
        let mut changed = self.waiting.len() != before;
        for job in self.jobs.values_mut() {
            if matches!(&job.phase, Phase::Offered(offered) if offered.ticket == ticket) {
                job.phase = Phase::Held;
                changed = true;
            }
        }
        changed
    }

    /// Processes an acceptance. After `Write`, [`PoolState::confirm_acceptance`] or [`PoolState::revert_acceptance`]
    /// must follow.
    pub fn accept(&mut self, instance: &str, job: &str, offer: &str, at: u64) -> AcceptanceResult {
        let Some(job) = self.jobs.get_mut(job) else { return AcceptanceResult::Void };
        match &job.phase {
            Phase::Offered(offered) if offered.id == offer && offered.instance == instance => {
                job.phase = Phase::Accepting(offered.clone());
                AcceptanceResult::Write(Accepted { offer: offer.to_owned(), instance: instance.to_owned(), at })
            }
            Phase::Accepting(offered) if offered.id == offer && offered.instance == instance => {
                AcceptanceResult::BeingWritten
            }
            Phase::Running { by, .. } if by.offer == offer && by.instance == instance => {
                AcceptanceResult::AlreadyWritten
            }
            _ => AcceptanceResult::Void,
        }
    }

    /// Extends an offer that the agent is about to accept. Returns false if the offer is void.
    pub fn extend_offer(&mut self, instance: &str, job: &str, offer: &str, now: Instant) -> bool {
        match self.jobs.get_mut(job).map(|job| &mut job.phase) {
            Some(Phase::Offered(offered)) if offered.id == offer && offered.instance == instance => {
                offered.until = now + ACCEPT_TIMEOUT;
                true
            }
            Some(Phase::Accepting(offered)) => offered.id == offer,
            Some(Phase::Running { by, .. }) => by.offer == offer && by.instance == instance,
            _ => false,
        }
    }

    /// Records that an acceptance was written. Returns false if the instance was lost meanwhile; then the job fails.
    pub fn confirm_acceptance(&mut self, job: &str, by: Accepted) -> bool {
        if let Some(agent) = self.agents.get_mut(&by.instance) {
            agent.record.builds += 1;
        }
        match self.jobs.get_mut(job) {
            Some(job) if matches!(job.phase, Phase::Accepting(_)) => {
                job.payload = None;
                job.log_origin = LogOrigin::Foreign;
                job.phase = Phase::Running { by, stage: "accepted", missing: 0 };
                true
            }
            _ => false,
        }
    }

    /// Reverts an acceptance that could not be written.
    pub fn revert_acceptance(&mut self, job: &str) {
        if let Some(job) = self.jobs.get_mut(job)
            && matches!(job.phase, Phase::Accepting(_))
        {
            job.phase = Phase::Held;
        }
    }

    /// Removes a job. Its agent becomes idle if that was its last job. Returns false if the job is unknown.
    pub fn remove(&mut self, id: &str, now: Instant) -> bool {
        let Some(job) = self.jobs.remove(id) else { return false };
        if let Some(instance) = job.phase.instance() {
            self.start_idle_time(instance, now);
        }
        true
    }

    /// Sets the start of the idle time of an agent without jobs.
    pub fn start_idle_time(&mut self, instance: &str, now: Instant) {
        if self.jobs_of(instance) == 0
            && let Some(agent) = self.agents.get_mut(instance)
        {
            agent.idle_since = now;
        }
    }

    /// Moves a job to the phase [`Phase::Failing`].
    pub fn fail(&mut self, id: &str, reason: FailureReason, why: String, line: String, now: Instant) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let instance = job.phase.instance().map(str::to_owned);
        job.phase = Phase::Failing { reason, why, line, since: now, attempts: 0 };
        job.keep_at = now;
        if let Some(instance) = instance {
            self.start_idle_time(&instance, now);
        }
    }

    /// Orders an idle agent to leave. Returns its polls, which must be answered with the order; `None` if the agent is
    /// busy or unknown.
    pub fn dismiss(&mut self, instance: &str, reason: &str) -> Option<Vec<Ticket>> {
        if self.jobs_of(instance) > 0 {
            return None;
        }
        self.agents.get_mut(instance)?.leave.get_or_insert_with(|| reason.to_owned());
        Some(self.take_waiters(instance))
    }

    /// Closes an instance that the scaler decided to terminate at `decided_at`: it cannot register, and its agent gets
    /// the order to leave and no more jobs. Returns the agent's polls, which must be answered with the order; `None` if
    /// the agent has a job or an offer, or may have one and has sent a request since the decision.
    pub fn close_instance(&mut self, instance: &str, reason: &str, decided_at: Instant) -> Option<Vec<Ticket>> {
        if self.jobs_of(instance) > 0 {
            return None;
        }
        if let Some(agent) = self.agents.get_mut(instance) {
            // A request after the decision shows that the agent is alive, so the decision is obsolete. Only an agent
            // that has the order to leave, and no jobs of other servers, may still poll.
            if (agent.leave.is_none() || agent.drains) && agent.last_heard > decided_at {
                return None;
            }
            agent.leave.get_or_insert_with(|| reason.to_owned());
        }
        if let Some(members) = &mut self.members {
            members.remove(instance);
        }
        Some(self.take_waiters(instance))
    }

    /// Removes the polls of an agent from the list, and returns their tickets.
    pub fn take_waiters(&mut self, instance: &str) -> Vec<Ticket> {
        let (of_agent, of_others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiter| waiter.instance == instance);
        self.waiting = of_others;
        of_agent.into_iter().map(|waiter| waiter.ticket).collect()
    }

    /// The number of jobs that may be requested in addition to the current ones.
    pub fn jobs_to_request(&self, limit: Option<u32>) -> u32 {
        if self.closed {
            return 0;
        }
        let offers = self.offers();
        let free = self.waiting.iter().filter(|waiter| {
            let agent = self.agents.get(&waiter.instance);
            agent.is_some_and(|agent| agent.leave.is_none() && !self.has_used_up_jobs(agent, &offers))
        });
        let held = self.jobs.values().filter(|job| job.phase == Phase::Held).count();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let taken = count(held).saturating_add(self.polls_in_flight);
        let room = count(free.count()).saturating_add(self.hold_budget).saturating_sub(taken);
        match limit {
            Some(limit) => room.min(limit.saturating_sub(self.job_count().saturating_add(self.polls_in_flight))),
            None => room,
        }
    }

    /// The number of held and running jobs.
    pub fn job_count(&self) -> u32 {
        u32::try_from(self.jobs.len()).unwrap_or(u32::MAX)
    }
}
