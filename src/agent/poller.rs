//! A thread that polls for the jobs of one runner: it acquires a permit, sends the request, and starts the job in
//! another thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::AgentEvent;
use super::contexts::OfferContexts;
use super::fitness::{self, FitnessCheck};
use super::job_manager::JobManager;
use super::offers::OfferedJob;
use super::server::RunnerServer;
use super::slots::{Permit, RequestOutcome, RunnerBounds, RunnerKey, Slots};
use crate::config::Runner;
use crate::coordinator::gitlab::ServerHealth;
use crate::coordinator::manager::protocol::Offer;
use crate::coordinator::source::{JobRequest, JobSource, PollOutcome};
use crate::job::context::RunnerContext;
use crate::monitor::metrics::{self, PollResult, RunnerLabels};
use crate::payload::{self, Undecodable};
use crate::sync;

/// The feature flag that adapts the number of concurrent requests to their results; on by default.
const ADAPTIVE: &str = "FF_USE_ADAPTIVE_REQUEST_CONCURRENCY";

/// The longest pause of a rejected runner whose token is stored in AWS.
const STORED_TOKEN_PAUSE_MAX: Duration = Duration::from_secs(120);

/// The pollers of one configuration; a reload creates a new set.
#[derive(Default)]
pub struct PollerSet {
    stopped: AtomicBool,
    lock: Mutex<()>,
    woken: Condvar,
}

impl PollerSet {
    /// Stops the pollers. Requests in flight still complete.
    pub fn stop(&self, slots: &Slots) {
        {
            let _guard = sync::lock(&self.lock);
            self.stopped.store(true, Ordering::SeqCst);
            self.woken.notify_all();
        }
        slots.wake();
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Waits for `duration`, or until the set is stopped.
    fn wait(&self, duration: Duration) {
        let guard = sync::lock(&self.lock);
        drop(self.woken.wait_timeout_while(guard, duration, |()| !self.is_stopped()));
    }
}

/// Polls for the jobs of one runner.
pub struct Poller {
    pub runner: Arc<Runner>,
    pub server: Arc<RunnerServer>,
    /// The context of the runner's jobs.
    pub context: RunnerContext,
    /// The contexts of jobs that a manager offers.
    pub offers: Arc<OfferContexts>,
    /// Interval between two requests.
    pub check_interval: Duration,
    /// The set that this poller belongs to.
    pub pollers: Arc<PollerSet>,
    /// The slots of the instance.
    pub slots: Arc<Slots>,
    /// Accepts the jobs.
    pub jobs: Arc<JobManager>,
    /// Receives [`AgentEvent::Changed`] after each request.
    pub events: Sender<AgentEvent>,
    /// Runs before each request.
    pub fitness_check: FitnessCheck,
    /// System failures in a row before the runner pauses.
    pub max_system_failures: Option<u32>,
    /// Receives the result of the fitness check.
    pub status: Arc<fitness::FitnessStatus>,
}

impl Poller {
    /// Starts the thread. Errors: no thread can be created.
    pub fn start(self) -> std::io::Result<()> {
        let name = format!("poll-{}", self.runner.token.short());
        sync::spawn(name, super::STACK, move || self.run())?;
        Ok(())
    }

    fn run(mut self) {
        let key = RunnerKey::of(&self.runner);
        let adaptive = self.runner.feature_flags.get(ADAPTIVE).copied().unwrap_or(true);
        let bounds = RunnerBounds { limit: self.runner.limit, requests: self.runner.request_concurrency, adaptive };
        let mut health = ServerHealth::new(self.runner.unhealthy_requests_limit, self.runner.unhealthy_interval);
        let pollers = Arc::clone(&self.pollers);
        while let Some(permit) = self.slots.acquire(&key, bounds, || pollers.is_stopped()) {
            let rest = match self.check_fitness() {
                true => {
                    let (outcome, rest) = self.poll(permit, &mut health);
                    self.slots.adapt_requests(&key, bounds, outcome);
                    rest
                }
                false => {
                    drop(permit);
                    fitness::RECHECK_INTERVAL
                }
            };
            // The main loop may wait until this poller's last request has ended.
            let _ = self.events.send(AgentEvent::Changed);
            pollers.wait(rest);
        }
    }

    /// Whether the machine is fit for a job of this runner.
    fn check_fitness(&mut self) -> bool {
        let runner_labels = RunnerLabels::from(&*self.runner);
        let awaited_user = self.status.awaits_user(&runner_labels);
        let looked = self
            .jobs
            .failures()
            .check(&runner_labels, self.max_system_failures)
            .and_then(|()| self.fitness_check.run());
        self.status.set(&runner_labels, &looked);
        if let Some(manager) = self.server.manager() {
            match &looked {
                Ok(()) => manager.jobs().set_fit(),
                Err(_) => manager.jobs().set_unfit(),
            }
        }
        if looked.is_ok() && awaited_user {
            // The user may have another id now; a reload looks it up again.
            let _ = self.events.send(AgentEvent::ConfigurationChanged);
            return false;
        }
        looked.is_ok()
    }

