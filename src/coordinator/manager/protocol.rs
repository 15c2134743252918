//! What an agent and its manager say to each other: GitLab's Runner API with a few additions.
//!
//! | Call | Meaning |
//! |---|---|
//! | `POST runners/verify` | the agent registers: [`Introduction`]; the answer is a [`Welcome`] |
//! | `POST jobs/request` | waits for a job; 201 is GitLab's payload with an [`Offer`] in `mayfly`; 204 says stay or leave |
//! | `PUT jobs/:id` | accepts an offer ([`Acceptance`]): only after its 200 may the agent begin; 409 for an old offer |
//! | `POST runners/heartbeat` | the agent's jobs: [`Heartbeat`]; the answer is [`Orders`] |
//! | `DELETE runners/managers` | the agent leaves |

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::instance::aws::caller_identity::SignedIdentity;
use crate::token::Token;

/// The version of this protocol.
pub const PROTOCOL: u32 = 1;
/// In every response of a manager: its version. An agent tells a manager from GitLab by it.
pub const MANAGER_HEADER: &str = "X-Mayfly-Manager";
/// In a 204: `stay`, or `leave`.
pub const ORDER_HEADER: &str = "X-Mayfly-Agent";
/// Beside `leave`: why.
pub const REASON_HEADER: &str = "X-Mayfly-Reason";
/// The value of [`ORDER_HEADER`] for an agent that is to leave.
pub const LEAVE: &str = "leave";
/// The member of a job's payload that holds an [`Offer`].
pub const OFFER_KEY: &str = "mayfly";
/// How long the manager lets a request for a job wait, in seconds.
pub const WAIT_SECONDS: u64 = 50;
/// Between two heartbeats, in seconds.
pub const HEARTBEAT_SECONDS: u64 = 30;

/// An agent that registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Introduction {
    /// The version of the protocol that it speaks.
    pub protocol: u32,
    /// Its instance.
    pub instance: String,
    /// The boot of the instance.
    pub boot: String,
    /// Jobs that it runs at once, where its own file says that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
    /// Its version.
    pub version: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// A signed request that proves its role, where the pool asks for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<SignedIdentity>,
}

impl Introduction {
    /// What a signed proof must hold for: this instance in this boot.
    pub fn binding(&self) -> String {
        format!("{} {}", self.instance, self.boot)
    }
}

/// The body of `POST runners/verify`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerifyBody {
    /// The fleet's token; empty with a proof.
    #[serde(default)]
    pub token: Option<Token>,
    /// The agent; absent in a request of something else.
    #[serde(default)]
    pub mayfly: Option<Introduction>,
}

/// The manager's answer to an agent that may work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The agent's own token, bound to its instance.
    pub token: Token,
    /// The pool that the instance belongs to.
    pub pool: String,
    /// Jobs that an instance of the pool runs at once.
    pub capacity: u32,
    /// Must succeed before the first request for a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_command: Option<String>,
}

/// A job for an agent; beside GitLab's payload, in its member `mayfly`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The id of this offer.
    pub offer: String,
    /// Seconds in which the agent must accept it.
    pub accept_seconds: u64,
    /// GitLab: where the job is reported.
    pub coordinator: CoordinatorPart,
    /// What the manager wrote into the job's log.
    #[serde(default, skip_serializing_if = "TracePart::is_empty")]
    pub trace: TracePart,
    /// The runner's table (TOML), without its token and the fleet's settings.
    pub runner: String,
    /// The short form of the runner's token: part of the keys of caches.
    pub short_token: String,
    /// Jobs at once on an instance of the pool.
    pub capacity: u32,
    /// The id of GitLab's request that brought the job.
    #[serde(default)]
    pub request_id: String,
}

/// GitLab, as the agent reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorPart {
    /// Its URL.
    pub url: String,
    /// Certificate authorities to trust beside the system's, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities: Option<String>,
}

/// The beginning of a job's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracePart {
    /// How many bytes of `text` GitLab has for certain.
    pub offset: u64,
    /// CRC-32 of `text`.
    pub crc32: u32,
    /// The bytes themselves: GitLab may ask for the log from its start.
    pub text: String,
}

impl TracePart {
    /// The beginning of a log of which GitLab has `offset` bytes.
    pub fn new(text: &str, offset: u64) -> Self {
        Self { offset, crc32: crc32fast::hash(text.as_bytes()), text: text.to_owned() }
    }

    /// Whether the log is empty.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Whether offset and checksum fit the text.
    pub fn is_whole(&self) -> bool {
        self.offset <= self.text.len() as u64 && crc32fast::hash(self.text.as_bytes()) == self.crc32
    }
}

/// The body of `PUT jobs/:id`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Acceptance {
    /// The offer.
    pub offer: String,
    /// `pending`: the agent is about to accept; `running`: it accepts.
    pub state: String,
}

/// The body of `POST runners/heartbeat`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The jobs that the agent accepted and has not ended.
    pub jobs: Vec<JobReport>,
    /// Jobs that ended since the last heartbeat that was answered.
    #[serde(default)]
    pub ended: Vec<String>,
    /// How long the machine has been unfit for jobs, in seconds; 0 while it is fit.
    #[serde(default)]
    pub unfit_seconds: u64,
    /// The agent takes no more jobs.
    #[serde(default)]
    pub leaving: bool,
}

/// A job of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    /// Its id in GitLab.
    pub id: String,
    /// The offer that brought it.
    pub offer: String,
    /// Where it is: `accepted`, `preparing`, `script`, `finishing`.
    pub phase: String,
    /// Its token: a manager that lost its state must still be able to fail the job of an instance that is lost.
    pub token: Token,
}

/// The answer to a heartbeat.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Orders {
    /// The agent is to leave, for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leave: Option<String>,
}
