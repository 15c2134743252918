//! The effect of failures and of stop requests on the result of a job.

use super::context::Job;
use super::stages::Stage;
use crate::coordinator::JobState;
use crate::failure::{FailureReason, JobError};
use crate::journal::stop_requests::StopRequests;
use crate::journal::{Progress, RemainingStages};

/// Fails the job with `error`, unless it has failed already.
fn record_failure(progress: &mut Progress, error: JobError) {
    // A job that is cancelled before its scripts ends at once: after_script runs only after the scripts have started.
    if error.reason == FailureReason::JobCanceled && progress.scripts.is_none() {
        progress.abort();
    }
    if progress.is_aborted() || progress.failure.is_none() {
        progress.failure = Some(error);
    }
}

/// Applies stop requests that arrived before the stage `next`.
pub fn apply_stop_requests(progress: &mut Progress, stop_requests: &StopRequests, next: &Stage) {
    if stop_requests.eviction().is_some() {
        progress.limit(RemainingStages::Results);
    }
    if stop_requests.stops_job() {
        progress.abort();
        // When only the clean-up is left, the result of the job is known.
        if *next != Stage::CleanUp {
            progress.failure = Some(abort_error(stop_requests));
        }
    } else if let Some(error) = stop_error(stop_requests)
        && progress.failure.is_none()
        && next.stops_on_cancel()
    {
        record_failure(progress, error);
    }
}

/// Applies the failure of a stage to the job. Returns a warning for the log, if the log does not explain the failure
/// yet.
pub fn apply_failure(progress: &mut Progress, job: &Job<'_>, stage: &Stage, error: JobError) -> Option<String> {
    if *stage == Stage::AfterScript && ignores_after_script(progress, job) {
        return Some(format!("after_script failed, but job will continue unaffected: {error}"));
    }
    let warning = match error.reason {
        FailureReason::JobCanceled if !job.control.stop_requests().stops_job() => {
            Some("script canceled externally (UI, API)".to_owned())
        }
        FailureReason::JobExecutionTimeout => {
            let section = progress.section().unwrap_or_default();
            Some(format!("{section} could not run to completion because the timeout was exceeded"))
        }
        _ => None,
    };
    record_failure(progress, error);
    warning
}

/// A failed after_script does not fail the job, unless the job requests that and nothing failed before.
fn ignores_after_script(progress: &Progress, job: &Job<'_>) -> bool {
    let ignored = job.settings.variables.boolean("AFTER_SCRIPT_IGNORE_ERRORS").unwrap_or(true);
    !progress.is_aborted() && (ignored || progress.failure.is_some())
}

/// The final state of a job whose stages have ended; `supported_reasons` are the failure reasons that the server
/// supports.
pub fn final_state(progress: &Progress, supported_reasons: &[String]) -> JobState {
    match &progress.failure {
        None => JobState::Success,
        Some(error) => {
            JobState::Failed { reason: error.reason.supported_by(supported_reasons), exit_code: error.exit_code }
        }
    }
}

/// `CI_JOB_STATUS` for after_script.
pub fn job_status(failure: Option<&JobError>) -> &'static str {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::stop_requests::StopRequest;

    #[test]
    fn a_job_with_only_the_clean_up_left_keeps_its_result() {
        let mut requests = StopRequests::default();
        requests.add(StopRequest::Interrupt("the agent exits".to_owned()));
        let applied = |next: Stage| {
            let mut progress = Progress::default();
            apply_stop_requests(&mut progress, &requests, &next);
            (progress.is_aborted(), final_state(&progress, &[]))
        };
        assert_eq!(applied(Stage::CleanUp), (true, JobState::Success));
        let (is_aborted, state) = applied(Stage::UploadArtifacts);
        assert!(is_aborted && matches!(state, JobState::Failed { .. }), "{state:?}");
    }
}
