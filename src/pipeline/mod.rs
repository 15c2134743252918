//! A `.gitlab-ci.yml` as a local pipeline, for `mayfly exec`: from the file to jobs in the order of their stages.
//!
//! This layer reads and plans; it never runs anything and never asks the network.

#![allow(dead_code, unused_imports)] // Until the command line uses the planner.

mod duration;
mod keywords;
pub mod plan;
pub mod problem;
mod read;
pub mod request;
pub mod syntax;
mod variables;
mod yaml;

use std::fmt;
use std::time::Duration;

pub use read::read;

/// Facts about one run of a job, which only its runner knows.
#[derive(Clone, Debug, Default)]
pub struct JobRun {
    /// `CI_JOB_ID`
    pub id: u64,
    /// `CI_JOB_STARTED_AT`, ISO 8601.
    pub started_at: String,
    /// Variables from dotenv reports of earlier jobs, later ones win.
    pub dotenv: Vec<(String, String)>,
    /// Predefined variables such as `CI_PROJECT_DIR`; they win over the planner's predefined ones.
    pub predefined: Vec<(String, String)>,
}

/// Plans the pipeline that a configuration gives. Errors: all that is wrong with it, the first cause first.
pub fn plan(request: &request::Request<'_>) -> Result<plan::Plan, Vec<problem::Problem>> {
    let problem = problem::Problem {
        class: problem::Class::TooBig,
        file: "".into(),
        line: 0,
        job: None,
        message: format!("`{}` pipelines are not planned yet", request.source.name),
    };
    Err(vec![problem])
}

impl plan::Plan {
    /// The variables of a job, complete and expanded, predefined ones included.
    pub fn env(&self, _job: &plan::Job, _run: &JobRun) -> Vec<plan::EnvVariable> {
        Vec::new()
    }

    /// `text` with the variables of a job, as the server expands it (for `resource_group`, `tags`, triggers, …).
    pub fn expand(&self, _job: &plan::Job, text: &str) -> String {
        text.to_owned()
    }

    /// The request for the child pipeline of a trigger job. Its variables are those that the job forwards.
    pub fn child<'a>(&self, _job: &plan::Job, _parent: &request::Request<'a>) -> Option<request::Request<'a>> {
        None
    }
}

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
    /// It asks for a container (`image`).
    pub has_image: bool,
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
