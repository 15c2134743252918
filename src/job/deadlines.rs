//! The timeouts of a job and its stages, and the errors when they pass. Pure functions; callers pass the time.

use std::time::Duration;

use crate::config::Runner;
use crate::failure::{FailureReason, JobError};
use crate::payload::Payload;
use crate::payload::variables::Variables;
use crate::sys::BootTime;

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
    pub at: BootTime,
    /// The error of a step that reaches this deadline before the deadline of the job.
    pub error: JobError,
}

/// The timeouts of one job.
#[derive(Clone, Debug)]
pub struct Deadlines {
    /// When the job began.
    began: BootTime,
    job: Duration,
    prepare: Option<Duration>,
    sources: Option<Duration>,
    scripts: Option<Duration>,
    after_script: Duration,
}

impl Deadlines {
    pub fn new(began: BootTime, runner: &Runner, payload: &Payload, variables: &Variables) -> Self {
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

    /// The deadline of the job.
    pub fn job_deadline(&self) -> BootTime {
        self.began + self.job
    }

    /// The error of a job that exceeded its timeout.
    pub fn job_timed_out(&self) -> JobError {
        timed_out(format!("execution took longer than {}", format_duration(self.job)))
    }

    /// Time left for the job at `now`.
    pub fn time_left(&self, now: BootTime) -> Duration {
        self.job_deadline().since(now)
    }

    /// The deadline of a stage without its own timeout.
    pub fn job(&self) -> StepDeadline {
        StepDeadline { scope: DeadlineScope::Job, at: self.job_deadline(), error: self.job_timed_out() }
    }

    /// The deadline of the executor's preparation, counted from the start of the job.
    pub fn prepare(&self) -> StepDeadline {
        let Some(timeout) = self.prepare else { return self.job() };
        self.step_deadline(DeadlineScope::Job, self.began + timeout, "prepare", timeout)
    }

    /// The deadline for the sources. All attempts share the deadline that the first one stores in `noted`.
    pub fn sources(&self, noted: &mut Option<BootTime>, now: BootTime) -> StepDeadline {
        let Some(timeout) = self.sources else { return self.job() };
        let deadline = *noted.get_or_insert_with(|| now + timeout);
        self.step_deadline(DeadlineScope::Job, deadline, "get sources", timeout)
    }

    /// The deadline for the payload's steps. All steps share the deadline that the first one stores in `noted`.
    pub fn scripts(&self, noted: &mut Option<BootTime>, now: BootTime) -> StepDeadline {
        if let Some(timeout) = self.scripts {
            noted.get_or_insert_with(|| now + timeout);
        }
        match *noted {
            Some(deadline) => {
                self.step_deadline(DeadlineScope::Stage, deadline, "script", self.scripts.unwrap_or_default())
            }
            None => self.job(),
        }
    }

    /// The deadline of after_script.
    pub fn after_script(&self, now: BootTime) -> StepDeadline {
        let deadline = now + self.after_script;
        self.step_deadline(DeadlineScope::Stage, deadline, "after_script", self.after_script)
    }

    fn step_deadline(&self, scope: DeadlineScope, at: BootTime, what: &str, timeout: Duration) -> StepDeadline {
        StepDeadline {
            scope,
            at: self.job_deadline().min(at),
            error: timed_out(format!("{what} timeout: exceeded timeout of {}", format_duration(timeout))),
        }
    }
}

fn timed_out(message: String) -> JobError {
    JobError::new(FailureReason::JobExecutionTimeout, message)
}

/// A duration in Go's syntax: `1h30m0s`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime::default() + Duration::from_secs(seconds)
    }

    fn deadlines() -> Deadlines {
        let seconds = Duration::from_secs;
        Deadlines {
            began: at(100),
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
        assert_eq!(deadlines().sources(&mut noted, at(200)).at, at(230));
        assert_eq!(deadlines().sources(&mut noted, at(220)).at, at(230));
        assert_eq!(noted, Some(at(230)));
    }

    #[test]
    fn no_deadline_is_later_than_that_of_the_job() {
        let (mut noted, late) = (None, at(3650));
        assert_eq!(deadlines().prepare().at, at(160));
        assert_eq!(deadlines().scripts(&mut noted, late).at, at(3700));
        assert_eq!(deadlines().after_script(late).at, at(3700));
        assert_eq!(deadlines().time_left(late), Duration::from_secs(50));
    }

    #[test]
    fn a_stage_without_a_timeout_has_the_deadline_of_the_job() {
        let mut noted = None;
        let plain = Deadlines { prepare: None, sources: None, scripts: None, ..deadlines() };
        let job = plain.job();
        assert_eq!(
            [plain.prepare(), plain.sources(&mut noted, at(0)), plain.scripts(&mut noted, at(0))],
            [job.clone(), job.clone(), job]
        );
        assert_eq!(noted, None);
    }
}
