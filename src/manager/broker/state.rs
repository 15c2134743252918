//! A pool's jobs, agents and waiting requests, and what may happen to them. Data only: nothing here calls anybody or
//! looks at a clock.
//!
//! A job is held until an agent waits, then offered to that agent, then accepted by it. An offer has an id of its own;
//! only its agent, with this id and in time, may accept it. So a job has one agent at a time, whatever is lost on the way.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::agents::{Agent, Agents};
use crate::coordinator::JobHandle;
use crate::coordinator::manager::protocol::JobReport;
use crate::failure::FailureReason;
use crate::manager::pool::PoolSettings;
use crate::manager::server::Ticket;
use crate::manager::store::records::Accepted;
use crate::manager::workload::{AgentState, AgentView, JobView, Snapshot};

/// The time within which an agent must accept an offer.
pub const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);
/// A job that its agent does not name in so many heartbeats in a row is no longer there.
const MISSING_MOST: u32 = 3;

/// Everything about a pool that changes.
#[derive(Default)]
pub struct State {
    /// Registered agents.
    pub agents: Agents,
    /// Jobs by their id in GitLab.
    pub jobs: BTreeMap<String, Job>,
    /// Requests for jobs, oldest first. All wait equally long, so the first one is also due first.
    pub waiting: Vec<Waiter>,
    /// A thread that polls GitLab waits because no agent could take another job.
    pub starved: bool,
    /// Threads that poll GitLab.
    pub takers: u32,
    /// Members of the pool's group; `None` until the engine has answered.
    pub members: Option<HashSet<String>>,
    /// Requests for jobs to GitLab in flight.
    pub polls: u32,
    /// Requests of the keeper to GitLab in flight.
    pub keeper_requests: u32,
    /// Jobs that may be taken beyond what waiting agents can start.
    pub hold_budget: u32,
    /// No more jobs are taken.
    pub closed: bool,
    /// Why all agents are to leave: the pool is no longer configured.
    pub retired: Option<String>,
    /// An agent leaves after so many jobs.
    pub max_use_count: Option<u32>,
}

/// A request for a job that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The connection for the response.
    pub ticket: Ticket,
    /// The instance of the agent.
    pub instance: String,
    /// The time at which the request is answered without a job.
    pub until: Instant,
}

/// A job.
pub struct Job {
    /// Id and token.
    pub handle: JobHandle,
    /// The payload as GitLab sent it; `None` after an agent has accepted the job.
    pub payload: Option<Arc<[u8]>>,
    /// The id of the request that brought it.
    pub request_id: String,
    /// The path of the project, for display.
    pub project: String,
    /// The URL of the job's page.
    pub link: String,
    /// The time at which the manager received the job, by the wall clock.
    pub taken: SystemTime,
    /// The same by the monotonic clock.
    pub taken_at: Instant,
    /// The time of the last offer.
    pub offered_at: Instant,
    /// The time at which the job fails if no agent has accepted it.
    pub hold_until: Instant,
    /// Whether lines of its log begin with a time.
    pub timestamps: bool,
    /// The lines that the manager wrote to the job's log.
    pub trace: String,
    /// The number of bytes of `trace` that GitLab has.
    pub trace_sent: u64,
    /// The keeper sends a request about it to GitLab: it is not offered meanwhile, and there is no second request.
    pub in_request: bool,
    /// The time of the next request that keeps the job alive.
    pub keep_at: Instant,
    /// An agent accepted it, and wrote its log from then on.
    pub has_run: bool,
    /// GitLab leaves it pending until it is acknowledged.
    pub two_phase: Option<bool>,
    /// The phase of the job.
    pub phase: Phase,
}

/// The phase of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No agent has it.
    Held,
    /// An agent was asked to take it.
    Offered(Offered),
    /// An agent takes it, and that is being written down.
    Accepting(Offered),
    /// An agent has it.
    Running {
        /// By which offer.
        by: Accepted,
        /// The stage in the agent's last report.
        stage: &'static str,
        /// Heartbeats in a row that did not name it.
        missing: u32,
    },
    /// The job must be failed at GitLab.
    Failing {
        /// The failure reason.
        reason: FailureReason,
        /// The cause.
        why: String,
        /// The last line of the job's log. Each attempt sends the same bytes: GitLab may have them from an earlier one.
        line: String,
        /// Since when that is tried.
        since: Instant,
        /// Attempts so far.
        attempts: u32,
    },
}

