//! The result of planning: the jobs of a pipeline, with all data that a runner and a reader need.
//!
//! Values are after merging and before variable expansion, unless a comment says otherwise.

use std::sync::Arc;
use std::time::Duration;

use super::syntax::{Node, Origin};
use super::variables::SharedVariables;
pub use super::variables::{EnvSource, EnvVariable, Variable, VariableLevel};

/// A pipeline, or the reason why GitLab would create none.
#[derive(Debug)]
pub struct Plan {
    /// Why GitLab would create no pipeline: workflow rules prevent it, or rules exclude all jobs. `None`: GitLab would
    /// create it.
    pub not_created: Option<String>,
    /// `workflow:name`, expanded.
    pub pipeline_name: Option<String>,
    /// All stages in their order, `.pre` first and `.post` last.
    pub stages: Vec<Arc<str>>,
    /// Jobs in the order of the file; the jobs of a `parallel` are adjacent.
    pub jobs: Vec<Job>,
    /// Jobs that the file defines and rules exclude.
    pub absent: Vec<AbsentJob>,
    /// Warnings: features that a local run lacks, and questionable configuration.
    pub warnings: Vec<Warning>,
    /// The whole configuration after includes, `extends` and `!reference`, for `--preview`.
    pub merged: Node,
    /// Names of the configuration files; [`Origin::file`] is an index into this list.
    pub files: Vec<Arc<str>>,
    /// `workflow:auto_cancel:on_job_failure: all`: the first failure cancels the pipeline.
    pub cancel_on_job_failure: bool,
    pub(super) shared_variables: Arc<SharedVariables>,
}

/// A job of the pipeline.
#[derive(Clone, Debug)]
pub struct Job {
    /// The full name: `x`, `x 1/3`, `x: [a, b]`.
    pub name: Arc<str>,
    /// The key in the file.
    pub group: Arc<str>,
    /// The position of the job's key.
    pub at: Origin,
    /// One of [`Plan::stages`].
    pub stage: Arc<str>,
    /// Index in [`Plan::stages`].
    pub stage_index: usize,
    pub when: When,
    /// The delay of `when: delayed`.
    pub start_in: Option<Delay>,
    pub allow_failure: AllowFailure,
    /// The question to ask before a manual job starts.
    pub manual_confirmation: Option<Arc<str>>,
    pub script: Option<Vec<Arc<str>>>,
    /// Commands before `script`, in the same shell.
    pub before_script: Option<Vec<Arc<str>>>,
    /// Commands after `script`, in a new shell.
    pub after_script: Option<Vec<Arc<str>>>,
    /// A mapping with `name`.
    pub image: Option<Node>,
    /// A list of mappings with `name`.
    pub services: Option<Node>,
    /// Variables from the configuration; each name once.
    pub variables: Vec<Variable>,
    /// `None`: the job runs in stage order.
    pub needs: Option<Vec<Need>>,
    /// Names of the jobs whose artifacts this job downloads; `None`: the jobs of all earlier stages, or those of
    /// `needs`.
    pub dependencies: Option<Vec<Arc<str>>>,
    pub tags: Option<Vec<Arc<str>>>,
    /// Jobs of the same group never run at the same time. Expand the name with [`Plan::expand`].
    pub resource_group: Option<Arc<str>>,
    /// The pattern, with its slashes.
    pub coverage: Option<Arc<str>>,
    /// Whether a newer pipeline may cancel this job.
    pub interruptible: Option<bool>,
    /// Commands that run before the sources are fetched.
    pub pre_get_sources_script: Option<Vec<Arc<str>>>,
    pub retry: Option<Retry>,
    pub timeout: Option<Duration>,
    /// A mapping.
    pub artifacts: Option<Node>,
    /// A list of mappings.
    pub cache: Option<Node>,
    /// The key of each cache: the text as merged, or the computed value of `key:files`.
    pub cache_keys: Vec<String>,
    pub environment: Option<Environment>,
    /// The downstream pipeline that the job starts instead of running a script.
    pub trigger: Option<Trigger>,
    /// Names of ID tokens, which only a server can create.
    pub id_tokens: Vec<Arc<str>>,
    /// Secrets, which only a server can fetch.
    pub secrets: Vec<SecretVariable>,
    /// The position of the job among the jobs of a `parallel`.
    pub parallel: Option<ParallelIndex>,
    /// Why the pipeline includes this job.
    pub decision: Decision,
    /// Keyword `run`: steps instead of a script; they need the step runner.
    pub run: bool,
    /// The merged mapping with defaults; each entry has its file and line.
    pub definition: Node,
    /// Keywords that come from `default`.
    pub from_default: Vec<Arc<str>>,
}

/// Keyword `when`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The job runs if no earlier job failed.
    OnSuccess,
    /// The job runs if an earlier job failed.
    OnFailure,
    /// The job runs regardless of the results of earlier jobs.
    Always,
    /// A user starts the job.
    Manual,
    /// The job runs after the delay of [`Job::start_in`].
    Delayed,
}

impl When {
    pub const ALL: [Self; 5] = [Self::OnSuccess, Self::OnFailure, Self::Always, Self::Manual, Self::Delayed];

    /// Parses the value of the keyword.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|when| when.word() == word)
    }

    /// The value of the keyword.
    pub fn word(self) -> &'static str {
        match self {
            Self::OnSuccess => "on_success",
            Self::OnFailure => "on_failure",
            Self::Always => "always",
            Self::Manual => "manual",
            Self::Delayed => "delayed",
        }
    }
}

