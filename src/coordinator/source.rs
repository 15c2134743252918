//! Where jobs come from: GitLab itself, or a manager that polls it for a fleet.

use std::time::Duration;

use super::JobId;
use super::gitlab::{ApiError, Registration};
use super::manager::protocol::Offer;
use crate::token::Token;

/// Who asks for a job, and how.
#[derive(Clone, Debug)]
pub struct JobRequest<'a> {
    /// The runner's token.
    pub token: &'a Token,
    /// The machine.
    pub system_id: &'a str,
    /// Let the server hold the request until its queue changes.
    pub hold: bool,
}

/// What came of a request for a job.
#[derive(Debug)]
pub struct PollResponse {
    /// The answer.
    pub outcome: PollOutcome,
    /// The server answered that it is overloaded or down.
    pub server_overloaded: bool,
    /// How long to wait at least before the next poll.
    pub wait: Duration,
}

/// The answer to a request for a job.
#[derive(Debug)]
pub enum PollOutcome {
    /// The payload of a job, and the id of the request that brought it. It is ours, unless a manager offers it.
    Job {
        /// As GitLab sent it.
        payload: Vec<u8>,
        /// Id of the request to GitLab.
        request_id: String,
        /// A manager offers the job: it is ours once the offer is accepted.
        offer: Option<Box<Offer>>,
    },
    /// There is none.
    NoJob,
    /// The manager wants the agent to leave, for this reason.
    Leave(String),
    /// The server is a manager, and was taken for GitLab.
    IsManager,
    /// The token is not (any longer) valid.
    Refused(String),
    /// Lost a race, or something else that the next poll may do better.
    Failed(String),
    /// The URL or the certificates cannot be used.
    Misconfigured(String),
}

/// What became of the acceptance of an offered job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcceptOutcome {
    /// The job is ours: it may begin.
    Accepted,
    /// The job is not ours: it must not begin.
    Void,
    /// Nobody answered, or not clearly: it is to be asked again.
    Unsettled(String),
}

/// Hands out jobs to a runner. One implementation a kind of server.
pub trait JobSource: Send + Sync {
    /// Asks for a job. A job that comes without an offer is ours from then on: whoever calls runs it or fails it.
    fn request_job(&self, request: &JobRequest<'_>) -> PollResponse;

    /// Accepts an offered job.
    fn accept(&self, job: &JobId, offer: &Offer) -> AcceptOutcome;

    /// Takes this machine off its runner.
    fn unregister(&self, token: &Token, system_id: &str) -> Result<(), ApiError>;

    /// Replaces the runner's token.
    fn reset_token(&self, token: &Token) -> Result<Registration, ApiError>;

    /// Ends waits between attempts: the agent is about to be gone.
    fn stop_waiting(&self);

    /// For how long a manager has not answered; `None` for GitLab.
    fn silence(&self) -> Option<Duration>;
}