/// An offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// The id of the job.
    pub id: String,
    /// To whom.
    pub instance: String,
    /// On which request.
    pub ticket: Ticket,
    /// Until when.
    pub until: Instant,
}

/// The result of an acceptance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// The acceptance must be written to the state before the agent may start the job.
    Write(Accepted),
    /// The acceptance was written before.
    Known,
    /// The same acceptance is being written down now.
    UnderWay,
    /// The offer is void.
    Void,
}

/// The changes that a heartbeat causes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Jobs that ended.
    pub ended: Vec<String>,
    /// Jobs that the manager did not know: it lost its state.
    pub adopted: Vec<String>,
    /// Jobs that the agent does not have though it accepted them.
    pub vanished: Vec<String>,
    /// The heartbeat lacks jobs that have not vanished yet.
    pub lacks_jobs: bool,
    /// Why the agent is to leave.
    pub leave: Option<String>,
}

impl State {
    /// Takes over what it needs of other settings.
    pub fn follow(&mut self, settings: &PoolSettings) {
        self.max_use_count = settings.max_use_count;
        for agent in self.agents.iter_mut().filter(|agent| !agent.record.has_own_capacity) {
            agent.record.capacity = settings.capacity_per_instance;
        }
    }

    /// The next job to offer and the request to answer with it; both are taken off their lists.
    pub fn offer(&mut self, id: String, now: Instant) -> Option<(String, Offered)> {
        let job = self.jobs.iter().filter(|(_, job)| job.phase == Phase::Held && !job.in_request);
        let job = job.min_by_key(|(_, job)| job.taken_at)?.0.clone();
        let waiter = self.best_waiter()?;
        let waiter = self.waiting.remove(waiter);
        let offered = Offered { id, instance: waiter.instance, ticket: waiter.ticket, until: now + ACCEPT_TIMEOUT };
        let offered_job = self.jobs.get_mut(&job)?;
        offered_job.offered_at = now;
        offered_job.phase = Phase::Offered(offered.clone());
        Some((job, offered))
    }

    /// The request that gets the next job: of an agent that has jobs already, so that others become idle; then of the one
    /// that worked last, so that those that are idle for long can leave.
    fn best_waiter(&self) -> Option<usize> {
        let offers = self.offers();
        let busy: HashSet<&str> = self.jobs.values().filter_map(|job| job.phase.instance()).collect();
        let rank = |waiter: &Waiter| {
            let agent = self.agents.get(&waiter.instance)?;
            let free = agent.leave.is_none() && !self.is_spent(agent, &offers);
            free.then_some((busy.contains(waiter.instance.as_str()), agent.idle_since))
        };
        let ranked = self.waiting.iter().enumerate().filter_map(|(index, waiter)| Some((rank(waiter)?, index)));
        // Of equal ones the first, which has waited longest.
        ranked.max_by_key(|(rank, index)| (*rank, std::cmp::Reverse(*index))).map(|(_, index)| index)
    }

    /// Jobs by instance that are offered and not accepted yet. Only counted where `max_use_count` needs the numbers.
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

    /// Whether an agent has had its number of jobs. `offers` is of [`State::offers`].
    fn is_spent(&self, agent: &Agent, offers: &HashMap<&str, u32>) -> bool {
        let offered = offers.get(agent.record.instance.as_str()).copied().unwrap_or(0);
        self.max_use_count.is_some_and(|most| agent.record.builds.saturating_add(offered) >= most)
    }

    /// Jobs that an agent has or is asked to take.
    pub fn jobs_of(&self, instance: &str) -> usize {
        self.jobs.values().filter(|job| job.phase.instance() == Some(instance)).count()
    }

    /// Why an agent is to leave, if so: it was told, or it had its number of jobs.
    pub fn leave_reason(&mut self, instance: &str) -> Option<String> {
        let spent = self.agents.get(instance).is_some_and(|agent| self.is_spent(agent, &self.offers()));
        let agent = self.agents.get_mut(instance)?;
        if spent && agent.leave.is_none() {
            agent.leave = Some("max_use_count".to_owned());
        }
        if agent.leave.is_none() {
            agent.leave.clone_from(&self.retired);
        }
        agent.leave.clone()
    }

    /// The agent did not take the offer: the job is held again. False: it is no longer only offered.
    pub fn void(&mut self, job: &str, offer: &str) -> bool {
        match self.jobs.get_mut(job) {
            Some(job) if matches!(&job.phase, Phase::Offered(offered) if offered.id == offer) => {
                job.phase = Phase::Held;
                true
            }
            _ => false,
        }
    }