/// Keyword `start_in`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delay {
    /// As written.
    pub text: Arc<str>,
    pub duration: Duration,
}

/// Keyword `allow_failure`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowFailure {
    /// A failure fails the pipeline.
    No,
    /// A failure is only a warning.
    Yes,
    /// Only these exit codes are warnings; any other fails the pipeline.
    ExitCodes(Vec<i32>),
}

impl AllowFailure {
    /// Whether a job that ended with `exit_code` does not fail the pipeline.
    pub fn forgives(&self, exit_code: Option<i32>) -> bool {
        match self {
            Self::No => false,
            Self::Yes => true,
            Self::ExitCodes(codes) => exit_code.is_some_and(|code| codes.contains(&code)),
        }
    }
}

/// An entry of `needs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The full name of a job of this pipeline.
    pub job: Arc<str>,
    /// Whether the job downloads the artifacts of the needed job and takes its dotenv variables.
    pub artifacts: bool,
    /// Whether the pipeline may lack the needed job.
    pub optional: bool,
}

/// Keyword `retry`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retry {
    /// The number of retries.
    pub max: u32,
    /// The failure reasons that are retried; `None`: all.
    pub when: Option<Vec<Arc<str>>>,
    /// The exit codes that are retried.
    pub exit_codes: Option<Vec<i32>>,
}

/// Keyword `environment`.
#[derive(Clone, Debug)]
pub struct Environment {
    /// A mapping with `name`.
    pub node: Node,
    /// The expanded name.
    pub name: String,
    /// `CI_ENVIRONMENT_SLUG`
    pub slug: String,
    /// `start`, `stop`, `prepare`, `verify`, `access`
    pub action: Arc<str>,
    /// `CI_ENVIRONMENT_TIER`
    pub tier: String,
    /// The URL as merged, not expanded.
    pub url: Option<Arc<str>>,
}

/// Keyword `trigger`.
#[derive(Clone, Debug)]
pub enum Trigger {
    /// A child pipeline.
    Child {
        /// A list of mappings, for [`super::request::ConfigurationStart::Includes`].
        include: Node,
        /// How the downstream pipeline decides the state of the job.
        strategy: TriggerStrategy,
        /// The variables that the child gets.
        forward: TriggerForward,
        /// The mapping, with `include` always a list of mappings.
        node: Node,
    },
    /// A pipeline of another project.
    Project {
        /// The path of the project, not expanded.
        project: Arc<str>,
        /// How the downstream pipeline decides the state of the job.
        strategy: TriggerStrategy,
        /// The variables that the downstream pipeline gets.
        forward: TriggerForward,
        /// The mapping.
        node: Node,
    },
}

impl Trigger {
    /// How the downstream pipeline decides the state of the job.
    pub fn strategy(&self) -> TriggerStrategy {
        let (Self::Child { strategy, .. } | Self::Project { strategy, .. }) = self;
        *strategy
    }
}

/// `trigger:strategy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerStrategy {
    /// The job succeeds as soon as the downstream pipeline has started.
    None,
    /// The job takes the result of the downstream pipeline.
    Depend,
    /// The job always has the state of the downstream pipeline.
    Mirror,
}

/// `trigger:forward`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TriggerForward {
    /// Whether the downstream pipeline gets the variables of the configuration.
    pub yaml_variables: bool,
    /// Whether the downstream pipeline gets the pipeline variables of the parent.
    pub pipeline_variables: bool,
}

/// An entry of `secrets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretVariable {
    /// The name of the variable.
    pub key: Arc<str>,
    /// Whether the variable is the path of a file that contains the value.
    pub file: bool,
}

/// The position of a job among the jobs of a `parallel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParallelIndex {
    /// From 1.
    pub index: usize,
    /// The number of jobs.
    pub total: usize,
}

/// Why a pipeline includes a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A rule of `rules` matched.
    Rule {
        /// The number of the rule, from 1.
        number: usize,
        at: Origin,
        /// Why it matched: its `if` with values, or the file that changed or exists. Empty unless the request asks for
        /// explanations.
        why: String,
    },
    /// The job has no rules, and the pipeline includes such jobs.
    NoRules,
    /// `only` and `except` include the job, for this reason.
    OnlyExcept(String),
}

/// A job that the file defines and rules exclude.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsentJob {
    /// The name in the file.
    pub name: Arc<str>,
    pub at: Origin,
    pub why: String,
}

/// A warning about the configuration. Planning reports each message once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file; empty if the warning concerns no file.
    pub file: Arc<str>,
    /// The line, from 1; 0 if unknown.
    pub line: usize,
    /// The first job that the warning concerns.
    pub job: Option<Arc<str>>,
    /// The fact and its consequence.
    pub message: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.file.is_empty(), self.line) {
            (true, _) => {}
            (false, 0) => write!(f, "{}: ", self.file)?,
            (false, line) => write!(f, "{}:{line}: ", self.file)?,
        }
        write!(f, "note: {}", self.message)
    }
}

impl Plan {
    /// The file and line of a value.
    pub fn file_and_line(&self, at: Origin) -> (&str, usize) {
        (self.files.get(at.file as usize).map_or("", |name| name), at.line as usize)
    }
}
