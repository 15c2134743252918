//! The broker of a pool: polls GitLab for jobs, holds them, hands each to one agent, and tracks its result.
//!
//! [`state`] decides, under one lock; this module executes the decisions. No request to an agent or to GitLab is sent
//! under the lock.

mod agents;
mod bell;
mod ending;
mod job;
mod job_limit;
mod keeper;
mod log_line;
mod offers;
mod register;
mod reports;
mod restore;
mod snapshot;
pub mod state;
mod taker;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bell::Bell;
use job::{CommitState, Phase, PoolJob};
pub use job_limit::JobLimit;
use state::PoolState;

use super::held::HeldJobs;
use super::pool::PoolSettings;
use super::server::{Responder, Ticket};
use super::status::StatusBoard;
use super::store::Store;
use super::store::records::{Records, StoreEvent};
use super::workload::{Snapshot, Workload};
use crate::coordinator::gitlab::GitLab;
use crate::failure::FailureReason;
use crate::sync;

pub use ending::REMOVED;
pub use register::{Admission, RegistrationError};

/// The stack of threads that send requests to GitLab.
const STACK: usize = 512 * 1024;
/// The stack of small threads.
const SMALL_STACK: usize = 128 * 1024;
/// The timeout of a wait that normally ends with a ring of the bell.
const LONG_WAIT: Duration = Duration::from_secs(3600);

/// A pool's broker.
pub struct Broker {
    /// The pool's name.
    pub name: String,
    settings: RwLock<Arc<PoolSettings>>,
    gitlab: RwLock<Arc<GitLab>>,
    /// The id by which GitLab identifies this manager.
    system_id: String,
    store: Arc<Store>,
    job_limit: Arc<JobLimit>,
    responder: Arc<dyn Responder>,
    board: Arc<StatusBoard>,
    held: Arc<HeldJobs>,
    on_rejected: Arc<dyn Fn() + Send + Sync>,
    state: Mutex<PoolState>,
    /// Wakes the threads of the broker.
    bell: Arc<Bell>,
    /// Wakes the scaler after a change of jobs or agents. Polls of agents do not wake it: with a thousand agents there
    /// are twenty of them per second.
    changes: Bell,
    /// The number of changes that the scaler has processed.
    seen_changes: Mutex<u64>,
    /// The number of concurrent polls, which follows the results of the polls.
    poll_pace: Mutex<f64>,
    stopped: AtomicBool,
    released: AtomicBool,
}

/// The state that the brokers of all pools share.
#[derive(Clone)]
pub struct BrokerContext {
    /// The id by which GitLab identifies this manager.
    pub system_id: String,
    /// The durable state.
    pub store: Arc<Store>,
    /// `concurrent` and the jobs that count for it.
    pub job_limit: Arc<JobLimit>,
    /// Sends the responses of waiting requests.
    pub responder: Arc<dyn Responder>,
    /// The data of the status page.
    pub board: Arc<StatusBoard>,
    /// The second record of held jobs, outside of the state directory.
    pub held: Arc<HeldJobs>,
    /// Called when GitLab rejects a runner's token.
    pub on_rejected: Arc<dyn Fn() + Send + Sync>,
}

impl Broker {
    /// A broker with the records of its pool from the store. It does not poll before [`Broker::start`].
    pub fn new(
        settings: Arc<PoolSettings>,
        gitlab: Arc<GitLab>,
        shared: &BrokerContext,
        records: &Records,
    ) -> Arc<Self> {
        let bell = Arc::new(Bell::default());
        shared.job_limit.register(&bell);
        let broker = Self {
            name: settings.name.clone(),
            system_id: shared.system_id.clone(),
            store: Arc::clone(&shared.store),
            job_limit: Arc::clone(&shared.job_limit),
            responder: Arc::clone(&shared.responder),
            board: Arc::clone(&shared.board),
            held: Arc::clone(&shared.held),
            on_rejected: Arc::clone(&shared.on_rejected),
            state: Mutex::new(PoolState { max_use_count: settings.max_use_count, ..PoolState::default() }),
            settings: RwLock::new(settings),
            gitlab: RwLock::new(gitlab),
            bell,
            changes: Bell::default(),
            seen_changes: Mutex::new(0),
            poll_pace: Mutex::new(1.0),
            stopped: AtomicBool::new(false),
            released: AtomicBool::new(false),
        };
        broker.restore(records);
        Arc::new(broker)
    }

    /// Starts the threads. Errors: the system can create no more threads.
    pub fn start(self: &Arc<Self>) -> std::io::Result<()> {
        self.start_polling_threads()?;
        self.spawn("keep", STACK, Self::keep_jobs)?;
        self.spawn("clock", SMALL_STACK, |broker| broker.watch_clock())
    }

    fn spawn(self: &Arc<Self>, name: &str, stack: usize, work: fn(&Arc<Self>)) -> std::io::Result<()> {
        let broker = Arc::clone(self);
        sync::spawn(name, stack, move || work(&broker)).map(drop)
    }

    /// Adjusts the number of polling threads to `request_concurrency`. Surplus threads end after their current poll.
    fn start_polling_threads(self: &Arc<Self>) -> std::io::Result<()> {
        let wanted = self.settings().max_polls();
        loop {
            let mut state = self.lock();
            if state.polling_threads >= wanted {
                return Ok(());
            }
            state.polling_threads += 1;
            drop(state);
            if let Err(error) = self.spawn("take", STACK, |broker| broker.poll_for_jobs()) {
                self.lock().polling_threads -= 1;
                return Err(error);
            }
        }
    }

