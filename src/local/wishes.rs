//! How the user wants jobs to be run.

use std::collections::HashSet;
use std::path::PathBuf;

use serde_json::Value;

use super::payload;
use crate::pipeline::plan::Job;

/// How the user wants jobs to be run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `-j`
    pub parallel: usize,
    /// Jobs with an image run in the shell as well.
    pub shell: bool,
    /// All jobs run in containers.
    pub docker: bool,
    /// For jobs without an image.
    pub default_image: Option<String>,
    /// Delayed jobs start at once.
    pub skip_delays: bool,
    /// Manual jobs to start, by name or pattern.
    pub manual: Vec<String>,
    /// Ask on the terminal whether manual jobs are to start.
    pub ask: bool,
    /// Unpack the artifacts of jobs here.
    pub artifacts: Option<PathBuf>,
    /// Where the output of jobs goes for a report.
    pub logs: Option<PathBuf>,
    /// Names of jobs that run whatever their `when` says.
    pub named: HashSet<String>,
    /// Keep the trees of failed jobs.
    pub keep: bool,
    /// A shell in the tree or container of a failed job.
    pub shell_on_failure: bool,
}

/// The image in which a job runs; `None` for the shell.
pub fn image_of(job: &Job, options: &Options) -> Option<Value> {
    if options.shell || job.trigger.is_some() {
        return None;
    }
    let own = job.image.as_ref().map(|image| payload::image(&image.to_json()));
    own.or_else(|| options.default_image.as_ref().map(|name| serde_json::json!({"name": name})))
}

/// Whether a name is meant by a word of the command line, which may be a pattern with `*` and `?`.
pub fn matches(wanted: &str, name: &str) -> bool {
    fn at(pattern: &[char], text: &[char]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            (['*', rest @ ..], _) => at(rest, text) || !text.is_empty() && at(pattern, &text[1..]),
            (['?', rest @ ..], [_, left @ ..]) => at(rest, left),
            ([first, rest @ ..], [other, left @ ..]) if first == other => at(rest, left),
            _ => false,
        }
    }
    let characters = |text: &str| text.chars().collect::<Vec<_>>();
    wanted == name || wanted.len() <= 64 && at(&characters(wanted), &characters(name))
}
