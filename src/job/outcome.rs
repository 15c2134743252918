//! The result of a stage, and its consequences for the job.

use std::io;

use super::artifacts::ScriptOutcome;
use crate::failure::{FailureReason, JobError};
use crate::journal::Progress;
use crate::journal::stop_requests::StopRequests;

/// Why a stage failed.
#[derive(Debug)]
pub enum StageError {
    /// The job fails, with this reason.
    Failed(JobError),
    /// The journal is not writable: the agent abandons the job.
    JournalUnusable(io::Error),
}

pub type StageResult<T = ()> = Result<T, StageError>;

impl From<JobError> for StageError {
    fn from(error: JobError) -> Self {
        Self::Failed(error)
    }
}

impl From<io::Error> for StageError {
    fn from(error: io::Error) -> Self {
        Self::JournalUnusable(error)
    }
}

/// The job's result so far.
pub fn outcome_so_far(progress: &Progress) -> ScriptOutcome {
    if progress.failure.is_none() { ScriptOutcome::Success } else { ScriptOutcome::Failure }
}

/// Fails the job with `error`, unless it has failed already.
pub fn record_failure(progress: &mut Progress, error: JobError) {
    if progress.status.is_none() {
        let status = match error.reason {
            FailureReason::JobCanceled => "canceled",
            FailureReason::JobExecutionTimeout => "timedout",
            _ => "failed",
        };
        progress.status = Some(status.to_owned());
    }
    // A job that is cancelled before its scripts ends at once: after_script has nothing to follow.
    progress.aborted |= error.reason == FailureReason::JobCanceled && !progress.scripts_started;
    if progress.aborted || progress.failure.is_none() {
        progress.failure = Some(error);
    }
}

/// The error of a job whose scripts must stop; `None` if they may continue.
pub fn stop_error(stop_requests: &StopRequests) -> Option<JobError> {
    match &stop_requests.evict {
        _ if stop_requests.cancel => Some(canceled()),
        Some(why) => Some(JobError::new(FailureReason::RunnerInterrupted, format!("aborted: {why}"))),
        None => None,
    }
}

/// The error of a job that is stopped at once.
pub fn abort_error(stop_requests: &StopRequests) -> JobError {
    match &stop_requests.interrupt {
        Some(why) if !stop_requests.finished => {
            JobError::new(FailureReason::RunnerInterrupted, format!("aborted: {why}"))
        }
        _ => canceled(),
    }
}

fn canceled() -> JobError {
    JobError::new(FailureReason::JobCanceled, "canceled")
}
