//! Permits for polls and slots for jobs: `concurrent`, `limit`, `request_concurrency` and `MaxBuilds`. All limits are
//! checked *before* a request is sent, so that the agent never receives a job that it cannot run at once.

mod idle_clock;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use self::idle_clock::{Clock, IdleClock};
use crate::config::Runner;
use crate::coordinator::source::PollMode;
use crate::sync;
use crate::sys;

/// Identifies a runner on this instance. The journal has only the short form of a runner's token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunnerKey {
    /// The URL of GitLab.
    pub url: String,
    /// The short form of the runner's token.
    pub short_token: String,
}

impl RunnerKey {
    /// The key of this runner.
    pub fn new(runner: &Runner) -> Self {
        Self { url: runner.url.clone(), short_token: runner.token.short() }
    }
}

/// The limits of one runner.
#[derive(Clone, Copy, Debug)]
pub struct RunnerBounds {
    /// Concurrent jobs; `None` for no limit.
    pub limit: Option<u32>,
    /// Concurrent requests, at least 1.
    pub requests: u32,
    /// `FF_USE_ADAPTIVE_REQUEST_CONCURRENCY`: start with one request and adapt to the results.
    pub adaptive: bool,
}

/// The running jobs and the requests in flight on this instance.
pub struct Slots {
    state: Mutex<SlotState>,
    changed: Condvar,
}

struct SlotState {
    /// Concurrent jobs over all runners.
    concurrent: u32,
    /// By slot number: true if the slot holds a job or a request.
    taken: Vec<bool>,
    /// Jobs that the agent may take in total (`MaxBuilds`).
    max_builds: Option<u32>,
    /// Jobs taken, plus requests in flight.
    builds: u32,
    runners: HashMap<RunnerKey, Usage>,
    /// Pollers that wait for a permit, in the order of arrival.
    queue: Vec<QueueEntry>,
    next_queue_number: u64,
    /// Running jobs.
    jobs: u32,
    /// Runners that poll.
    polling_runners: u32,
    idle: IdleClock,
    /// Whether requests are stopped permanently.
    closed: bool,
    /// Whether requests are stopped for now; the idle time does not advance.
    paused: bool,
}

struct Usage {
    requests: u32,
    jobs: u32,
    /// The current limit of concurrent requests, adapted to recent results.
    request_limit: f64,
}

impl Default for Usage {
    fn default() -> Self {
        Self { requests: 0, jobs: 0, request_limit: 1.0 }
    }
}

/// The result of a request, which adapts the number of concurrent requests (as gitlab-runner does).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The request returned a job.
    Job,
    /// The request returned no job.
    NoJob,
    /// GitLab is overloaded or down.
    Overloaded,
}

impl RequestOutcome {
    fn factor(self) -> f64 {
        match self {
            Self::Job => 1.1,
            Self::NoJob => 0.95,
            Self::Overloaded => 0.5,
        }
    }
}

struct QueueEntry {
    number: u64,
    key: RunnerKey,
    bounds: RunnerBounds,
}

/// The right to send one request, with the slot for its job.
pub struct Permit {
    slots: Arc<Slots>,
    key: RunnerKey,
    /// Number of the slot.
    pub slot: usize,
    /// Whether more runners poll than slots are free.
    is_contended: bool,
    occupant: Occupant,
}

/// What occupies the slot of a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupant {
    Request,
    Job,
}

impl Slots {
    /// Creates slots for `concurrent` jobs; earlier agents have taken `builds` jobs. Idle time is measured with
    /// `CLOCK_MONOTONIC`: it ignores changes of the time of day, and sleep of the machine, during which the agent
    /// cannot poll.
    pub fn new(concurrent: u32, max_builds: Option<u32>, builds: u32) -> Arc<Self> {
        Self::with_clock(concurrent, max_builds, builds, Box::new(sys::monotonic))
    }

