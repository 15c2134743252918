//! Reports of the end of jobs: in the agent's log, in the metrics, and at GitLab if the agent fails a job itself.

use crate::coordinator::{JobHandle, JobId, JobState, TraceSummary};
use crate::failure::{FailureReason, JobError};
use crate::job::context::RunnerContext;
use crate::job::fail_job;
use crate::job::run::JobOutcome;
use crate::journal::SlotDirectory;
use crate::monitor::metrics::{self, RunnerLabels};

/// Logs and counts the end of a job.
pub fn outcome(runner: &RunnerLabels, id: &JobId, outcome: &JobOutcome) {
    metrics::job_ended(runner, id, metric_result(outcome));
    let name = &runner.name;
    match outcome {
        JobOutcome::Reported { state, delivery, summary } => {
            let result = match state {
                JobState::Failed { reason, exit_code } => {
                    let code = exit_code.map(|code| format!(" exit_code={code}")).unwrap_or_default();
                    format!("failed reason={}{code}", reason.as_str())
                }
                _ => "success exit_code=0".to_owned(),
            };
            log::info!("job ended job={id} runner={name} state={result} {summary} delivery={}", delivery.as_str());
        }
        JobOutcome::Dropped => {
            log::info!("job dropped: GitLab no longer expects it from this runner job={id} runner={name}");
        }
    }
}

/// Whether the job failed because of the machine or the agent.
pub fn is_system_failure(state: &JobState) -> bool {
    matches!(state, JobState::Failed { reason: FailureReason::RunnerSystemFailure, .. })
}

/// The result, as a label for metrics.
fn metric_result(ended: &JobOutcome) -> &'static str {
    match ended {
        JobOutcome::Reported { state: JobState::Failed { reason, .. }, .. } => reason.as_str(),
        JobOutcome::Reported { .. } => "success",
        JobOutcome::Dropped => "dropped",
    }
}

/// Fails a job, with the error in its log.
pub fn fail_with_log(context: &RunnerContext, directory: &SlotDirectory, job: &JobHandle, why: &str) {
    match fail_job::fail(context, directory, job, why) {
        Ok(_) => {
            log::error!("job failed by the agent job={} error={why}", job.id);
            metrics::job_ended(&context.runner_labels(), &job.id, FailureReason::RunnerSystemFailure.as_str());
        }
        Err(error) => fail(context, job, &format!("{why}; its log cannot be written: {error}")),
    }
}

/// Fails a job whose log cannot be written on this machine.
pub fn fail(context: &RunnerContext, job: &JobHandle, why: &str) {
    metrics::job_ended(&context.runner_labels(), &job.id, FailureReason::RunnerSystemFailure.as_str());
    log::error!("job failed by the agent job={} error={why}", job.id);
    let error = JobError::new(FailureReason::RunnerSystemFailure, why);
    let state = JobState::Failed { reason: error.reason, exit_code: None };
    fail_job::send_reason(context, job, why);
    context.coordinator.update_job(job, &state, TraceSummary::default());
}
