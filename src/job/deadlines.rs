//! The timeouts of a job and its stages, and the errors when they pass. Pure functions; callers pass the time.

use std::time::Duration;

use super::settings::format_duration;
use crate::config::Runner;
use crate::failure::{FailureReason, JobError};
use crate::payload::Payload;
use crate::payload::variables::Variables;

/// The timeout of after_script unless the job sets `RUNNER_AFTER_SCRIPT_TIMEOUT`.
const AFTER_SCRIPT_TIMEOUT: Duration = Duration::from_secs(300);

/// The scope of a deadline: what ends when it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadlineScope {
    Stage,
    Job,
}

/// The deadline of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepDeadline {
    pub scope: DeadlineScope,
    /// In nanoseconds of `CLOCK_BOOTTIME`.
    pub deadline: u64,
    /// The error when it passes before the job's own deadline does.
    pub error: JobError,
}

/// The timeouts of one job.
#[derive(Clone, Debug)]
pub struct Deadlines {
    /// When the job began, in nanoseconds of `CLOCK_BOOTTIME`.
    began: u64,
    job: Duration,
    prepare: Option<Duration>,
    sources: Option<Duration>,
    scripts: Option<Duration>,
    after_script: Duration,
}

impl Deadlines {
    pub fn new(began: u64, runner: &Runner, payload: &Payload, variables: &Variables) -> Self {
        let of_job = |key: &str| variables.duration(key).filter(|timeout| !timeout.is_zero());
        Self {
            began,
            job: Duration::from_secs(payload.timeout_seconds()),
            prepare: runner.prepare_timeout,
            sources: runner.get_sources_timeout,
            scripts: of_job("RUNNER_SCRIPT_TIMEOUT"),
            after_script: of_job("RUNNER_AFTER_SCRIPT_TIMEOUT").unwrap_or(AFTER_SCRIPT_TIMEOUT),
        }
    }

    /// The deadline of the job, in nanoseconds of `CLOCK_BOOTTIME`.
    pub fn job_deadline(&self) -> u64 {
        self.began.saturating_add(nanoseconds(self.job))
    }

    /// The error of a job that exceeded its timeout.
    pub fn job_timed_out(&self) -> JobError {
        timed_out(format!("execution took longer than {}", format_duration(self.job)))
    }

    /// Time left for the job at `now`.
    pub fn time_left(&self, now: u64) -> Duration {
        Duration::from_nanos(self.job_deadline().saturating_sub(now))
    }

    /// The deadline of a stage without its own timeout.
    pub fn job(&self) -> StepDeadline {
        StepDeadline { scope: DeadlineScope::Job, deadline: self.job_deadline(), error: self.job_timed_out() }
    }

    /// The deadline of the executor's preparation, counted from the start of the job.
    pub fn prepare(&self) -> StepDeadline {
        let Some(timeout) = self.prepare else { return self.job() };
        self.limit(DeadlineScope::Job, self.began.saturating_add(nanoseconds(timeout)), "prepare", timeout)
    }

    /// The deadline for the sources. All attempts share the deadline that the first one stores in `noted`.
    pub fn sources(&self, noted: &mut Option<u64>, now: u64) -> StepDeadline {
        let Some(timeout) = self.sources else { return self.job() };
        let deadline = *noted.get_or_insert_with(|| now.saturating_add(nanoseconds(timeout)));
        self.limit(DeadlineScope::Job, deadline, "get sources", timeout)
    }

    /// The deadline for the payload's steps. All steps share the deadline that the first one stores in `noted`.
    pub fn scripts(&self, noted: &mut Option<u64>, now: u64) -> StepDeadline {
        if let Some(timeout) = self.scripts {
            noted.get_or_insert_with(|| now.saturating_add(nanoseconds(timeout)));
        }
        match *noted {
            Some(deadline) => self.limit(DeadlineScope::Stage, deadline, "script", self.scripts.unwrap_or_default()),
            None => self.job(),
        }
    }

    /// The deadline of after_script.
    pub fn after_script(&self, now: u64) -> StepDeadline {
        let deadline = now.saturating_add(nanoseconds(self.after_script));
        self.limit(DeadlineScope::Stage, deadline, "after_script", self.after_script)
    }

    fn limit(&self, ends: DeadlineScope, deadline: u64, what: &str, timeout: Duration) -> StepDeadline {
        StepDeadline {
            scope: ends,
            deadline: self.job_deadline().min(deadline),
            error: timed_out(format!("{what} timeout: exceeded timeout of {}", format_duration(timeout))),
        }
    }
}

fn timed_out(message: String) -> JobError {
    JobError::new(FailureReason::JobExecutionTimeout, message)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn deadlines() -> Deadlines {
        let seconds = Duration::from_secs;
        Deadlines {
            began: 100 * SECOND,
            job: seconds(3600),
            prepare: Some(seconds(60)),
            sources: Some(seconds(30)),
            scripts: Some(seconds(7200)),
            after_script: seconds(300),
        }
    }

    #[test]
    fn attempts_share_the_deadline_of_the_first_one() {
        let mut noted = None;
        assert_eq!(deadlines().sources(&mut noted, 200 * SECOND).deadline, 230 * SECOND);
        assert_eq!(deadlines().sources(&mut noted, 220 * SECOND).deadline, 230 * SECOND);
        assert_eq!(noted, Some(230 * SECOND));
    }

    #[test]
    fn no_deadline_is_later_than_that_of_the_job() {
        let (mut noted, late) = (None, 3650 * SECOND);
        assert_eq!(deadlines().prepare().deadline, 160 * SECOND);
        assert_eq!(deadlines().scripts(&mut noted, late).deadline, 3700 * SECOND);
        assert_eq!(deadlines().after_script(late).deadline, 3700 * SECOND);
        assert_eq!(deadlines().time_left(late), Duration::from_secs(50));
    }

    #[test]
    fn a_stage_without_a_timeout_has_the_deadline_of_the_job() {
        let mut noted = None;
        let plain = Deadlines { prepare: None, sources: None, scripts: None, ..deadlines() };
        let job = plain.job();
        assert_eq!(
            [plain.prepare(), plain.sources(&mut noted, 0), plain.scripts(&mut noted, 0)],
            [job.clone(), job.clone(), job]
        );
        assert_eq!(noted, None);
    }
}
