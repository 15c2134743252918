//! The client of a manager: registers the agent, waits for jobs, accepts them, and reports their phases.

mod heartbeat;
pub mod protocol;
mod registration;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use heartbeat::{JobIntake, ManagedJobs};

use self::protocol::{
    Acceptance, CAPACITY_HEADER, LEAVE, MANAGER_HEADER, ORDER_HEADER, Offer, REASON_HEADER, WAIT_SECONDS, Welcome,
};
use super::JobId;
use super::gitlab::{ApiError, Registration, api_base, request_id, server_answered, server_failed};
use super::source::{AcceptOutcome, JobRequest, JobSource, PollOutcome, PollResponse};
use crate::decode;
use crate::http::tls::TlsFiles;
use crate::http::{Client, HttpError, Method, Request, Response};
use crate::instance::Identity;
use crate::instance::aws::caller_identity::SignedIdentity;
use crate::monitor::metrics;
use crate::sync::{self, StopSignal};
use crate::token::Token;
use crate::version::user_agent;

/// Called after the registration with the manager's settings for the pool. Returns when the machine is ready for jobs;
/// calls the second argument after each attempt that fails.
pub type OnWelcome = Box<dyn Fn(&Welcome, &dyn Fn()) + Send + Sync>;

/// Called with the number of concurrent jobs when the manager has changed it.
pub type OnCapacity = Box<dyn Fn(u32) + Send + Sync>;

/// The stack size of the thread that runs the pool's command, in bytes.
const STACK: usize = 256 * 1024;

/// The path of the long poll for a job.
const JOBS_REQUEST: &str = "jobs/request";
/// The timeout of a request. A connection can be dead although neither side has closed it, for example after a network
/// partition or when the manager's machine was replaced.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// The timeout of a long poll.
const POLL_TIMEOUT: Duration = Duration::from_secs(WAIT_SECONDS + 15);
/// The longest delay after a failed poll.
const MAX_POLL_DELAY: Duration = Duration::from_secs(10);
/// The agent abandons requests in flight only if the manager has not answered for this long. This is enough time to
/// start a job of the manager's last response.
const ABANDON_AFTER: Duration = Duration::from_secs(2);

/// The value of `token` for an agent that proves the role of its instance instead of sending a fleet token.
pub const STS_TOKEN: &str = "aws-sts";

/// Signs a proof of the instance's role for a binding. The error is the reason why it cannot be signed.
pub type Prove = fn(&str) -> Result<SignedIdentity, String>;

/// The identity and the settings with which the agent registers.
#[derive(Clone)]
pub struct AgentIdentity {
    /// The manager's URL.
    pub url: String,
    /// The certificate files for the connection.
    pub tls: TlsFiles,
    /// The fleet token.
    pub fleet_token: Token,
    /// The ids of the instance and of its boot.
    pub identity: Identity,
    /// Signs a proof of the instance's role.
    pub prove: Prove,
    /// The number of concurrent jobs, if the agent's own configuration sets it.
    pub capacity: Option<u32>,
    /// Labels of the agent.
    pub labels: std::collections::BTreeMap<String, String>,
    /// The state directory, which stores the agent's token.
    pub state_dir: PathBuf,
    /// The maximum age of an unused connection.
    pub connection_max_age: Duration,
}

/// Whether the machine is ready for the pool's jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    /// The agent has not registered yet.
    Unknown,
    /// The pool's command has not succeeded yet.
    Waiting,
    Ready,
}

/// A client of a manager.
pub struct ManagerClient {
    base: String,
    agent: AgentIdentity,
    client: Client,
    readiness: Mutex<Readiness>,
    on_welcome: OnWelcome,
    on_capacity: OnCapacity,
    /// The time of the first failed request since the manager's last response; `None` while the manager answers. A
    /// pending poll does not count.
    silent_since: Mutex<Option<Instant>>,
    /// When the manager last answered.
    answered: Mutex<Option<Instant>>,
    jobs: Arc<ManagedJobs>,
    has_heartbeat_thread: Mutex<bool>,
    stop: StopSignal,
}

impl ManagerClient {
    /// A client that reuses the registration of an earlier agent in this boot. Fails if the URL or a certificate file
    /// is unusable.
    pub fn new(
        agent: AgentIdentity,
        jobs: Arc<ManagedJobs>,
        on_welcome: OnWelcome,
        on_capacity: OnCapacity,
    ) -> Result<Self, HttpError> {
        let base = api_base(&agent.url);
        let client = Client::new(&base, &agent.tls, &user_agent(), agent.connection_max_age)?;
        let created = Self {
            base,
            agent,
            client,
            readiness: Mutex::new(Readiness::Unknown),
            on_welcome,
            on_capacity,
            silent_since: Mutex::default(),
            answered: Mutex::new(None),
            jobs,
            has_heartbeat_thread: Mutex::new(false),
            stop: StopSignal::default(),
        };
        created.restore_registration();
        Ok(created)
    }

