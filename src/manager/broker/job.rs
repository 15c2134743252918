//! A job of a pool, and its phase.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::log_line::LineFormat;
use crate::coordinator::JobHandle;
use crate::failure::FailureReason;
use crate::manager::server::Ticket;
use crate::manager::store::records::Accepted;

/// A job of the pool.
pub struct PoolJob {
    /// The id and the token.
    pub handle: JobHandle,
    /// The payload as GitLab sent it; `None` after an agent has accepted the job.
    pub payload: Option<Arc<[u8]>>,
    /// The id of the request that returned the job.
    pub request_id: String,
    /// The path of the project, for display.
    pub project: String,
    /// The URL of the job's page.
    pub link: String,
    /// The time at which the manager received the job, by the wall clock.
    pub taken: SystemTime,
    /// The same by the monotonic clock.
    pub taken_at: Instant,
    /// The time of the last offer.
    pub offered_at: Instant,
    /// The time at which the job fails if no agent has accepted it.
    pub hold_until: Instant,
    /// The format of the lines of the job's log.
    pub line_format: LineFormat,
    /// The lines that the manager wrote to the job's log.
    pub trace: String,
    /// The number of bytes of `trace` that GitLab has.
    pub trace_sent: u64,
    /// The keeper has sent a request about the job to GitLab and waits for the response. Until then the job is not
    /// offered, and the keeper sends no second request.
    pub has_request_in_flight: bool,
    /// The time of the next request that keeps the job alive.
    pub keep_at: Instant,
    pub log_origin: LogOrigin,
    pub commit: CommitState,
    /// The phase of the job.
    pub phase: Phase,
}

/// The origin of the job's log at GitLab.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LogOrigin {
    /// The manager wrote all of it.
    Manager,
    /// An agent, or an earlier manager that lost its state, may have written parts that this manager does not know.
    Foreign,
}

/// Whether a job of a GitLab with `two_phase_job_commit` still waits for the sign that its script starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum CommitState {
    /// GitLab has not answered yet.
    Unknown,
    /// GitLab keeps the job pending.
    Pending,
    /// The job runs at GitLab, or GitLab does not support `two_phase_job_commit`.
    Committed,
}

/// The phase of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No agent has the job.
    Held,
    /// The job is offered to an agent.
    Offered(Offered),
    /// An agent accepts the job, and the acceptance is being written to the store.
    Accepting(Offered),
    /// An agent has accepted the job.
    Running {
        /// The offer that the agent accepted.
        by: Accepted,
        /// The stage in the agent's last report.
        stage: &'static str,
        /// The number of consecutive heartbeats without the job.
        missing: u32,
    },
    /// The job must be failed at GitLab.
    Failing {
        /// The failure reason.
        reason: FailureReason,
        /// The cause.
        why: String,
        /// The last line of the job's log. Each attempt sends the same bytes: GitLab may have them from an earlier one.
        line: String,
        /// The time of the first attempt.
        since: Instant,
        /// The number of attempts.
        attempts: u32,
    },
}

/// An offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// The id of the job.
    pub id: String,
    /// The instance of the agent.
    pub instance: String,
    /// The poll that the offer answers.
    pub ticket: Ticket,
    /// The time until which the agent can accept.
    pub until: Instant,
}

impl Phase {
    /// The job must be failed because the manager cannot hand it out.
    pub fn failing(why: &str, line_format: LineFormat, since: Instant) -> Self {
        let line = line_format.failure_line(why);
        Self::Failing { reason: FailureReason::RunnerSystemFailure, why: why.to_owned(), line, since, attempts: 0 }
    }

    /// The instance that has the job, or is offered it.
    pub fn instance(&self) -> Option<&str> {
        match self {
            Self::Offered(offered) | Self::Accepting(offered) => Some(&offered.instance),
            Self::Running { by, .. } => Some(&by.instance),
            Self::Held | Self::Failing { .. } => None,
        }
    }
}

impl PoolJob {
    /// A new job.
    pub fn new(handle: JobHandle, now: Instant, hold: Duration) -> Self {
        Self {
            handle,
            payload: None,
            request_id: String::new(),
            project: String::new(),
            link: String::new(),
            taken: SystemTime::now(),
            taken_at: now,
            offered_at: now,
            hold_until: now + hold,
            line_format: LineFormat::Timestamped,
            trace: String::new(),
            trace_sent: 0,
            has_request_in_flight: false,
            keep_at: now,
            log_origin: LogOrigin::Manager,
            commit: CommitState::Unknown,
            phase: Phase::Held,
        }
    }

    /// Whether the agent of this instance has the job.
    pub fn is_run_by(&self, instance: &str) -> bool {
        matches!(&self.phase, Phase::Running { by, .. } if by.instance == instance)
    }
}
