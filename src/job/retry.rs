//! Retries a failed stage as often as the job configures.

use std::time::Duration;

use super::flags;
use super::outcome::{abort_error, stop_error};
use super::stage_result::{StageError, StageResult};
use super::steps::StepRunner;
use crate::backoff::Backoff;
use crate::sys::BootTime;

/// The delays between the attempts of a stage.
const STAGE_RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
/// The same with `FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY`.
const LONG_STAGE_RETRY: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(300));

/// Runs a stage, with the number of attempts in `variable`.
pub fn run(steps: &mut StepRunner<'_>, variable: &str, stage: fn(&mut StepRunner<'_>) -> StageResult) -> StageResult {
    let attempts = steps.job.settings.variables.attempts(variable);
    loop {
        let error = match stage(steps) {
            Err(StageError::Failed(error)) => error,
            ended => return ended,
        };
        let attempt = steps.journal.progress.attempt() + 1;
        let is_over = steps.job.control.stop_requests().stops_script() || steps.journal.progress.is_aborted();
        if attempt >= attempts || is_over {
            return Err(error.into());
        }
        steps.journal.progress.begin_attempt(attempt);
        steps.log.warn(steps.journal, format!("{error}. Retrying..."))?;
        let wait = delay(steps, attempt).min(steps.job.deadlines.time_left(BootTime::now()));
        steps.job.control.wait(wait);
        let stop_requests = steps.job.control.stop_requests();
        if stop_requests.stops_job() {
            steps.journal.progress.abort();
            return Err(abort_error(&stop_requests).into());
        }
        stop_error(&stop_requests).map_or(Ok(()), Err)?;
    }
}

fn delay(steps: &StepRunner<'_>, attempt: u32) -> Duration {
    let is_long = steps.job.settings.flags.is_on(flags::FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY);
    let backoff = if is_long { LONG_STAGE_RETRY } else { STAGE_RETRY };
    backoff.delay(attempt - 1)
}