    /// The manager's URL.
    pub fn url(&self) -> &str {
        &self.agent.url
    }

    /// The jobs that the agent got from this manager.
    pub fn jobs(&self) -> &Arc<ManagedJobs> {
        &self.jobs
    }

    fn send(&self, method: Method, path: &str, token: &Token, body: &impl Serialize) -> Result<Response, HttpError> {
        let timeout = if path == JOBS_REQUEST { POLL_TIMEOUT } else { REQUEST_TIMEOUT };
        self.send_within(timeout, method, path, token, body)
    }

    fn send_within(
        &self,
        timeout: Duration,
        method: Method,
        path: &str,
        token: &Token,
        body: &impl Serialize,
    ) -> Result<Response, HttpError> {
        let body = serde_json::to_vec(body).map_err(|error| HttpError::Configuration(error.to_string()))?;
        let headers = vec![
            ("Content-Type", "application/json".to_owned()),
            ("RUNNER-TOKEN", token.reveal().to_owned()),
            ("X-Request-Id", request_id()),
        ];
        let request =
            Request { method, url: format!("{}{path}", self.base), headers, body: &body, timeout: Some(timeout) };
        // The request is sent once; the caller retries at its own interval.
        let response = self.client.call(&request, &|_| false);
        let status = response.as_ref().ok().map(|response| response.status);
        metrics::called("manager", status);
        let response = response.and_then(|response| match &response.cut {
            _ if response.header(MANAGER_HEADER).is_none() => Err(HttpError::Transport(format!(
                "status {} from a server that is not a mayfly manager; correct `url`, or, if it is GitLab's, write \
                     `executor` below [[runners]]",
                response.status
            ))),
            Some(why) => Err(HttpError::Transport(why.clone())),
            None => Ok(response),
        });
        let mut silent_since = sync::lock(&self.silent_since);
        match &response {
            Ok(_) if path == JOBS_REQUEST && self.jobs.intake() == JobIntake::Abandoned => {
                return Err(HttpError::Transport("the agent is shutting down and ignores the response".to_owned()));
            }
            Ok(_) => {
                let was_silent = silent_since.take().is_some();
                drop(silent_since);
                *sync::lock(&self.answered) = Some(Instant::now());
                if was_silent {
                    // The manager may have restarted with an outdated state, so the next heartbeat must report the
                    // agent's jobs immediately.
                    self.jobs.send_now();
                }
            }
            Err(_) => drop(silent_since.get_or_insert_with(Instant::now)),
        }
        response
    }

    /// As [`JobSource::abandon_polls`].
    fn abandon_polls(&self) -> bool {
        // The lock is held until the intake is set, so that no response is processed between the check and the change.
        let silent_since = sync::lock(&self.silent_since);
        if silent_since.is_some_and(|since| since.elapsed() >= ABANDON_AFTER) {
            self.jobs.set_intake(JobIntake::Abandoned);
        }
        self.jobs.intake() == JobIntake::Abandoned
    }

    /// Whether the manager has answered a request in this time.
    fn has_answered_within(&self, time: Duration) -> bool {
        sync::lock(&self.answered).is_some_and(|answered| answered.elapsed() < time)
    }

    /// The number of concurrent jobs on an instance of the pool, known after the registration.
    pub fn capacity(&self) -> Option<u32> {
        self.registration().welcome().map(|welcome| welcome.capacity)
    }

    /// Calls [`OnWelcome`] with the settings of the pool, once for each client, and waits until it returns. The call
    /// runs in its own thread, because the pool's command may hang. Returns false if the agent shuts down before.
    fn wait_until_ready(self: &Arc<Self>) -> bool {
        let is_new = {
            let mut readiness = sync::lock(&self.readiness);
            let is_new = *readiness == Readiness::Unknown;
            if is_new {
                *readiness = Readiness::Waiting;
            }
            is_new
        };
        if is_new && let Some(welcome) = self.registration().welcome().cloned() {
            let client = Arc::clone(self);
            let prepare = move || {
                (client.on_welcome)(&welcome, &|| client.jobs.set_unfit());
                *sync::lock(&client.readiness) = Readiness::Ready;
                client.jobs.set_fit();
                client.jobs.send_now();
            };
            if let Err(error) = sync::spawn("welcome", STACK, prepare) {
                log::error!("cannot start the thread that prepares for the pool's jobs error={error}");
                *sync::lock(&self.readiness) = Readiness::Unknown;
                return false;
            }
        }
        self.jobs.wait_while_open(|| self.stop.is_set() || *sync::lock(&self.readiness) == Readiness::Ready);
        *sync::lock(&self.readiness) == Readiness::Ready
    }

