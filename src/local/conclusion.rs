//! The final status of a job, and whether the job is retried after a failure.

use super::results::ResultStatus;
use super::schedule::{Conclusion, ScheduleState};
use crate::failure::FailureReason;
use crate::pipeline::plan::Job;

/// The status in the results of a job that has this state when the run ends.
pub fn final_status(state: ScheduleState) -> ResultStatus {
    match state {
        ScheduleState::Done(Conclusion::Success) => ResultStatus::Success,
        ScheduleState::Done(Conclusion::Warning) => ResultStatus::Warning,
        ScheduleState::Done(Conclusion::Failed) => ResultStatus::Failed,
        ScheduleState::Done(Conclusion::Skipped) => ResultStatus::Skipped,
        ScheduleState::Done(Conclusion::Canceled) => ResultStatus::Canceled,
        ScheduleState::Manual => ResultStatus::Manual,
        ScheduleState::Waiting | ScheduleState::Delayed(_) | ScheduleState::Due | ScheduleState::Running => {
            ResultStatus::Waiting
        }
    }
}

/// The largest number of retries of a job after this failure (keyword `retry`).
pub fn max_retries(job: &Job, reason: FailureReason, code: Option<i32>) -> u32 {
    let Some(retry) = &job.retry else { return 0 };
    let by_code = retry.exit_codes.as_ref().map(|codes| code.is_some_and(|code| codes.contains(&code)));
    let by_reason = retry.when.as_ref().map(|words| words.iter().any(|word| matches_reason(word, reason)));
    match (by_code, by_reason) {
        (None, None) => retry.max,
        (code, reason) if code == Some(true) || reason == Some(true) => retry.max,
        _ => 0,
    }
}

/// Whether a value of `retry:when` matches one of mayfly's failure reasons.
fn matches_reason(word: &str, reason: FailureReason) -> bool {
    match word {
        "always" => true,
        "stuck_or_timeout_failure" => false,
        "runner_system_failure" => matches!(
            reason,
            FailureReason::RunnerSystemFailure
                | FailureReason::ImagePullFailure
                | FailureReason::RunnerExternalDependencyFailure
        ),
        _ => word == reason.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_values_of_retry_when_to_failure_reasons() {
        for (word, reason, expected) in [
            ("always", FailureReason::ScriptFailure, true),
            ("script_failure", FailureReason::ScriptFailure, true),
            ("script_failure", FailureReason::JobExecutionTimeout, false),
            ("runner_system_failure", FailureReason::ImagePullFailure, true),
            ("stuck_or_timeout_failure", FailureReason::JobExecutionTimeout, false),
        ] {
            assert_eq!(matches_reason(word, reason), expected, "{word}");
        }
    }
}
