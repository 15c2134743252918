//! How the jobs of a run came out.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use crate::failure::FailureReason;

/// Lines of a failed job that are shown again at the end.
pub const TAIL: usize = 20;

/// One job of the run.
#[derive(Clone, Debug)]
pub struct JobResult {
    /// Its name; that of a child pipeline's job with the trigger's name and a slash before it.
    pub name: String,
    /// Its stage.
    pub stage: String,
    /// How it came out.
    pub status: Status,
    /// The exit code of the last attempt.
    pub exit_code: Option<i32>,
    /// Of the last attempt.
    pub duration: Option<Duration>,
    /// How often it was started.
    pub attempts: u32,
    /// The number that `coverage` found, as text.
    pub coverage: Option<String>,
    /// Why it failed.
    pub failure_reason: Option<FailureReason>,
    /// Why it failed, in words.
    pub message: Option<String>,
    /// The file with its output.
    pub log: Option<PathBuf>,
    /// The last lines of its output.
    pub tail: VecDeque<String>,
    /// The command that ran last.
    pub command: Option<String>,
    /// Where its tree was kept.
    pub kept: Option<PathBuf>,
}

/// How a job came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It passed.
    Success,
    /// It failed, and may.
    Warning,
    /// It failed.
    Failed,
    /// It did not run.
    Skipped,
    /// It waits for a person.
    Manual,
    /// A manual job holds it back.
    Waiting,
    /// It was stopped.
    Canceled,
}

impl Status {
    /// The word in reports and tables.
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

/// How a run came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// No job failed that may not.
    Success,
    /// A job failed.
    Failed,
    /// A manual job holds back the rest.
    Blocked,
    /// The user stopped it.
    Interrupted,
}

impl Ending {
    /// The word in reports.
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

/// A duration for people: `0.4s`, `12s`, `3m 05s`.
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", duration.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
    }
}
