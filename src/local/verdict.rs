//! What the end of an attempt means.

use super::results::Status;
use super::schedule::{State, Verdict};
use crate::failure::FailureReason;
use crate::pipeline::plan::Job;

/// The word for where a job stands at the end.
pub fn status_of(state: State) -> Status {
    match state {
        State::Done(Verdict::Success) => Status::Success,
        State::Done(Verdict::Warning) => Status::Warning,
        State::Done(Verdict::Failed) => Status::Failed,
        State::Done(Verdict::Skipped) => Status::Skipped,
        State::Done(Verdict::Canceled) => Status::Canceled,
        State::Manual => Status::Manual,
        State::Waiting | State::Delayed(_) | State::Due | State::Running => Status::Waiting,
    }
}

/// How often a job is tried again after such a failure.
pub fn retries(job: &Job, reason: FailureReason, code: Option<i32>) -> u32 {
    let Some(retry) = &job.retry else { return 0 };
    let by_code = retry.exit_codes.as_ref().map(|codes| code.is_some_and(|code| codes.contains(&code)));
    let by_reason = retry.when.as_ref().map(|words| words.iter().any(|word| is_meant(word, reason)));
    match (by_code, by_reason) {
        (None, None) => retry.max,
        (code, reason) if code == Some(true) || reason == Some(true) => retry.max,
        _ => 0,
    }
}

/// Whether a word of `retry:when` means a reason of ours.
fn is_meant(word: &str, reason: FailureReason) -> bool {
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
    fn words_of_retry_mean_reasons() {
        for (word, reason, expected) in [
            ("always", FailureReason::ScriptFailure, true),
            ("script_failure", FailureReason::ScriptFailure, true),
            ("script_failure", FailureReason::JobExecutionTimeout, false),
            ("runner_system_failure", FailureReason::ImagePullFailure, true),
            ("stuck_or_timeout_failure", FailureReason::JobExecutionTimeout, false),
        ] {
            assert_eq!(is_meant(word, reason), expected, "{word}");
        }
    }
}
