//! The agent's side of a manager: registers the instance, waits for jobs, accepts them, and says how they are.

mod heartbeat;
pub mod protocol;

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use heartbeat::ManagedJobs;

use self::protocol::{
    Acceptance, Introduction, LEAVE, MANAGER_HEADER, ORDER_HEADER, Offer, PROTOCOL, REASON_HEADER, VerifyBody, Welcome,
};
use super::JobId;
use super::gitlab::{ApiError, Registration, api_base, request_id, server_answered, server_failed};
use super::source::{AcceptOutcome, JobRequest, JobSource, PollOutcome, PollResponse};
use crate::decode;
use crate::digest::sha256;
use crate::http::tls::TlsFiles;
use crate::http::{Client, Error, Method, Request, Response};
use crate::instance::Identity;
use crate::instance::aws::caller_identity::SignedIdentity;
use crate::monitor::metrics;
use crate::token::Token;
use crate::version::{VERSION, user_agent};

/// Waits until the machine is ready for the pool's jobs, and takes over what the manager says of it.
pub type OnWelcome = Box<dyn Fn(&Welcome) + Send + Sync>;

/// The `token` of an agent that proves its instance's role instead.
pub const STS_TOKEN: &str = "aws-sts";

/// Signs a proof of the instance's role for this binding. Errors: why there is none.
pub type Prove = fn(&str) -> Result<SignedIdentity, String>;

/// The agent as its manager knows it.
#[derive(Clone)]
pub struct AgentIdentity {
    /// The manager's URL.
    pub url: String,
    /// Certificates for it.
    pub tls: TlsFiles,
    /// The fleet's token.
    pub fleet_token: Token,
    /// The instance and its boot.
    pub identity: Identity,
    /// Signs a proof of the instance's role.
    pub prove: Prove,
    /// Jobs at once, where the agent's own file says that.
    pub capacity: Option<u32>,
    /// Labels of the agent.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Where the agent's token is kept.
    pub state_dir: PathBuf,
    /// How long an unused connection is kept.
    pub connection_max_age: Duration,
}

/// What is kept of a registration over a restart of the agent.
#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    url: String,
    identity: Identity,
    welcome: Welcome,
}

/// A client of a manager.
pub struct ManagerClient {
    base: String,
    agent: AgentIdentity,
    client: Client,
    welcome: Mutex<Option<Welcome>>,
    /// The welcome was taken in.
    is_ready: Mutex<bool>,
    on_welcome: OnWelcome,
    /// Since when the manager has not answered; `None` while it does. A request that waits is no silence.
    silent_since: Mutex<Option<Instant>>,
    jobs: Arc<ManagedJobs>,
    beating: Mutex<bool>,
    stopping: Mutex<bool>,
    stopped: Condvar,
}

impl ManagerClient {
    /// A client that takes up the registration of an earlier agent of this boot. Errors: the URL or a certificate file
    /// cannot be used.
    pub fn new(agent: AgentIdentity, jobs: Arc<ManagedJobs>, on_welcome: OnWelcome) -> Result<Self, Error> {
        let base = api_base(&agent.url);
        let client = Client::new(&base, &agent.tls, &user_agent(), agent.connection_max_age)?;
        let kept = load(&agent);
        Ok(Self {
            base,
            agent,
            client,
            welcome: Mutex::new(kept),
            is_ready: Mutex::new(false),
            on_welcome,
            silent_since: Mutex::new(None),
            jobs,
            beating: Mutex::new(false),
            stopping: Mutex::new(false),
            stopped: Condvar::new(),
        })
    }

    /// The manager's URL.
    pub fn url(&self) -> &str {
        &self.agent.url
    }

    /// The jobs that the agent has from this manager.
    pub fn jobs(&self) -> &Arc<ManagedJobs> {
        &self.jobs
    }

