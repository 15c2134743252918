//! A `.gitlab-ci.yml` as a local pipeline, for `mayfly exec`: from the file to jobs in the order of their stages.
//!
//! This layer reads and plans; it never runs anything and never asks the network.

mod duration;
mod keywords;
mod read;
mod yaml;

use std::fmt;
use std::time::Duration;

pub use read::read;

/// What a file asks for.
#[derive(Debug, PartialEq)]
pub struct Pipeline {
    /// Names in their order, `.pre` first and `.post` last.
    pub stages: Vec<String>,
    /// Jobs in the order of the file.
    pub jobs: Vec<Job>,
    /// What the file says and a local run does not do: told to the user, each with its line.
    pub notes: Vec<Remark>,
}

/// One job of the file, with `default` and the global keywords already in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The key in the file.
    pub name: String,
    /// One of [`Pipeline::stages`].
    pub stage: String,
    /// `before_script` and `script`, which share a shell.
    pub script: Vec<String>,
    /// Runs in a shell of its own.
    pub after_script: Vec<String>,
    /// Global and own variables; the job's own win.
    pub variables: Vec<Variable>,
    /// Whether its failure counts.
    pub allow_failure: AllowFailure,
    /// The job's own limit.
    pub timeout: Option<Duration>,
    /// When it runs.
    pub when: When,
}

/// A variable of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value as written.
    pub value: String,
    /// `expand: false`: the value is taken as it stands.
    pub raw: bool,
}

/// Keyword `allow_failure`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowFailure {
    /// A failure fails the pipeline.
    No,
    /// A failure is a warning.
    Yes,
    /// Only these exit codes are a warning.
    ExitCodes(Vec<i32>),
}

impl AllowFailure {
    /// True when a job that ended with `exit_code` does not fail the pipeline.
    pub fn forgives(&self, exit_code: Option<i32>) -> bool {
        match self {
            Self::No => false,
            Self::Yes => true,
            Self::ExitCodes(codes) => exit_code.is_some_and(|code| codes.contains(&code)),
        }
    }
}

/// Keyword `when`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// When no job of an earlier stage failed.
    OnSuccess,
    /// When a job of an earlier stage failed.
    OnFailure,
    /// In any case.
    Always,
    /// When someone names it.
    Manual,
    /// As `OnSuccess`; a local run does not wait.
    Delayed,
}

/// Something to tell about a line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Line of the file, from 1.
    pub line: usize,
    /// What is there, and what to do about it.
    pub message: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}
