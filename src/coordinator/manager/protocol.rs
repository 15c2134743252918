//! The protocol between an agent and its manager: GitLab's Runner API with a few additions.
//!
//! - `POST runners/verify` registers the agent ([`Introduction`]). The response is a [`Welcome`].
//! - `POST jobs/request` is a long poll for a job. A 201 contains GitLab's payload with an [`Offer`] in its member
//!   `mayfly`; a 204 contains the order to stay or to leave in [`ORDER_HEADER`].
//! - `PUT jobs/:id` accepts an offer ([`Acceptance`]). The agent starts the job only after a 200; a 409 means that the
//!   offer has expired.
//! - `POST runners/heartbeat` reports the agent's jobs ([`Heartbeat`]). The response is [`Orders`].
//! - `DELETE runners/managers` unregisters the agent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::{hex, sha256};
use crate::instance::aws::caller_identity::SignedIdentity;
use crate::random;
use crate::token::Token;

/// The version of this protocol.
pub const PROTOCOL: u32 = 1;
/// The version of the manager; present in each of its responses. The agent distinguishes a manager from GitLab by this
/// header.
pub const MANAGER_HEADER: &str = "X-Mayfly-Manager";
/// In a 204: `stay` or `leave`.
pub const ORDER_HEADER: &str = "X-Mayfly-Agent";
/// In a 204: the number of concurrent jobs on an instance of the pool. A reload of the manager may change it.
pub const CAPACITY_HEADER: &str = "X-Mayfly-Capacity";
/// With `leave`: the reason.
pub const REASON_HEADER: &str = "X-Mayfly-Reason";
/// The value of [`ORDER_HEADER`] that orders the agent to leave.
pub const LEAVE: &str = "leave";
/// The prefix of every agent's token.
const AGENT_TOKEN_PREFIX: &str = "mfa-";
/// The number of random bytes in an agent's token.
const AGENT_TOKEN_BYTES: usize = 24;
/// The member of a job's payload that contains an [`Offer`].
pub const OFFER_KEY: &str = "mayfly";
/// The duration of a long poll in seconds.
pub const WAIT_SECONDS: u64 = 50;
/// The interval of heartbeats in seconds.
pub const HEARTBEAT_SECONDS: u64 = 30;

/// The data of an agent that registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Introduction {
    /// The version of the protocol that the agent supports.
    pub protocol: u32,
    /// The id of the agent's instance.
    pub instance: String,
    /// The boot of the instance.
    pub boot: String,
    /// The token that the agent chose for itself. If the response to a registration is lost, the agent repeats the
    /// registration with the same token. Without this token, the manager chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_token: Option<Token>,
    /// The number of concurrent jobs, if the agent's own configuration sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
    /// The version of the agent.
    pub version: String,
    /// The labels of the agent.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// A signed request that proves the role of the instance, if the pool requires it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<SignedIdentity>,
}

impl Introduction {
    /// The text that a proof is bound to: this instance in this boot, and the agent's token, so that an attacker cannot
    /// use the proof with another token.
    pub fn binding(&self) -> String {
        let token = self.agent_token.as_ref().map(|token| sha256(token.reveal().as_bytes())).unwrap_or_default();
        format!("{} {} {token}", self.instance, self.boot)
    }
}

/// A new token for an agent.
pub fn new_agent_token() -> Token {
    Token::new(format!("{AGENT_TOKEN_PREFIX}{}", hex(&random::bytes::<AGENT_TOKEN_BYTES>())))
}

/// Whether a token that an agent chose has the form of [`new_agent_token`].
pub fn is_agent_token(token: &Token) -> bool {
    let digits = token.reveal().strip_prefix(AGENT_TOKEN_PREFIX).unwrap_or_default();
    digits.len() == 2 * AGENT_TOKEN_BYTES && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The body of `POST runners/verify`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerifyBody {
    /// The fleet token; empty if the agent sends a proof.
    #[serde(default)]
    pub token: Option<Token>,
    /// The agent; absent in requests of other clients, such as gitlab-runner.
    #[serde(default)]
    pub mayfly: Option<Introduction>,
}

/// The manager's response to an agent that it accepts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The agent's own token, bound to its instance.
    pub token: Token,
    /// The pool that the instance belongs to.
    pub pool: String,
    /// The number of concurrent jobs on an instance of the pool.
    pub capacity: u32,
    /// A command that must succeed before the first poll.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_command: Option<String>,
}

/// The offer of a job to an agent, in the member `mayfly` of GitLab's payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The id of this offer.
    pub offer: String,
    /// The number of seconds within which the agent must accept.
    pub accept_seconds: u64,
    /// The GitLab server to which the agent reports the job.
    pub coordinator: OfferedCoordinator,
    /// The lines that the manager wrote to the job's log.
    #[serde(default, skip_serializing_if = "TraceStart::is_empty")]
    pub trace: TraceStart,
    /// The table of the runner (TOML), without its token and the settings of the fleet.
    pub runner: String,
    /// The short form of the runner's token, a part of cache keys.
    pub short_token: String,
    /// The number of concurrent jobs on an instance of the pool.
    pub capacity: u32,
    /// The id of the request to GitLab that returned the job.
    #[serde(default)]
    pub request_id: String,
}

/// The GitLab server as the agent reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedCoordinator {
    /// The URL of the server.
    pub url: String,
    /// Additional certificate authorities, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities: Option<String>,
}

/// The beginning of a job's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStart {
    /// The number of bytes of `text` that GitLab has acknowledged.
    pub offset: u64,
    /// CRC-32 of `text`.
    pub crc32: u32,
    /// The lines themselves: GitLab may request the log from its start.
    pub text: String,
}

impl TraceStart {
    /// The beginning of a log of which GitLab has `offset` bytes.
    pub fn new(text: &str, offset: u64) -> Self {
        Self { offset, crc32: crc32fast::hash(text.as_bytes()), text: text.to_owned() }
    }

    /// Whether the log is empty.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Whether offset and checksum match the text.
    pub fn is_consistent(&self) -> bool {
        self.offset <= self.text.len() as u64 && crc32fast::hash(self.text.as_bytes()) == self.crc32
    }
}

/// The body of `PUT jobs/:id`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Acceptance {
    /// The offer.
    pub offer: String,
    /// `pending`: the agent prepares the job; `running`: the agent starts the job.
    pub state: String,
}

/// The body of `POST runners/heartbeat`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The jobs that the agent has accepted and not finished.
    pub jobs: Vec<JobReport>,
    /// Jobs that ended since the last acknowledged heartbeat.
    #[serde(default)]
    pub ended: Vec<String>,
    /// The number of seconds for which the machine has been unfit for jobs; 0 if it is fit.
    #[serde(default)]
    pub unfit_seconds: u64,
    /// The agent is leaving and takes no more jobs.
    #[serde(default)]
    pub leaving: bool,
}

/// A job of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    /// The id of the job in GitLab.
    pub id: String,
    /// The offer that the agent accepted.
    pub offer: String,
    /// `accepted`, `preparing`, `script` or `finishing`.
    pub phase: String,
    /// The job's token: a manager that has lost its state must still be able to fail the job if its instance
    /// disappears.
    pub token: Token,
}

/// The response to a heartbeat.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Orders {
    /// The reason, if the agent must leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leave: Option<String>,
    /// In the manager's state, the agent has jobs that the heartbeat does not list. The manager fails such a job only
    /// after several heartbeats, so even an agent without jobs must send the next one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}