    fn send(&self, method: Method, path: &str, token: &Token, body: &impl Serialize) -> Result<Response, Error> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Configuration(error.to_string()))?;
        let headers = vec![
            ("Content-Type", "application/json".to_owned()),
            ("RUNNER-TOKEN", token.reveal().to_owned()),
            ("X-Request-Id", request_id()),
        ];
        let request = Request { method, url: format!("{}{path}", self.base), headers, body: &body };
        // Sent once: whoever calls has a rhythm of its own.
        let answer = self.client.call(&request, &|_| false);
        let status = answer.as_ref().ok().map(|response| response.status);
        metrics::called("manager", status);
        let answer = answer.and_then(|response| match &response.cut {
            _ if response.header(MANAGER_HEADER).is_none() => {
                Err(Error::Transport(format!("status {} from something that is no manager", response.status)))
            }
            Some(why) => Err(Error::Transport(why.clone())),
            None => Ok(response),
        });
        let mut silent_since = lock(&self.silent_since);
        match &answer {
            Ok(_) => *silent_since = None,
            Err(_) => drop(silent_since.get_or_insert_with(Instant::now)),
        }
        drop(silent_since);
        answer
    }

    /// Jobs at once on an instance of the pool, once that is known.
    pub fn capacity(&self) -> Option<u32> {
        lock(&self.welcome).as_ref().map(|welcome| welcome.capacity)
    }

    /// The agent's token, if it is registered.
    fn token(&self) -> Option<Token> {
        lock(&self.welcome).as_ref().map(|welcome| welcome.token.clone())
    }

    /// Registers the agent unless it is registered. Errors: what the poll came to instead.
    fn register(&self) -> Result<Token, PollOutcome> {
        let mut welcome = lock(&self.welcome);
        if let Some(known) = &*welcome {
            return Ok(known.token.clone());
        }
        let mut introduction = Introduction {
            protocol: PROTOCOL,
            instance: self.agent.identity.instance.clone(),
            boot: self.agent.identity.boot.clone(),
            capacity: self.agent.capacity,
            version: VERSION.to_owned(),
            labels: self.agent.labels.clone(),
            proof: None,
        };
        let mut token = Some(self.agent.fleet_token.clone());
        if self.agent.fleet_token.reveal() == STS_TOKEN {
            token = None;
            introduction.proof = match (self.agent.prove)(&introduction.binding()) {
                Ok(proof) => Some(proof),
                Err(why) => {
                    return Err(PollOutcome::Failed(format!("cannot sign a proof of this instance's role: {why}")));
                }
            };
        }
        let body = VerifyBody { token, mayfly: Some(introduction) };
        let response = match self.send(Method::Post, "runners/verify", &self.agent.fleet_token, &body) {
            Ok(response) => response,
            Err(Error::Configuration(why)) => return Err(PollOutcome::Misconfigured(why)),
            Err(error) => return Err(PollOutcome::Failed(error.to_string())),
        };
        #[derive(Deserialize)]
        struct Answer {
            mayfly: Welcome,
        }
        match response.status {
            200 => {
                let answer: Answer = decode::json(&response.body)
                    .map_err(|_| PollOutcome::Failed("the manager's welcome cannot be read".to_owned()))?;
                log::info!(
                    "registered with the manager url={} instance={} pool={}",
                    self.agent.url,
                    self.agent.identity.instance,
                    answer.mayfly.pool
                );
                keep(&self.agent, &answer.mayfly);
                let token = answer.mayfly.token.clone();
                *welcome = Some(answer.mayfly);
                Ok(token)
            }
            401 | 403 | 409 | 426 => Err(PollOutcome::Refused(message(&response))),
            status => Err(PollOutcome::Failed(format!("status {status}: {}", message(&response)))),
        }
    }

    /// Takes in what the manager said at the registration, once in the life of this client.
    fn get_ready(&self) {
        let mut is_ready = lock(&self.is_ready);
        let welcome = lock(&self.welcome).clone();
        if let Some(welcome) = welcome.filter(|_| !*is_ready) {
            (self.on_welcome)(&welcome);
            *is_ready = true;
        }
    }

    /// The manager does not know the agent: it lost its state, or this agent said farewell.
    fn forget_registration(&self, token: &Token) {
        let mut welcome = lock(&self.welcome);
        if welcome.as_ref().is_some_and(|known| known.token == *token) {
            log::warn!("the manager does not know this agent any more; registering again url={}", self.agent.url);
            *welcome = None;
            let _ = fs::remove_file(file_of(&self.agent));
        }
    }

    fn poll(self: &Arc<Self>) -> PollOutcome {
        let token = match self.register() {
            Ok(token) => token,
            Err(outcome) => return outcome,
        };
        self.get_ready();
        self.start_heartbeats();
        let body = serde_json::json!({});
        let response = match self.send(Method::Post, "jobs/request", &token, &body) {
            Ok(response) => response,
            Err(Error::Configuration(why)) => return PollOutcome::Misconfigured(why),
            Err(error) => return PollOutcome::Failed(error.to_string()),
        };
        #[derive(Deserialize)]
        struct WithOffer {
            mayfly: Offer,
        }
        match response.status {
            201 => match decode::json::<WithOffer>(&response.body) {
                Ok(with) if with.mayfly.trace.is_whole() => PollOutcome::Job {
                    payload: response.body,
                    request_id: with.mayfly.request_id.clone(),
                    offer: Some(Box::new(with.mayfly)),
                },
                // The manager offers it again.
                _ => PollOutcome::Failed("the manager's offer cannot be read".to_owned()),
            },
            204 if response.header(ORDER_HEADER) == Some(LEAVE) => {
                PollOutcome::Leave(response.header(REASON_HEADER).unwrap_or("dismissed").to_owned())
            }
            204 => PollOutcome::NoJob,
            401 => {
                self.forget_registration(&token);
                PollOutcome::Failed(message(&response))
            }
            status => PollOutcome::Failed(format!("status {status}: {}", message(&response))),
        }
    }

    fn has_stopped(&self) -> bool {
        *lock(&self.stopping)
    }
}