    /// The client of a request is gone: its offer is void. True if anything changed.
    pub fn gone(&mut self, ticket: Ticket) -> bool {
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

    /// An agent accepts a job. `Write`: [`State::accepted`] or [`State::not_accepted`] follows.
    pub fn accept(&mut self, instance: &str, job: &str, offer: &str, at: u64) -> Acceptance {
        let Some(job) = self.jobs.get_mut(job) else { return Acceptance::Void };
        match &job.phase {
            Phase::Offered(offered) if offered.id == offer && offered.instance == instance => {
                job.phase = Phase::Accepting(offered.clone());
                Acceptance::Write(Accepted { offer: offer.to_owned(), instance: instance.to_owned(), at })
            }
            Phase::Accepting(offered) if offered.id == offer && offered.instance == instance => Acceptance::UnderWay,
            Phase::Running { by, .. } if by.offer == offer && by.instance == instance => Acceptance::Known,
            _ => Acceptance::Void,
        }
    }

    /// The agent is about to accept: the offer holds a little longer. False: it is void.
    pub fn prolong(&mut self, instance: &str, job: &str, offer: &str, now: Instant) -> bool {
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

    /// An acceptance is written down. False: the instance was lost meanwhile, and the job fails.
    pub fn accepted(&mut self, job: &str, by: Accepted) -> bool {
        if let Some(agent) = self.agents.get_mut(&by.instance) {
            agent.record.builds += 1;
        }
        match self.jobs.get_mut(job) {
            Some(job) if matches!(job.phase, Phase::Accepting(_)) => {
                job.payload = None;
                job.has_run = true;
                job.phase = Phase::Running { by, stage: "accepted", missing: 0 };
                true
            }
            _ => false,
        }
    }

    /// An acceptance could not be written down: it did not happen.
    pub fn not_accepted(&mut self, job: &str) {
        if let Some(job) = self.jobs.get_mut(job)
            && matches!(job.phase, Phase::Accepting(_))
        {
            job.phase = Phase::Held;
        }
    }

    /// Takes a heartbeat in. `heard` is when it came.
    pub fn heartbeat(&mut self, instance: &str, reports: &[JobReport], ended: &[String], heard: Instant) -> Heard {
        let mut news = Heard::default();
        // An agent has no more jobs than it can run; what exceeds that would make the group grow for nothing.
        let capacity = self.agents.get(instance).map_or(0, |agent| agent.record.capacity as usize);
        let mut jobs = self.jobs_of(instance);
        for id in ended {
            if self.jobs.get(id).is_some_and(|job| job.is_run_by(instance)) {
                news.ended.push(id.clone());
            }
        }
        for report in reports {
            match self.jobs.get_mut(&report.id) {
                Some(Job { phase: Phase::Running { by, stage, missing }, .. }) if by.offer == report.offer => {
                    *stage = stage_of(&report.phase);
                    *missing = 0;
                }
                // The manager has forgotten the job and has not failed it yet.
                Some(Job { phase: Phase::Failing { attempts: 0, .. }, payload: None, .. }) => {
                    news.adopted.push(report.id.clone());
                }
                // Held again, or another's by now: what this agent does will be refused by GitLab.
                Some(_) => {}
                None if !ended.contains(&report.id) && jobs < capacity => {
                    jobs += 1;
                    news.adopted.push(report.id.clone());
                }
                None => {}
            }
        }
        for (id, job) in &mut self.jobs {
            if let Phase::Running { by, missing, .. } = &mut job.phase
                && by.instance == instance
                && !reports.iter().any(|report| report.id == *id)
                && !news.ended.contains(id)
            {
                *missing += 1;
                match *missing >= MISSING_MOST {
                    true => news.vanished.push(id.clone()),
                    false => news.lacks_jobs = true,
                }
            }
        }
        if let Some(agent) = self.agents.get_mut(instance) {
            agent.heard = heard;
        }
        news.leave = self.leave_reason(instance);
        news
    }

    /// Removes a job. Its agent becomes idle if that was its last job. Returns false if the job is unknown.
    pub fn remove(&mut self, id: &str, now: Instant) -> bool {
        let Some(job) = self.jobs.remove(id) else { return false };
        if let Some(instance) = job.phase.instance() {
            self.note_idle(instance, now);
        }
        true
    }

    /// An agent that has no job any more is idle from now on.
    pub fn note_idle(&mut self, instance: &str, now: Instant) {
        if self.jobs_of(instance) == 0
            && let Some(agent) = self.agents.get_mut(instance)
        {
            agent.idle_since = now;
        }
    }

    /// The job is to be failed at GitLab.
    pub fn fail(&mut self, id: &str, reason: FailureReason, why: String, line: String, now: Instant) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let instance = job.phase.instance().map(str::to_owned);
        job.phase = Phase::Failing { reason, why, line, since: now, attempts: 0 };
        job.keep_at = now;
        if let Some(instance) = instance {
            self.note_idle(&instance, now);
        }
    }

    /// Tells an idle agent to leave; the requests to answer with that. `None`: it is not idle, or not there.
    pub fn dismiss(&mut self, instance: &str, reason: &str) -> Option<Vec<Ticket>> {
        if self.jobs_of(instance) > 0 {
            return None;
        }
        self.agents.get_mut(instance)?.leave.get_or_insert_with(|| reason.to_owned());
        Some(self.take_waiters(instance))
    }

    /// Takes the requests of an agent off the list.
    pub fn take_waiters(&mut self, instance: &str) -> Vec<Ticket> {
        let (gone, stay): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiter| waiter.instance == instance);
        self.waiting = stay;
        gone.into_iter().map(|waiter| waiter.ticket).collect()
    }