    /// Sends one request and starts the job that it returns. Returns the outcome and the wait before the next request.
    fn poll(&self, permit: Permit, health: &mut ServerHealth) -> (RequestOutcome, Duration) {
        let request =
            JobRequest { token: &self.runner.token, system_id: &self.context.system_id, mode: permit.poll_mode() };
        let began = Instant::now();
        let polled = self.server.request_job(&request);
        let mut outcome = RequestOutcome::NoJob;
        let mut rest = self.check_interval.max(polled.wait);
        let name = &self.runner.name;
        let (runner_labels, mut paused) = (RunnerLabels::from(&*self.runner), false);
        metrics::polled(&runner_labels, poll_metric(&polled.outcome));
        match polled.outcome {
            PollOutcome::Job { payload, request_id, offer } => {
                health.healthy();
                if self.take(permit, payload, request_id, offer) {
                    outcome = RequestOutcome::Job;
                    if !self.runner.strict_check_interval {
                        rest = Duration::ZERO;
                    }
                }
            }
            PollOutcome::NoJob => {
                health.healthy();
                // A manager offers jobs only to agents whose request it holds (long poll). After such a poll the next
                // one follows without `check_interval`.
                if self.server.manager().is_some() && began.elapsed() >= self.check_interval {
                    rest = polled.wait;
                }
            }
            PollOutcome::Leave(reason) => {
                health.healthy();
                let _ = self.events.send(AgentEvent::ManagerRequest(reason));
            }
            // `RunnerServer` has already handled this outcome: it switched to the manager's client and polled again.
            PollOutcome::IsManager => {}
            PollOutcome::Failed(why) => {
                health.healthy();
                log::warn!("poll failed; retrying runner={name} error={why}");
            }
            PollOutcome::Refused(why) | PollOutcome::Misconfigured(why) => {
                let is_managed = self.server.manager().is_some();
                match is_managed {
                    true => log::error!("the manager rejected the agent runner={name} error={why}"),
                    false => {
                        log::error!(
                            "GitLab rejected the runner; check it with `mayfly verify` runner={name} error={why}"
                        );
                    }
                }
                let is_stored = self.runner.token_reference.is_some();
                if is_stored {
                    let _ = self.events.send(AgentEvent::StoredTokenRejected);
                }
                if let Some(pause) = health.unhealthy() {
                    // The new token may appear in the store after GitLab has revoked the old one.
                    let pause = if is_stored || is_managed { pause.min(STORED_TOKEN_PAUSE_MAX) } else { pause };
                    log::error!("rejected too often; polling paused runner={name} seconds={}", pause.as_secs());
                    rest = pause;
                    paused = true;
                }
            }
        }
        metrics::set_paused(&runner_labels, paused);
        (if polled.server_overloaded { RequestOutcome::Overloaded } else { outcome }, rest)
    }
}

impl Poller {
    /// Accepts a job with its context: the runner's own, or that of the pool for a job from a manager. Returns false if
    /// nothing was accepted.
    fn take(&self, permit: Permit, payload: Vec<u8>, request_id: String, offer: Option<Box<Offer>>) -> bool {
        let Some((offer, manager)) = offer.zip(self.server.manager()) else {
            return self.jobs.accept(permit, self.context.clone(), payload, request_id, None);
        };
        let offered = OfferedJob {
            source: Arc::clone(&self.server),
            manager: manager.url().to_owned(),
            jobs: Arc::clone(manager.jobs()),
            offer: *offer,
        };
        match self.offers.of(&offered.offer) {
            Ok(context) => self.jobs.accept(permit, context, payload, request_id, Some(offered)),
            Err(why) => {
                let why = format!("the pool's settings cannot be used on this instance: {why}");
                log::error!("cannot run the offered job runner={} error={why}", self.runner.name);
                let job = match payload::decode(&payload) {
                    Ok(payload) => payload.handle(),
                    Err(Undecodable { job: Some(job), .. }) => job,
                    Err(Undecodable { job: None, .. }) => return false,
                };
                match self.offers.bare(&offered.offer, &self.context) {
                    Ok(context) => self.jobs.fail_received(permit, context, job, &why, Some(offered)),
                    // The manager offers the job to another agent.
                    Err(why) => log::error!("cannot fail the offered job runner={} error={why}", self.runner.name),
                }
                true
            }
        }
    }
}

/// The outcome, as counted by the metrics.
fn poll_metric(outcome: &PollOutcome) -> PollResult {
    match outcome {
        PollOutcome::Job { .. } => PollResult::Job,
        PollOutcome::NoJob | PollOutcome::Leave(_) => PollResult::Nothing,
        PollOutcome::Failed(_) | PollOutcome::IsManager => PollResult::Failed,
        PollOutcome::Refused(_) | PollOutcome::Misconfigured(_) => PollResult::Refused,
    }
}