    /// As [`Slots::new`], with another clock for tests.
    pub fn with_clock(concurrent: u32, max_builds: Option<u32>, builds: u32, clock: Clock) -> Arc<Self> {
        let state = SlotState {
            concurrent,
            taken: vec![false; concurrent as usize],
            max_builds,
            builds,
            runners: HashMap::new(),
            queue: Vec::new(),
            next_queue_number: 0,
            jobs: 0,
            polling_runners: 0,
            idle: IdleClock::start(clock),
            closed: false,
            paused: false,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Waits until the runner may send a request. Returns `None` if the slots are closed or `cancelled` returns true;
    /// after making it true, call [`Slots::wake`].
    pub fn acquire(
        self: &Arc<Self>,
        key: &RunnerKey,
        bounds: RunnerBounds,
        cancelled: impl Fn() -> bool,
    ) -> Option<Permit> {
        let mut state = self.lock();
        let number = state.next_queue_number;
        state.next_queue_number += 1;
        state.queue.push(QueueEntry { number, key: key.clone(), bounds });
        loop {
            if state.closed || cancelled() {
                state.queue.retain(|entry| entry.number != number);
                // The next poller in the queue may be eligible now.
                self.changed.notify_all();
                return None;
            }
            if state.first_eligible() == Some(number) {
                break;
            }
            state = sync::wait(&self.changed, state);
        }
        state.queue.retain(|entry| entry.number != number);
        let slot = state.take_slot();
        let is_contended = state.concurrent.saturating_sub(state.jobs) < state.polling_runners;
        state.runners.entry(key.clone()).or_default().requests += 1;
        self.changed.notify_all();
        Some(Permit { slots: Arc::clone(self), key: key.clone(), slot, is_contended, occupant: Occupant::Request })
    }

    /// Adapts the number of concurrent requests to the outcome of one.
    pub fn adapt_requests(&self, key: &RunnerKey, bounds: RunnerBounds, outcome: RequestOutcome) {
        let mut state = self.lock();
        let usage = state.runners.entry(key.clone()).or_default();
        usage.request_limit = (usage.request_limit * outcome.factor()).clamp(1.0, f64::from(bounds.requests.max(1)));
        self.changed.notify_all();
    }

    /// Occupies the slot of a job from the journal.
    pub fn occupy(self: &Arc<Self>, key: RunnerKey, slot: usize) -> Permit {
        let mut state = self.lock();
        if state.taken.len() <= slot {
            state.taken.resize(slot + 1, false);
        }
        state.taken[slot] = true;
        state.jobs += 1;
        state.idle.stop();
        state.runners.entry(key.clone()).or_default().jobs += 1;
        Permit { slots: Arc::clone(self), key, slot, is_contended: false, occupant: Occupant::Job }
    }

    /// Changes `concurrent`; running jobs keep their slots.
    pub fn set_concurrent(&self, concurrent: u32) {
        self.lock().concurrent = concurrent;
        self.changed.notify_all();
    }

    /// Changes `MaxBuilds`.
    pub fn set_max_builds(&self, max_builds: Option<u32>) {
        self.lock().max_builds = max_builds;
        self.changed.notify_all();
    }

    /// Sets the number of runners that poll.
    pub fn set_polling_runners(&self, runners: u32) {
        self.lock().polling_runners = runners;
    }

    /// Stops requests. Those in flight still complete.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Allows requests again, and restarts the idle time.
    pub fn open(&self) {
        let mut state = self.lock();
        state.closed = false;
        state.start_idle_clock();
        self.changed.notify_all();
    }

    /// Stops requests for now. Those in flight still complete, and the idle time does not advance.
    pub fn pause(&self) {
        let mut state = self.lock();
        state.paused = true;
        state.idle.stop();
    }

    /// Ends a pause.
    pub fn unpause(&self) {
        let mut state = self.lock();
        if std::mem::take(&mut state.paused) && state.jobs == 0 {
            state.idle.resume();
        }
        self.changed.notify_all();
    }

    /// Wakes all waiting pollers to check `cancelled`.
    pub fn wake(&self) {
        // Notifying under the lock ensures that no poller is between its check and its wait, where it would miss the
        // notification.
        let _state = self.lock();
        self.changed.notify_all();
    }

    /// Number of running jobs.
    pub fn jobs(&self) -> u32 {
        self.lock().jobs
    }

    /// Number of requests in flight.
    pub fn requests(&self) -> u32 {
        self.lock().runners.values().map(|usage| usage.requests).sum()
    }

    /// True if no job runs and no request is in flight.
    pub fn is_idle(&self) -> bool {
        let state = self.lock();
        state.jobs == 0 && state.runners.values().all(|usage| usage.requests == 0)
    }

    /// True once `MaxBuilds` jobs were taken.
    pub fn are_builds_used_up(&self) -> bool {
        let state = self.lock();
        state.are_builds_used_up() && state.runners.values().all(|usage| usage.requests == 0)
    }

    /// True if a job was taken on this instance, by this agent or an earlier one.
    pub fn has_had_job(&self) -> bool {
        let state = self.lock();
        let requests: u32 = state.runners.values().map(|usage| usage.requests).sum();
        state.builds > requests
    }

    /// Jobs that may still be taken; `None` without `MaxBuilds`.
    pub fn builds_left(&self) -> Option<u32> {
        let state = self.lock();
        state.max_builds.map(|most| most.saturating_sub(state.builds))
    }

    /// The idle time; `None` while a job runs.
    pub fn idle_for(&self) -> Option<Duration> {
        let state = self.lock();
        (state.jobs == 0).then(|| state.idle.elapsed())
    }

    /// True if a request has returned without a job since the last job, or if no runner polls.
    pub fn has_polled(&self) -> bool {
        let state = self.lock();
        state.idle.has_polled() || state.polling_runners == 0
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        sync::lock(&self.state)
    }
}

impl SlotState {
    /// The first poller in the queue that may send a request.
    fn first_eligible(&self) -> Option<u64> {
        let in_use = self.taken.iter().filter(|taken| **taken).count() as u32;
        if in_use >= self.concurrent || self.are_builds_used_up() || self.paused {
            return None;
        }
        self.queue.iter().find(|entry| self.is_within(&entry.key, entry.bounds)).map(|entry| entry.number)
    }

    fn is_within(&self, key: &RunnerKey, bounds: RunnerBounds) -> bool {
        let Some(usage) = self.runners.get(key) else { return true };
        let requests = if bounds.adaptive { usage.request_limit.ceil() as u32 } else { bounds.requests };
        usage.requests < requests && bounds.limit.is_none_or(|limit| usage.requests + usage.jobs < limit)
    }

    fn are_builds_used_up(&self) -> bool {
        self.max_builds.is_some_and(|most| self.builds >= most)
    }

    fn start_idle_clock(&mut self) {
        self.idle.reset();
        if self.jobs == 0 && !self.paused {
            self.idle.resume();
        }
    }

    fn take_slot(&mut self) -> usize {
        // A request counts as a build until it returns no job.
        self.builds += 1;
        let free = self.taken.iter().position(|taken| !taken).unwrap_or_else(|| {
            self.taken.push(false);
            self.taken.len() - 1
        });
        self.taken[free] = true;
        free
    }
}

impl Permit {
    /// The mode of the request.
    pub fn poll_mode(&self) -> PollMode {
        PollMode::for_contention(self.is_contended)
    }

    /// Turns the request into a job, which occupies the slot until the permit is dropped.
    pub fn begin_job(&mut self) {
        let mut state = self.slots.lock();
        self.occupant = Occupant::Job;
        state.jobs += 1;
        state.idle.stop();
        let usage = state.runners.entry(self.key.clone()).or_default();
        usage.requests = usage.requests.saturating_sub(1);
        usage.jobs += 1;
        self.slots.changed.notify_all();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        state.taken[self.slot] = false;
        let usage = state.runners.entry(self.key.clone()).or_default();
        if self.occupant == Occupant::Request {
            usage.requests = usage.requests.saturating_sub(1);
            state.builds = state.builds.saturating_sub(1);
            if state.jobs == 0 {
                state.idle.record_poll();
            }
        } else {
            usage.jobs = usage.jobs.saturating_sub(1);
            state.jobs -= 1;
            if state.jobs == 0 {
                state.start_idle_clock();
            }
        }
        self.slots.changed.notify_all();
    }
}
