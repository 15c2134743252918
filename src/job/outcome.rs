//! The result of a stage, and its effect on the job.

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
    // A job that is cancelled before its scripts ends at once: after_script runs only after the scripts have started.
    if error.reason == FailureReason::JobCanceled && progress.scripts.is_none() {
        progress.abort();
    }
    if progress.is_aborted() || progress.failure.is_none() {
        progress.failure = Some(error);
    }
}

/// `CI_JOB_STATUS` for after_script.
pub fn status_of(failure: Option<&JobError>) -> &'static str {
    match failure.map(|error| error.reason) {
        None => "success",
        Some(FailureReason::JobCanceled) => "canceled",
        Some(FailureReason::JobExecutionTimeout) => "timedout",
        Some(_) => "failed",
    }
}

/// The error of a job whose scripts must stop; `None` if they may continue.
pub fn stop_error(stop_requests: &StopRequests) -> Option<JobError> {
    match stop_requests.eviction() {
        _ if stop_requests.is_canceled() => Some(canceled()),
        Some(why) => Some(JobError::new(FailureReason::RunnerInterrupted, format!("aborted: {why}"))),
        None => None,
    }
}

/// The error of a job that is stopped at once.
pub fn abort_error(stop_requests: &StopRequests) -> JobError {
    match stop_requests.interruption() {
        Some(why) if !stop_requests.is_finished() => {
            JobError::new(FailureReason::RunnerInterrupted, format!("aborted: {why}"))
        }
        _ => canceled(),
    }
}

fn canceled() -> JobError {
    JobError::new(FailureReason::JobCanceled, "canceled")
}
