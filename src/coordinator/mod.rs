//! The source of jobs, and the receiver of their logs and states: GitLab over HTTPS, a manager, or a local pipeline (in
//! the layers above).
//!
//! This layer implements only the protocol: it never runs a job, writes a log or decides to shut down.

pub mod gitlab;
pub mod manager;
pub mod source;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::failure::FailureReason;
pub use crate::job_id::{JobHandle, JobId};

/// The delays of requests to a GitLab or a manager that does not answer. The second half of a delay is random: a fleet
/// must not overload a server that restarts.
pub const OUTAGE_RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60)).with_jitter(0.5);

/// The state of a job for GitLab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Running,
    Success,
    Failed {
        /// A reason that the server supports.
        reason: FailureReason,
        /// Not sent if `None` or 0.
        exit_code: Option<i32>,
    },
}

/// Size and checksum of the whole log so far, after masking, time stamps and the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceSummary {
    /// In bytes.
    pub size: u64,
    /// CRC-32 (IEEE).
    pub crc32: u32,
}

/// The server's view of a job, sent with every response (header `Job-Status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobStatus {
    /// The job may continue.
    Ongoing,
    /// Cancelled gracefully: stop the script, run `after_script`, report.
    Canceling,
    /// The job has ended on the server: stop everything now.
    Finished,
}

/// The kind of a job's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceKind {
    Normal,
    /// The log shows the values of all variables (`CI_DEBUG_TRACE`), so GitLab hides it from users who must not see
    /// them.
    Debug,
}

/// The result of sending a part of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceOutcome {
    /// Accepted: the offset increases by the length of the part.
    Accepted,
    /// The server has another size: continue from there (`Range` of a 416).
    Resync(u64),
    /// 404: ignored while the job runs; ends the upload after the job has ended.
    NotFound,
    /// Unknown result (network, 429, 5xx): send the same offset again at the next interval.
    Failed,
}

/// The response to `PATCH jobs/:id/trace`.
#[derive(Clone, Debug)]
pub struct TraceReply {
    pub outcome: TraceOutcome,
    /// The job's status on the server; `Finished` for a 403.
    pub status: JobStatus,
    /// `X-GitLab-Trace-Update-Interval`, capped at 15 minutes.
    pub interval: Option<Duration>,
}

/// The result of sending a state of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpdateOutcome {
    /// 200: accepted.
    Done,
    /// 202: accepted, but the server still processes the log: repeat after the interval.
    Accepted,
    /// 412: the server's log differs: send it again from the start.
    TraceInvalid,
    /// 403, 404: the job does not belong to this agent any more.
    Gone,
    /// Unknown result (network, 429, 5xx).
    Failed,
}

/// The response to `PUT jobs/:id`.
#[derive(Clone, Debug)]
pub struct UpdateReply {
    pub outcome: UpdateOutcome,
    /// The job's status on the server; `Finished` for 403 and 404.
    pub status: JobStatus,
    /// `X-GitLab-Trace-Update-Interval`, capped at 15 minutes.
    pub interval: Option<Duration>,
}

/// Receives a job's log and states. Each source of jobs has one implementation.
pub trait Coordinator: Send + Sync {
    /// Sends `chunk`, the bytes of the log from offset `start`; never empty, at most 1 MiB.
    fn append_trace(&self, job: &JobHandle, start: u64, chunk: &[u8], kind: TraceKind) -> TraceReply;

    /// Sends the state of the job.
    fn update_job(&self, job: &JobHandle, state: &JobState, trace: TraceSummary) -> UpdateReply;

    /// The server's certificate chain as PEM, for a job's own requests to the server; `None` if it is unknown or TLS is
    /// not used.
    fn certificates(&self) -> Option<String> {
        None
    }

    /// The interval between updates of the log until a reply contains another one.
    fn first_interval(&self) -> Duration {
        Duration::from_secs(3)
    }
}