/// A manager's client as a source of jobs.
impl JobSource for Arc<ManagerClient> {
    fn request_job(&self, _: &JobRequest<'_>) -> PollResponse {
        let outcome = self.poll();
        let wait = match &outcome {
            PollOutcome::Failed(_) => server_failed(&self.base).min(Duration::from_secs(10)),
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
            // A manager that does not know the agent does not know the offer.
            return match self.register() {
                Ok(_) | Err(PollOutcome::Refused(_)) => AcceptOutcome::Void,
                Err(_) => AcceptOutcome::Unsettled("the agent is not registered".to_owned()),
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

    fn unregister(&self, _: &Token, _: &str) -> Result<(), ApiError> {
        let Some(token) = self.token() else { return Ok(()) };
        let response = self.send(Method::Delete, "runners/managers", &token, &serde_json::json!({}))?;
        match response.status {
            204 | 401 => {
                *lock(&self.welcome) = None;
                let _ = fs::remove_file(file_of(&self.agent));
                Ok(())
            }
            status => Err(ApiError::Answer(status, message(&response))),
        }
    }

    fn reset_token(&self, _: &Token) -> Result<Registration, ApiError> {
        Err(ApiError::Unreachable("a manager's fleet token is not rotated by agents".to_owned()))
    }

    fn stop_waiting(&self) {
        *lock(&self.stopping) = true;
        self.stopped.notify_all();
        self.jobs.ring();
    }

    fn silence(&self) -> Option<Duration> {
        Some(lock(&self.silent_since).map_or(Duration::ZERO, |since| since.elapsed()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn message(response: &Response) -> String {
    let parsed: Option<serde_json::Value> = decode::json(&response.body).ok();
    let text = parsed.as_ref().and_then(|value| value.get("message")?.as_str());
    text.unwrap_or("no explanation").chars().take(300).collect()
}

fn file_of(agent: &AgentIdentity) -> PathBuf {
    agent.state_dir.join(format!("manager-{}.json", &sha256(agent.url.as_bytes())[..12]))
}

/// The registration of an earlier agent of this boot.
fn load(agent: &AgentIdentity) -> Option<Welcome> {
    let kept: Kept = decode::json(&fs::read(file_of(agent)).ok()?).ok()?;
    (kept.url == agent.url && kept.identity == agent.identity).then_some(kept.welcome)
}

fn keep(agent: &AgentIdentity, welcome: &Welcome) {
    let kept = Kept { url: agent.url.clone(), identity: agent.identity.clone(), welcome: welcome.clone() };
    let path = file_of(agent);
    let draft = path.with_extension("draft");
    let written = serde_json::to_vec(&kept).map_err(std::io::Error::other).and_then(|text| {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&draft, &path)
    });
    if let Err(error) = written {
        log::error!(
            "cannot keep the agent's token; after a restart the manager refuses this agent until the next boot path={} \
             error={error}",
            path.display()
        );
    }
}
