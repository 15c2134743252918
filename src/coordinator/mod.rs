//! Who hands out jobs and hears of them: GitLab over HTTPS, or a local pipeline (the layers above).
//!
//! This layer speaks the protocol and nothing else: it never runs a job, writes a log or decides to leave.

pub mod gitlab;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::FailureReason;
use crate::token::Token;

/// A job's number as it stands in the path of its calls: text, so that a job with a number that no integer of ours holds
/// can be failed at the server all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobId(String);

impl JobId {
    /// Letters that an id has at most.
    const LENGTH_MAX: usize = 64;

    /// The id that a text is; `None` if it could mean more than one part of a path.
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        (is_plain && (1..=Self::LENGTH_MAX).contains(&text.len())).then(|| Self(text.to_owned()))
    }
}

impl From<i64> for JobId {
    fn from(number: i64) -> Self {
        Self(number.to_string())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What names a job in every later call.
#[derive(Clone, Debug)]
pub struct JobHandle {
    /// The job's number, part of the path of its calls.
    pub id: JobId,
    /// The job's own token; it dies when the job ends.
    pub token: Token,
}

/// What a job looks like from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It is being worked on.
    Running,
    /// It ended well.
    Success,
    /// It ended badly.
    Failed {
        /// Already mapped to what the server accepts.
        reason: FailureReason,
        /// Omitted on the wire when `None` or 0.
        exit_code: Option<i32>,
    },
}

/// Size and checksum of the whole log so far, after masking, stamping and the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceSummary {
    /// Bytes.
    pub size: u64,
    /// CRC-32 (IEEE).
    pub crc32: u32,
}

/// What the server says of a job in passing (header `Job-Status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobStatus {
    /// Nothing special: go on.
    Ongoing,
    /// Cancelled gracefully: stop the script, run `after_script`, report.
    Canceling,
    /// Over on the server: stop everything now.
    Finished,
}

/// The answer to a piece of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceOutcome {
    /// Taken: the offset moves by what was sent.
    Accepted,
    /// The server has another size: go on from there (`Range` of a 416).
    Resync(u64),
    /// 404: ignored while the job runs; ends the log in the final phase.
    NotFound,
    /// Nothing settled (network, 429, 5xx): the same offset again at the next tick.
    Failed,
}

/// The reply to a `PATCH jobs/:id/trace`.
#[derive(Clone, Debug)]
pub struct TraceReply {
    /// What became of the bytes.
    pub outcome: TraceOutcome,
    /// What the server says of the job; `Over` for a 403.
    pub status: JobStatus,
    /// `X-GitLab-Trace-Update-Interval`, capped at 15 minutes.
    pub interval: Option<Duration>,
}

/// The answer to a state of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpdateOutcome {
    /// 200: settled.
    Done,
    /// 202: taken, but the log is still being moved: ask again after the interval.
    Accepted,
    /// 412: the server's log is not ours: send it again from its start.
    TraceInvalid,
    /// 403, 404: the job is not (any longer) ours.
    Gone,
    /// Nothing settled (network, 429, 5xx).
    Failed,
}

/// The reply to a `PUT jobs/:id`.
#[derive(Clone, Debug)]
pub struct UpdateReply {
    /// What became of the state.
    pub outcome: UpdateOutcome,
    /// What the server says of the job; `Over` for 403 and 404.
    pub status: JobStatus,
    /// `X-GitLab-Trace-Update-Interval`, capped at 15 minutes.
    pub interval: Option<Duration>,
}

/// Where a job's log and states go. One implementation a source of jobs.
pub trait Coordinator: Send + Sync {
    /// Sends `chunk`, the bytes of the log that start at `start`. Never empty, at most 1 MiB.
    fn append_trace(&self, job: &JobHandle, start: u64, chunk: &[u8], debug_trace: bool) -> TraceReply;

    /// Tells the state of the job.
    fn update_job(&self, job: &JobHandle, state: &JobState, trace: TraceSummary) -> UpdateReply;

    /// The certificates with which the server proves itself, as PEM, for a job's own calls to it; `None` when that is
    /// not known or there is no TLS.
    fn certificates(&self) -> Option<String> {
        None
    }

    /// True when someone sits before the log and wants to see each line at once.
    fn is_interactive(&self) -> bool {
        false
    }
}