    fn poll(self: &Arc<Self>) -> PollOutcome {
        let token = match self.register() {
            Ok(token) => token,
            Err(outcome) => return outcome,
        };
        self.start_heartbeats();
        if !self.wait_until_ready() {
            return PollOutcome::NoJob;
        }
        let body = serde_json::json!({});
        let response = match self.send(Method::Post, JOBS_REQUEST, &token, &body) {
            Ok(response) => response,
            Err(HttpError::Configuration(why)) => return PollOutcome::Misconfigured(why),
            Err(error) => return PollOutcome::Failed(error.to_string()),
        };
        #[derive(Deserialize)]
        struct WithOffer {
            mayfly: Offer,
        }
        if let Some(capacity) = response.header(CAPACITY_HEADER).and_then(|capacity| capacity.parse().ok()) {
            self.apply_capacity(capacity);
        }
        match response.status {
            201 => match decode::json::<WithOffer>(&response.body) {
                Ok(with) if with.mayfly.trace.is_consistent() => {
                    self.apply_capacity(with.mayfly.capacity);
                    PollOutcome::Job {
                        payload: response.body,
                        request_id: with.mayfly.request_id.clone(),
                        offer: Some(Box::new(with.mayfly)),
                    }
                }
                // The manager repeats the offer after its timeout.
                _ => PollOutcome::Failed("the manager's offer cannot be decoded".to_owned()),
            },
            204 if response.header(ORDER_HEADER) == Some(LEAVE) => {
                PollOutcome::Leave(response.header(REASON_HEADER).unwrap_or("none given").to_owned())
            }
            204 => PollOutcome::NoJob,
            401 => {
                self.forget_registration(&token);
                PollOutcome::Failed(message(&response))
            }
            status => PollOutcome::Failed(format!("status {status}: {}", message(&response))),
        }
    }
}

/// Polls a manager instead of GitLab.
impl JobSource for Arc<ManagerClient> {
    fn request_job(&self, _: &JobRequest<'_>) -> PollResponse {
        let outcome = self.poll();
        let wait = match &outcome {
            PollOutcome::Failed(_) => server_failed(&self.base).min(MAX_POLL_DELAY),
            PollOutcome::Misconfigured(_) => Duration::ZERO,
            _ => {
                server_answered(&self.base);
                Duration::ZERO
            }
        };
        PollResponse { outcome, server_overloaded: false, wait }
    }

    fn accept(&self, job: &JobId, offer: &Offer) -> AcceptOutcome {
        let Some(token) = self.token() else {
            // After a new registration the old offer is invalid.
            return match self.register_again() {
                None | Some(Ok(_) | Err(PollOutcome::Refused(_))) => AcceptOutcome::Void,
                Some(Err(_)) => AcceptOutcome::Unsettled("the agent is not registered".to_owned()),
            };
        };
        let body = Acceptance { offer: offer.offer.clone(), state: "running".to_owned() };
        match self.send(Method::Put, &format!("jobs/{job}"), &token, &body) {
            Ok(response) => match response.status {
                200 => AcceptOutcome::Accepted,
                400 | 404 | 409 => AcceptOutcome::Void,
                401 => {
                    self.forget_registration(&token);
                    AcceptOutcome::Void
                }
                status => AcceptOutcome::Unsettled(format!("status {status}: {}", message(&response))),
            },
            Err(error) => AcceptOutcome::Unsettled(error.to_string()),
        }
    }

    fn unregister(&self, _: &Token, _: &str, timeout: Duration) -> Result<(), ApiError> {
        let until = Instant::now() + timeout;
        let Some(token) = self.begin_unregistration() else { return Ok(()) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ApiError::Unreachable("the manager did not answer an earlier request".to_owned()));
        }
        let nothing = serde_json::json!({});
        let response = self.send_within(left, Method::Delete, "runners/managers", &token, &nothing)?;
        match response.status {
            204 | 401 => {
                self.end_unregistration(&token);
                Ok(())
            }
            status => Err(ApiError::Status(status, message(&response))),
        }
    }

    fn reset_token(&self, _: &Token) -> Result<Registration, ApiError> {
        Err(ApiError::Unreachable("agents do not rotate the fleet token of a manager".to_owned()))
    }

    fn stop_waiting(&self) {
        self.stop.stop();
        self.jobs.send_now();
    }

    fn silence(&self) -> Option<Duration> {
        Some(sync::lock(&self.silent_since).map_or(Duration::ZERO, |since| since.elapsed()))
    }

    fn abandon_polls(&self) -> bool {
        ManagerClient::abandon_polls(self)
    }
}

fn message(response: &Response) -> String {
    let parsed: Option<serde_json::Value> = decode::json(&response.body).ok();
    let text = parsed.as_ref().and_then(|value| value.get("message")?.as_str());
    text.unwrap_or("no explanation").chars().take(300).collect()
}
