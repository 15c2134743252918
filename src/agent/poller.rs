//! A thread that polls for the jobs of one runner: it acquires a permit, sends the request, and starts the job in
//! another thread.

use std::sync::Arc;
use std::sync::mpsc::Sender;
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
use crate::sync::{self, StopSignal};

/// The feature flag that adapts the number of concurrent requests to their results; on by default.
const ADAPTIVE_FLAG: &str = "FF_USE_ADAPTIVE_REQUEST_CONCURRENCY";

/// The longest pause of a rejected runner whose token is stored in AWS, or that a manager rejects.
const MAX_STORED_TOKEN_PAUSE: Duration = Duration::from_secs(120);

/// The pollers of one configuration; a reload creates a new set.
#[derive(Default)]
pub struct PollerSet(StopSignal);

impl PollerSet {
    /// Stops the pollers. Requests in flight still complete.
    pub fn stop(&self, slots: &Slots) {
        self.0.stop();
        slots.wake();
    }

    pub fn is_stopped(&self) -> bool {
        self.0.is_set()
    }

    /// Waits for `duration`, or until the set is stopped.
    fn wait(&self, duration: Duration) {
        self.0.wait(duration);
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
    /// Receives [`AgentEvent::Recheck`] after each request.
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
        let key = RunnerKey::new(&self.runner);
        let adaptive = self.runner.feature_flags.get(ADAPTIVE_FLAG).copied().unwrap_or(true);
        let bounds = RunnerBounds { limit: self.runner.limit, requests: self.runner.request_concurrency, adaptive };
        let mut health = ServerHealth::new(self.runner.unhealthy_requests_limit, self.runner.unhealthy_interval);
        let pollers = Arc::clone(&self.pollers);
        while let Some(permit) = self.slots.acquire(&key, bounds, || pollers.is_stopped()) {
            let is_fit = self.check_fitness();
            let wait = if pollers.is_stopped() {
                // A shutdown or a reload may have begun during the check, which may take seconds. A job of a new request
                // would delay the shutdown, or run with the old settings.
                drop(permit);
                Duration::ZERO
            } else if is_fit {
                let (outcome, wait) = self.poll(permit, &mut health);
                self.slots.adapt_requests(&key, bounds, outcome);
                wait
            } else {
                drop(permit);
                fitness::RECHECK_INTERVAL
            };
            // The main loop may wait until this poller's last request has ended.
            let _ = self.events.send(AgentEvent::Recheck);
            pollers.wait(wait);
        }
    }

    /// Whether the machine is fit for a job of this runner.
    fn check_fitness(&mut self) -> bool {
        let runner_labels = RunnerLabels::from(&*self.runner);
        let awaited_user = self.status.awaits_user(&runner_labels);
        let fitness = self
            .jobs
            .failures()
            .check(&runner_labels, self.max_system_failures)
            .and_then(|()| self.fitness_check.run());
        self.status.set(&runner_labels, &fitness);
        if let Some(manager) = self.server.manager() {
            match &fitness {
                Ok(()) => manager.jobs().set_fit(),
                Err(_) => manager.jobs().set_unfit(),
            }
        }
        if fitness.is_ok() && awaited_user {
            // The user may have another id now; a reload looks it up again.
            let _ = self.events.send(AgentEvent::ConfigurationChanged);
            return false;
        }
        fitness.is_ok()
    }

