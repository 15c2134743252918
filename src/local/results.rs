//! The results of the jobs of a run.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use crate::failure::FailureReason;

/// The largest number of output lines of a failed job that the summary repeats.
pub const MAX_TAIL_LINES: usize = 20;

/// One job of the run.
#[derive(Clone, Debug)]
pub struct JobResult {
    /// The name; for a job of a child pipeline, prefixed with the name of the trigger job and a slash.
    pub name: String,
    pub stage: String,
    pub status: ResultStatus,
    /// Whether the pipeline waits for a person to start this job.
    pub is_blocking: bool,
    /// The exit code of the last attempt.
    pub exit_code: Option<i32>,
    /// The duration of all attempts.
    pub duration: Option<Duration>,
    /// The number of attempts.
    pub attempts: u32,
    /// The coverage, as text.
    pub coverage: Option<String>,
    pub failure_reason: Option<FailureReason>,
    /// The message about the failure.
    pub message: Option<String>,
    /// The file with the output of the job.
    pub log: Option<PathBuf>,
    /// The last lines of the output.
    pub tail: VecDeque<String>,
    /// The command that ran last.
    pub command: Option<String>,
    /// The directory in which the tree of the job is kept.
    pub kept: Option<PathBuf>,
}

/// The final status of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultStatus {
    Success,
    /// The job failed, and its failure is allowed.
    Warning,
    Failed,
    /// The job did not run.
    Skipped,
    /// The job waits for a person to start it.
    Manual,
    /// A manual job blocks this job.
    Waiting,
    Canceled,
}

impl ResultStatus {
    /// The status in reports and tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Manual => "manual",
            Self::Waiting => "waiting",
            Self::Canceled => "canceled",
        }
    }
}

/// The result of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// Every job succeeded or was allowed to fail.
    Success,
    /// A job failed.
    Failed,
    /// A manual job blocks the remaining jobs.
    Blocked,
    /// The user interrupted the run.
    Interrupted,
}

impl RunStatus {
    /// The result in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Blocked => "blocked",
            Self::Interrupted => "interrupted",
        }
    }

    /// The exit status of the program.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::Blocked => 3,
            Self::Interrupted => 130,
        }
    }
}

/// Formats a duration: `0.4s`, `12s`, `3m 05s`.
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", duration.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
    }
}
