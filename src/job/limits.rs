//! How long things may take, and whose error it is when they take longer.

use std::time::Duration;

use super::engine::Engine;
use super::settings::in_words;
use crate::failure::{FailureReason, JobError};
use crate::sys;

/// Limit of after_script, unless the job sets another.
const AFTER_SCRIPT_TIMEOUT: Duration = Duration::from_secs(300);

/// What is over when the time of a step is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Stage,
    Job,
}

/// The time a step has.
pub struct Limit {
    /// What is over then.
    pub over: Over,
    /// In nanoseconds of `CLOCK_BOOTTIME`.
    pub deadline: u64,
    /// The error when it is over, unless the whole job's time is over.
    pub error: JobError,
}

impl Engine<'_> {
    /// What is prepared before the job's first own line.
    pub(super) fn prepare_limit(&self) -> Limit {
        let Some(timeout) = self.context.runner.prepare_timeout else { return self.job_limit() };
        Limit {
            over: Over::Job,
            deadline: self.job_deadline().min(self.record.began.saturating_add(nanos(timeout))),
            error: timed_out(format!("prepare timeout: exceeded timeout of {}", in_words(timeout))),
        }
    }

    /// All tries share one limit, and nothing comes after it.
    pub(super) fn sources_limit(&mut self) -> Limit {
        let Some(timeout) = self.context.runner.get_sources_timeout else { return self.job_limit() };
        let own = || sys::boottime().saturating_add(nanos(timeout));
        let deadline = *self.record.progress.sources_deadline.get_or_insert_with(own);
        Limit {
            over: Over::Job,
            deadline: self.job_deadline().min(deadline),
            error: timed_out(format!("get sources timeout: exceeded timeout of {}", in_words(timeout))),
        }
    }

    /// All steps of the payload share one limit.
    pub(super) fn script_limit(&mut self) -> Limit {
        let job = self.job_deadline();
        let timeout = self.limit_of("RUNNER_SCRIPT_TIMEOUT");
        if let Some(timeout) = timeout.filter(|_| self.record.progress.scripts_deadline.is_none()) {
            self.record.progress.scripts_deadline = Some(sys::boottime().saturating_add(nanos(timeout)));
        }
        match self.record.progress.scripts_deadline {
            Some(deadline) => Limit {
                over: Over::Stage,
                deadline: job.min(deadline),
                error: timed_out(format!(
                    "script timeout: exceeded timeout of {}",
                    in_words(timeout.unwrap_or_default())
                )),
            },
            None => self.job_limit(),
        }
    }

    /// It has time of its own, as long as the job has.
    pub(super) fn after_script_limit(&self) -> Limit {
        let timeout = self.limit_of("RUNNER_AFTER_SCRIPT_TIMEOUT").unwrap_or(AFTER_SCRIPT_TIMEOUT);
        Limit {
            over: Over::Stage,
            deadline: self.job_deadline().min(sys::boottime().saturating_add(nanos(timeout))),
            error: timed_out(format!("after_script timeout: exceeded timeout of {}", in_words(timeout))),
        }
    }

    /// When the job must be over, in nanoseconds of `CLOCK_BOOTTIME`.
    pub(super) fn job_deadline(&self) -> u64 {
        self.record.began.saturating_add(self.payload.timeout_seconds().saturating_mul(1_000_000_000))
    }

    /// The limit of what has none of its own.
    pub(super) fn job_limit(&self) -> Limit {
        Limit { over: Over::Job, deadline: self.job_deadline(), error: self.job_timed_out() }
    }

    /// Until the job must be over.
    pub(super) fn time_left(&self) -> Duration {
        Duration::from_nanos(self.job_deadline().saturating_sub(sys::boottime()))
    }

    /// The error of a job that took too long.
    pub(super) fn job_timed_out(&self) -> JobError {
        let timeout = Duration::from_secs(self.payload.timeout_seconds());
        timed_out(format!("execution took longer than {}", in_words(timeout)))
    }

    fn limit_of(&self, key: &str) -> Option<Duration> {
        self.prepared.variables.duration(key).filter(|timeout| !timeout.is_zero())
    }
}

fn timed_out(message: String) -> JobError {
    JobError::new(FailureReason::JobExecutionTimeout, message)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
