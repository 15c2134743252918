//! Pauses polling for a runner after several jobs in a row failed with `runner_system_failure`.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use super::Unfit;
use crate::backoff::Backoff;
use crate::monitor::metrics::RunnerLabels;
use crate::sync;
use crate::sys::BootTime;

/// The pause of a runner after system failures in a row. Each further failure doubles it.
const FAILURE_PAUSE: Backoff = Backoff::new(Duration::from_secs(30), Duration::from_secs(1800));

/// Counts the system failures in a row of each runner.
#[derive(Default)]
pub struct FailureStreaks {
    /// The number of failures, and the time of the last one.
    streaks: Mutex<BTreeMap<RunnerLabels, (u32, BootTime)>>,
}

impl FailureStreaks {
    /// Records a job that failed with `runner_system_failure`.
    pub fn record_failure(&self, runner_labels: &RunnerLabels) {
        let mut streaks = sync::lock(&self.streaks);
        let (count, at) = streaks.entry(runner_labels.clone()).or_default();
        *count = count.saturating_add(1);
        *at = BootTime::now();
    }

    /// Records a job with another result, which ends the streak.
    pub fn end_streak(&self, runner_labels: &RunnerLabels) {
        sync::lock(&self.streaks).remove(runner_labels);
    }

    /// Errors: at least `max_failures` jobs in a row have failed and the pause is not over, so the runner must not
    /// poll.
    pub fn check(&self, runner_labels: &RunnerLabels, max_failures: Option<u32>) -> Result<(), Unfit> {
        let streaks = sync::lock(&self.streaks);
        let (Some(max_failures), Some((count, at))) = (max_failures, streaks.get(runner_labels)) else { return Ok(()) };
        let pause = pause_after(*count, max_failures);
        let is_over = at.elapsed() >= pause;
        if is_over { Ok(()) } else { Err(Unfit::Failures { count: *count, pause }) }
    }
}

/// The pause after `count` failures in a row: the first pause follows failure number `max_failures`.
fn pause_after(count: u32, max_failures: u32) -> Duration {
    match count.checked_sub(max_failures) {
        None => Duration::ZERO,
        Some(further) => FAILURE_PAUSE.delay(further),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_failures_in_a_row_and_end_with_a_success() {
        let seconds: Vec<u64> = (0..12).map(|count| pause_after(count, 3).as_secs()).collect();
        assert_eq!(seconds, [0, 0, 0, 30, 60, 120, 240, 480, 960, 1800, 1800, 1800]);
        let runner_labels = RunnerLabels { token: "t".to_owned(), name: "r".to_owned() };
        let streaks = FailureStreaks::default();
        for _ in 0..2 {
            streaks.record_failure(&runner_labels);
            assert_eq!(streaks.check(&runner_labels, Some(3)), Ok(()));
        }
        streaks.record_failure(&runner_labels);
        assert_eq!(
            streaks.check(&runner_labels, Some(3)).expect_err("polling must be paused").reason(),
            "system_failures"
        );
        assert_eq!(streaks.check(&runner_labels, None), Ok(()));
        streaks.end_streak(&runner_labels);
        assert_eq!(streaks.check(&runner_labels, Some(3)), Ok(()));
    }
}
