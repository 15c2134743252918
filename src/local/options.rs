//! The options of a local run, and what follows from them for a job.

use std::collections::HashSet;
use std::path::PathBuf;

use serde_json::Value;

use super::payload;
use crate::pipeline::plan::Job;

/// Where jobs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecutorPolicy {
    /// Jobs with an image run in containers, all others in the shell.
    ByImage,
    /// All jobs run in the shell (`--shell`).
    Shell,
    /// All jobs run in containers; a job without an image is refused (`--docker`).
    Containers,
}

/// Whether delayed jobs wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DelayPolicy {
    Wait,
    /// Delayed jobs start immediately (`--skip-delays`).
    Skip,
}

/// Which manual jobs start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManualPolicy {
    /// The user is asked on the terminal about each manual job that `--manual` does not name.
    Ask,
    /// Only the jobs start that `--manual` names.
    OnlyNamed,
}

/// The options of a local run.
pub struct RunOptions {
    /// The number of jobs that run at the same time.
    pub parallel: usize,
    pub executor: ExecutorPolicy,
    /// The image for jobs without one.
    pub default_image: Option<String>,
    pub delays: DelayPolicy,
    /// Manual jobs to start, by name or pattern.
    pub manual: Vec<String>,
    pub manual_policy: ManualPolicy,
    /// Unpack the artifacts of jobs into this directory.
    pub artifacts: Option<PathBuf>,
    /// Write the output of jobs into this directory, for a report.
    pub logs: Option<PathBuf>,
    /// Jobs that run regardless of their `when`.
    pub named: HashSet<String>,
    /// Keep the trees of failed jobs (`--keep`).
    pub keep_failed_trees: bool,
    /// Open a shell in the tree or container of each failed job (`--shell-on-failure`).
    pub shell_on_failure: bool,
}

/// The image of a job; `None` for the shell.
pub fn image_of(job: &Job, options: &RunOptions) -> Option<Value> {
    if options.executor == ExecutorPolicy::Shell || job.trigger.is_some() {
        return None;
    }
    let own = job.image.as_ref().map(|image| payload::image_entry(&image.to_json()));
    own.or_else(|| options.default_image.as_ref().map(|name| serde_json::json!({"name": name})))
}

/// The jobs that have services and run in the shell, where they have none.
pub fn services_in_the_shell<'a>(jobs: &'a [Job], options: &RunOptions) -> Vec<&'a str> {
    let has_services = |job: &&Job| {
        job.services.as_ref().and_then(|services| services.list()).is_some_and(|services| !services.is_empty())
    };
    jobs.iter().filter(has_services).filter(|job| image_of(job, options).is_none()).map(|job| &*job.name).collect()
}

/// The longest argument that is a pattern, in bytes: the time for a comparison grows exponentially with the number of
/// `*`.
const MAX_PATTERN: usize = 64;

/// Whether a name of a job matches an argument of the command line, which may be a pattern with `*` and `?`.
pub fn matches_pattern(argument: &str, name: &str) -> bool {
    fn matches(pattern: &[char], text: &[char]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            (['*', rest @ ..], _) => matches(rest, text) || !text.is_empty() && matches(pattern, &text[1..]),
            (['?', rest @ ..], [_, left @ ..]) => matches(rest, left),
            ([first, rest @ ..], [other, left @ ..]) if first == other => matches(rest, left),
            _ => false,
        }
    }
    let characters = |text: &str| text.chars().collect::<Vec<_>>();
    argument == name || argument.len() <= MAX_PATTERN && matches(&characters(argument), &characters(name))
}