    /// Sends one request and starts the job that it returns. Returns the outcome and the wait before the next request.
    fn poll(&self, permit: Permit, health: &mut ServerHealth) -> (RequestOutcome, Duration) {
        let request =
            JobRequest { token: &self.runner.token, system_id: &self.context.system_id, mode: permit.poll_mode() };
        let began = Instant::now();
        let response = self.server.request_job(&request);
        let runner = RunnerLabels::from(&*self.runner);
        metrics::polled(&runner, poll_metric(&response.outcome));
        let pause = match &response.outcome {
            PollOutcome::Refused(why) | PollOutcome::Misconfigured(why) => self.handle_rejection(why, health),
            _ => {
                health.record_healthy();
                None
            }
        };
        // After a reload, the new pollers of the runner do not pause.
        if !self.pollers.is_stopped() {
            metrics::set_paused(&runner, pause.is_some());
        }
        let interval = self.check_interval.max(response.wait);
        let (outcome, wait) = match response.outcome {
            PollOutcome::Job { payload, request_id, offer } => {
                let outcome = self.take_job(permit, payload, request_id, offer);
                let is_next_due = outcome == RequestOutcome::Job && !self.runner.strict_check_interval;
                (outcome, if is_next_due { Duration::ZERO } else { interval })
            }
            // A manager offers jobs only to agents whose request it holds (long poll). After such a poll the next one
            // follows without `check_interval`.
            PollOutcome::NoJob if self.server.manager().is_some() && began.elapsed() >= self.check_interval => {
                (RequestOutcome::NoJob, response.wait)
            }
            PollOutcome::Leave(reason) => {
                let _ = self.events.send(AgentEvent::ManagerRequest(reason));
                (RequestOutcome::NoJob, interval)
            }
            PollOutcome::Failed(why) => {
                log::warn!("poll failed; retrying runner={} error={why}", runner.name);
                (RequestOutcome::NoJob, interval)
            }
            // `RunnerServer` has already handled `IsManager`: it switched to the manager's client and polled again.
            PollOutcome::NoJob | PollOutcome::IsManager | PollOutcome::Refused(_) | PollOutcome::Misconfigured(_) => {
                (RequestOutcome::NoJob, interval)
            }
        };
        (if response.server_overloaded { RequestOutcome::Overloaded } else { outcome }, pause.unwrap_or(wait))
    }

    /// Handles a response that rejects the runner. Returns the length of the pause, if one begins.
    fn handle_rejection(&self, why: &str, health: &mut ServerHealth) -> Option<Duration> {
        let name = &self.runner.name;
        let is_managed = self.server.manager().is_some();
        match is_managed {
            true => log::error!("the manager rejected the agent runner={name} error={why}"),
            false => {
                log::error!("GitLab rejected the runner; check it with `mayfly verify` runner={name} error={why}");
            }
        }
        let is_stored = self.runner.token_reference.is_some();
        if is_stored {
            let _ = self.events.send(AgentEvent::StoredTokenRejected);
        }
        let pause = health.record_rejection()?;
        // The new token may appear in the store after GitLab has revoked the old one.
        let pause = if is_stored || is_managed { pause.min(MAX_STORED_TOKEN_PAUSE) } else { pause };
        log::error!("rejected too often; polling paused runner={name} pause={}s", pause.as_secs());
        Some(pause)
    }

    /// Accepts a job with its context: the runner's own, or that of the pool for a job from a manager.
    fn take_job(
        &self,
        permit: Permit,
        payload: Vec<u8>,
        request_id: String,
        offer: Option<Box<Offer>>,
    ) -> RequestOutcome {
        let Some((offer, manager)) = offer.zip(self.server.manager()) else {
            return self.jobs.accept(permit, self.context.clone(), payload, request_id, None);
        };
        let offered = OfferedJob {
            source: Arc::clone(&self.server),
            manager: manager.url().to_owned(),
            jobs: Arc::clone(manager.jobs()),
            offer: *offer,
        };
        match self.offers.context(&offered.offer) {
            Ok(context) => self.jobs.accept(permit, context, payload, request_id, Some(offered)),
            Err(why) => self.fail_offered(permit, &payload, offered, &why),
        }
    }

    /// Fails an offered job whose pool has settings that this instance cannot use.
    fn fail_offered(&self, permit: Permit, payload: &[u8], offered: OfferedJob, why: &str) -> RequestOutcome {
        let why = format!("the pool's settings cannot be used on this instance: {why}");
        log::error!("cannot run the offered job runner={} error={why}", self.runner.name);
        let job = match payload::decode(payload) {
            Ok(payload) => payload.handle(),
            Err(Undecodable { job: Some(job), .. }) => job,
            Err(Undecodable { job: None, .. }) => return RequestOutcome::NoJob,
        };
        match self.offers.context_for_report(&offered.offer, &self.context) {
            Ok(context) => self.jobs.fail_received(permit, context, job, &why, Some(offered)),
            // The manager offers the job to another agent.
            Err(why) => log::error!("cannot fail the offered job runner={} error={why}", self.runner.name),
        }
        RequestOutcome::Job
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