    /// The number of jobs that may be requested in addition to the current ones.
    pub fn room(&self, limit: Option<u32>) -> u32 {
        if self.closed {
            return 0;
        }
        let offers = self.offers();
        let free = self.waiting.iter().filter(|waiter| {
            let agent = self.agents.get(&waiter.instance);
            agent.is_some_and(|agent| agent.leave.is_none() && !self.is_spent(agent, &offers))
        });
        let held = self.jobs.values().filter(|job| job.phase == Phase::Held).count();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let taken = count(held).saturating_add(self.polls);
        let room = count(free.count()).saturating_add(self.hold_budget).saturating_sub(taken);
        match limit {
            Some(limit) => room.min(limit.saturating_sub(self.in_hand().saturating_add(self.polls))),
            None => room,
        }
    }

    /// Jobs in hand, held and running.
    pub fn in_hand(&self) -> u32 {
        u32::try_from(self.jobs.len()).unwrap_or(u32::MAX)
    }

    /// Jobs and agents, for the scaler.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut jobs: HashMap<&str, Vec<JobView>> = HashMap::new();
        let mut busy: HashSet<&str> = HashSet::new();
        for (id, job) in &self.jobs {
            busy.extend(job.phase.instance());
            match &job.phase {
                Phase::Held | Phase::Offered(_) => snapshot.held += 1,
                Phase::Accepting(_) => snapshot.running += 1,
                Phase::Running { by, stage, .. } => {
                    snapshot.running += 1;
                    jobs.entry(&by.instance).or_default().push(JobView {
                        id: id.clone(),
                        project_url_or_name: job.project.clone(),
                        link: job.link.clone(),
                        since: SystemTime::UNIX_EPOCH + Duration::from_secs(by.at),
                        phase: stage,
                    });
                }
                Phase::Failing { .. } => {}
            }
        }
        snapshot.agents = self
            .agents
            .iter()
            .map(|agent| AgentView {
                instance: agent.record.instance.clone(),
                state: match &agent.leave {
                    Some(_) => AgentState::Leaving,
                    None if busy.contains(agent.record.instance.as_str()) => AgentState::Busy,
                    None => AgentState::Idle { since: agent.idle_since },
                },
                registered: SystemTime::UNIX_EPOCH + Duration::from_secs(agent.record.registered),
                version: agent.record.version.clone(),
                capacity: agent.record.capacity,
                builds: agent.record.builds,
                jobs: jobs.remove(agent.record.instance.as_str()).unwrap_or_default(),
                last_heard: agent.heard,
            })
            .collect();
        snapshot
    }
}

impl Phase {
    /// The instance that has the job, or is asked to take it.
    pub fn instance(&self) -> Option<&str> {
        match self {
            Self::Offered(offered) | Self::Accepting(offered) => Some(&offered.instance),
            Self::Running { by, .. } => Some(&by.instance),
            Self::Held | Self::Failing { .. } => None,
        }
    }
}

impl Job {
    fn is_run_by(&self, instance: &str) -> bool {
        matches!(&self.phase, Phase::Running { by, .. } if by.instance == instance)
    }
}

fn stage_of(phase: &str) -> &'static str {
    ["preparing", "script", "finishing"].into_iter().find(|known| *known == phase).unwrap_or("accepted")
}
