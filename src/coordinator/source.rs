//! The source of jobs: GitLab itself, or a manager that polls GitLab for a fleet.

use std::time::Duration;

use super::JobId;
use super::gitlab::{ApiError, Registration};
use super::manager::protocol::Offer;
use crate::token::Token;

/// When the server answers a poll for which it has no job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollMode {
    /// At once.
    Short,
    /// The server may delay its response until the queue changes (long polling).
    Long,
}

impl PollMode {
    /// While more runners poll than slots are free, a long poll of one runner would block the others.
    pub fn for_contention(is_contended: bool) -> Self {
        if is_contended { Self::Short } else { Self::Long }
    }
}

/// A request for a job.
#[derive(Clone, Debug)]
pub struct JobRequest<'a> {
    /// The runner's token.
    pub token: &'a Token,
    /// The id of the machine.
    pub system_id: &'a str,
    pub mode: PollMode,
}

/// The result of a poll, and the delay before the next poll.
#[derive(Debug)]
pub struct PollResponse {
    /// The outcome of the poll.
    pub outcome: PollOutcome,
    /// The server answered with 429 or 5xx.
    pub server_overloaded: bool,
    /// The minimum delay before the next poll.
    pub wait: Duration,
}

/// The outcome of a poll.
#[derive(Debug)]
pub enum PollOutcome {
    /// A job. Without an offer, it is assigned to this runner already.
    Job {
        /// The payload as GitLab sent it.
        payload: Vec<u8>,
        /// The id of the request to GitLab that returned the job.
        request_id: String,
        /// The offer of a manager: the job is assigned when the offer is accepted.
        offer: Option<Box<Offer>>,
    },
    /// No job is available.
    NoJob,
    /// The manager orders the agent to leave, for this reason.
    Leave(String),
    /// The server is a manager, but the client is for GitLab.
    IsManager,
    /// The server rejected the token.
    Refused(String),
    /// A temporary failure: the next poll may succeed.
    Failed(String),
    /// The URL or the certificates are unusable.
    Misconfigured(String),
}

/// The outcome of accepting an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcceptOutcome {
    /// The job is assigned to this agent, which may start it.
    Accepted,
    /// The offer has expired: the agent must not start the job.
    Void,
    /// Unknown result: the request must be repeated.
    Unsettled(String),
}

/// Hands out jobs to a runner. Each kind of server has one implementation.
pub trait JobSource: Send + Sync {
    /// Polls for a job. A job without an offer is assigned: the caller must run it or report it as failed.
    fn request_job(&self, request: &JobRequest<'_>) -> PollResponse;

    /// Accepts an offered job.
    fn accept(&self, job: &JobId, offer: &Offer) -> AcceptOutcome;

    /// Unregisters this machine from its runner, with one request that ends within `timeout`: a request that arrives
    /// after the agent has resumed work would unregister the working agent.
    fn unregister(&self, token: &Token, system_id: &str, timeout: Duration) -> Result<(), ApiError>;

    /// Replaces the runner's token.
    fn reset_token(&self, token: &Token) -> Result<Registration, ApiError>;

    /// Ends the delays between retries, because the agent is about to exit.
    fn stop_waiting(&self);

    /// The time for which a manager has not answered; `None` for GitLab.
    fn silence(&self) -> Option<Duration>;

    /// Abandons the polls in flight to a manager that does not answer. If a response with an offer still arrives,
    /// the agent does not accept the offer, and the manager offers the job to another agent. Returns false if the
    /// server answers, or if it is GitLab, whose response may contain a job.
    fn abandon_polls(&self) -> bool;
}