    /// Applies new settings (reload).
    pub fn reconfigure(self: &Arc<Self>, settings: Arc<PoolSettings>, gitlab: Arc<GitLab>) {
        let has_new_token = self.settings().runner.token != settings.runner.token;
        let has_new_capacity = self.settings().capacity_per_instance != settings.capacity_per_instance;
        self.lock().apply_settings(&settings);
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
        *self.gitlab.write().unwrap_or_else(PoisonError::into_inner) = gitlab;
        if has_new_token {
            self.record_held_again();
        }
        if has_new_capacity {
            // Waiting agents learn the new capacity from the response.
            let waiting = std::mem::take(&mut self.lock().waiting);
            for waiter in waiting {
                self.responder.respond(waiter.ticket, self.stay_response());
            }
        }
        if let Err(error) = self.start_polling_threads() {
            log::error!(
                "cannot start a thread that polls GitLab; fewer polls run than configured pool={} error={error}",
                self.name
            );
        }
        self.bell.ring();
    }

    /// The record of held jobs is encrypted with the runner's token, which has changed.
    fn record_held_again(&self) {
        let token = &self.settings().runner.token;
        let state = self.lock();
        let is_recorded = |job: &PoolJob| job.commit != CommitState::Unknown || !job.trace.is_empty();
        let held = state.jobs.iter().filter(|(_, job)| job.phase == Phase::Held && is_recorded(job));
        let held: Vec<_> = held.map(|(id, job)| (id.clone(), job.handle.token.clone())).collect();
        drop(state);
        for (id, job) in held {
            self.held.remove(&self.name, &id);
            self.held.add(&self.name, &id, token, &job);
        }
    }

    /// Wakes the broker's threads and the scaler after a change of jobs or agents.
    fn changed(&self) {
        self.bell.ring();
        self.changes.ring();
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<PoolSettings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn gitlab(&self) -> Arc<GitLab> {
        Arc::clone(&self.gitlab.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the threads of the broker.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.bell.ring();
    }

    fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        sync::lock(&self.state)
    }

    /// Fails a job at GitLab, if necessary after a restart of the manager. If it is called twice, the first reason
    /// counts.
    fn fail(&self, id: &str, reason: FailureReason, why: &str) {
        let mut state = self.lock();
        let is_failing = |job: &&PoolJob| matches!(job.phase, Phase::Failing { .. });
        let Some(job) = state.jobs.get(id).filter(|job| !is_failing(job)) else { return };
        let line = job.line_format.failure_line(why);
        // Written before the keeper sends the line, and under the lock: a manager that takes over must send the same
        // line.
        let (pool, id) = (self.name.clone(), id.to_owned());
        self.note(StoreEvent::Failed { pool, id: id.clone(), why: why.to_owned(), line: line.clone() });
        state.fail(&id, reason, why.to_owned(), line, Instant::now());
        drop(state);
        log::warn!("failing the job pool={} job={id} reason={} error={why}", self.name, reason.as_str());
        self.changed();
    }

    /// Removes a job that has ended, or that no longer belongs to the manager.
    fn forget(&self, id: &str) {
        self.held.remove(&self.name, id);
        self.note(StoreEvent::JobGone { pool: self.name.clone(), id: id.to_owned() });
        if self.lock().remove(id, Instant::now()) {
            self.job_limit.release();
        }
        self.changed();
    }

    fn send_order_to_leave(&self, polls: Vec<Ticket>, reason: &str) {
        for ticket in polls {
            self.responder.respond(ticket, offers::leave_response(reason));
        }
    }

    /// Writes a change that need not survive a loss of power.
    fn note(&self, event: StoreEvent) {
        if let Err(error) = self.store.write(event) {
            log::error!("cannot write the manager's state pool={} error={error}", self.name);
        }
    }
}

impl Workload for Broker {
    fn snapshot(&self) -> Snapshot {
        self.lock().snapshot()
    }

    fn dismiss(&self, instance: &str, reason: &str) -> bool {
        let Some(tickets) = self.lock().dismiss(instance, reason) else { return false };
        log::info!("agent ordered to shut down pool={} instance={instance} reason={reason}", self.name);
        self.send_order_to_leave(tickets, reason);
        self.changed();
        true
    }

    fn close_instance(&self, instance: &str, reason: &str, decided_at: Instant) -> bool {
        let Some(tickets) = self.lock().close_instance(instance, reason, decided_at) else { return false };
        self.send_order_to_leave(tickets, reason);
        true
    }

    fn lost(&self, instance: &str) {
        let why = format!("instance {instance} was terminated while it had this job");
        self.remove_agent(instance, &why);
    }

    fn set_hold_budget(&self, jobs: u32) {
        let changed = {
            let mut state = self.lock();
            std::mem::replace(&mut state.hold_budget, jobs) != jobs
        };
        if changed {
            self.bell.ring();
        }
    }

    fn wait_for_change(&self, timeout: Duration) {
        let seen = *sync::lock(&self.seen_changes);
        let now = self.changes.wait_past(seen, timeout);
        *sync::lock(&self.seen_changes) = now;
    }

    fn wake(&self) {
        self.changes.ring();
    }

    fn set_members(&self, members: &[String]) {
        let members: HashSet<String> = members.iter().cloned().collect();
        self.lock().members = Some(members);
    }
}
