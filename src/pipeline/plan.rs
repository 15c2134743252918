//! What the planner answers: the jobs of a pipeline, each with all that a runner and a reader need.
//!
//! Values are as merged, before variables are expanded, unless a comment says otherwise.

use std::sync::Arc;
use std::time::Duration;

use super::syntax::{Node, Origin};
use super::variables::Scope;

/// A pipeline, or the statement that there is none.
#[derive(Debug)]
pub struct Plan {
    /// False when workflow rules, or rules of all jobs, leave no pipeline.
    pub created: bool,
    /// Why there is no pipeline.
    pub not_created: Option<String>,
    /// `workflow:name`, expanded.
    pub pipeline_name: Option<String>,
    /// All stages in their order, `.pre` first and `.post` last.
    pub stages: Vec<Arc<str>>,
    /// Jobs in the order of the file, those of a `parallel` one after another.
    pub jobs: Vec<Job>,
    /// Jobs that the file defines and this pipeline does not have.
    pub absent: Vec<Absent>,
    /// What a local run does not do, and what is questionable.
    pub warnings: Vec<Warning>,
    /// The whole configuration after includes, extends and references, for a preview.
    pub merged: Node,
    /// Names of the files that configuration came from; [`Origin::file`] is an index.
    pub files: Vec<Arc<str>>,
    /// `workflow:auto_cancel:on_job_failure: all`: the first failure cancels the pipeline.
    pub cancel_on_job_failure: bool,
    pub(super) scope: std::sync::Arc<Scope>,
}

/// A job of the pipeline.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its full name: `x`, `x 1/3`, `x: [a, b]`.
    pub name: Arc<str>,
    /// The key in the file.
    pub group: Arc<str>,
    /// Where its key stands.
    pub at: Origin,
    /// One of [`Plan::stages`].
    pub stage: Arc<str>,
    /// Index in [`Plan::stages`].
    pub stage_index: usize,
    /// When it runs.
    pub when: When,
    /// The delay of `when: delayed`.
    pub start_in: Option<Delay>,
    /// Whether its failure counts.
    pub allow_failure: AllowFailure,
    /// A question before a manual job starts.
    pub manual_confirmation: Option<Arc<str>>,
    /// Commands.
    pub script: Option<Vec<Arc<str>>>,
    /// Commands before `script`, in the same shell.
    pub before_script: Option<Vec<Arc<str>>>,
    /// Commands after `script`, in a shell of their own.
    pub after_script: Option<Vec<Arc<str>>>,
    /// A mapping with `name`.
    pub image: Option<Node>,
    /// A list of mappings with `name`.
    pub services: Option<Node>,
    /// Variables from the configuration, each name once, lowest level first.
    pub variables: Vec<Variable>,
    /// `None`: stage order.
    pub needs: Option<Vec<Need>>,
    /// Names of jobs whose artifacts it takes; `None`: all of earlier stages, or those of `needs`.
    pub dependencies: Option<Vec<Arc<str>>>,
    /// Tags of runners.
    pub tags: Option<Vec<Arc<str>>>,
    /// Jobs of the same group do not run at the same time. Expand with [`Plan::expand`].
    pub resource_group: Option<Arc<str>>,
    /// The pattern with its slashes.
    pub coverage: Option<Arc<str>>,
    /// Whether a newer pipeline may cancel it.
    pub interruptible: Option<bool>,
    /// Commands before sources are fetched.
    pub pre_get_sources_script: Option<Vec<Arc<str>>>,
    /// When it is tried again.
    pub retry: Option<Retry>,
    /// Its limit.
    pub timeout: Option<Duration>,
    /// A mapping.
    pub artifacts: Option<Node>,
    /// A list of mappings.
    pub cache: Option<Node>,
    /// The key of each cache: text as merged, or what `key:files` gives.
    pub cache_keys: Vec<String>,
    /// Where it deploys to.
    pub environment: Option<Environment>,
    /// What it starts instead of running a script.
    pub trigger: Option<Trigger>,
    /// Names of tokens that the server would make.
    pub id_tokens: Vec<Arc<str>>,
    /// Names of secrets that the server would fetch, and whether the job gets a file (the default) or the value.
    pub secrets: Vec<Secret>,
    /// Its place among the jobs of a `parallel`.
    pub parallel: Option<Instance>,
    /// Why it is in the pipeline.
    pub decision: Decision,
    /// Keyword `run`: steps instead of a script, which need the step runner.
    pub run: bool,
    /// The merged mapping with defaults: each entry knows its file and line.
    pub definition: Node,
    /// Keywords that come from `default`.
    pub from_default: Vec<Arc<str>>,
}

/// Keyword `when`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// When no earlier job failed.
    OnSuccess,
    /// When an earlier job failed.
    OnFailure,
    /// In any case.
    Always,
    /// When somebody starts it.
    Manual,
    /// After a delay.
    Delayed,
}

impl When {
    /// The word in the file.
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
    /// What it means.
    pub duration: Duration,
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

/// A variable of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// Its name.
    pub key: Arc<str>,
    /// Its value as written.
    pub value: Arc<str>,
    /// `expand: false`
    pub raw: bool,
    /// Where it stands.
    pub at: Origin,
    /// Who sets it.
    pub level: Level,
}

/// Levels of variables in the configuration, the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Top-level `variables`.
    Default,
    /// The matching rule of `workflow:rules`.
    Workflow,
    /// The job's own.
    Job,
    /// `parallel:matrix`
    Matrix,
    /// The job's matching rule.
    Rule,
}

/// A variable as a job gets it: expanded by the rules of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvVariable {
    /// Its name.
    pub key: Arc<str>,
    /// Its value, or the content of its file.
    pub value: String,
    /// The job gets the path of a file with the value.
    pub file: bool,
    /// The value must not appear in a log.
    pub masked: bool,
    /// The runner must not expand it again.
    pub raw: bool,
    /// It is predefined: its value has no references, and others may refer to it.
    pub predefined: bool,
    /// It comes from the caller's pipeline or project variables.
    pub given: bool,
}

/// An entry of `needs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The full name of a job of this pipeline.
    pub job: Arc<str>,
    /// Whether its artifacts (and dotenv variables) come along.
    pub artifacts: bool,
    /// Whether the pipeline may lack it.
    pub optional: bool,
}

/// Keyword `retry`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retry {
    /// How often it is tried again.
    pub max: u32,
    /// For which failure reasons; `None`: for all.
    pub when: Option<Vec<Arc<str>>>,
    /// For which exit codes.
    pub exit_codes: Option<Vec<i32>>,
}

/// Keyword `environment`.
#[derive(Clone, Debug)]
pub struct Environment {
    /// A mapping with `name`.
    pub node: Node,
    /// Its name, expanded.
    pub name: String,
    /// `CI_ENVIRONMENT_SLUG`
    pub slug: String,
    /// `start`, `stop`, `prepare`, `verify`, `access`
    pub action: Arc<str>,
    /// `CI_ENVIRONMENT_TIER`
    pub tier: String,
    /// The URL as merged.
    pub url: Option<Arc<str>>,
}

/// Keyword `trigger`.
#[derive(Clone, Debug)]
pub enum Trigger {
    /// A child pipeline.
    Child {
        /// A list of mappings, for [`super::request::Content::Includes`].
        include: Node,
        /// What the job's own state depends on.
        strategy: Strategy,
        /// What the child gets.
        forward: Forward,
        /// The mapping, with `include` always a list of mappings.
        node: Node,
    },
    /// A pipeline of another project.
    Project {
        /// Its path, not expanded.
        project: Arc<str>,
        /// What the job's own state depends on.
        strategy: Strategy,
        /// What the other pipeline gets.
        forward: Forward,
        /// The mapping.
        node: Node,
    },
}

/// `trigger:strategy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The job passes once the other pipeline has started.
    None,
    /// The job takes the result of the other pipeline.
    Depend,
    /// The job shows the state of the other pipeline, at all times.
    Mirror,
}

/// `trigger:forward`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Variables of the configuration.
    pub yaml_variables: bool,
    /// Variables of the parent pipeline itself.
    pub pipeline_variables: bool,
}

/// An entry of `secrets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// The variable that it becomes.
    pub key: Arc<str>,
    /// The variable is the path of a file with the value.
    pub file: bool,
}

/// The place of a job among the jobs of a `parallel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// From 1.
    pub index: usize,
    /// How many there are.
    pub total: usize,
}

/// Why a job is in a pipeline or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A rule of `rules` matched.
    Rule {
        /// Its number, from 1.
        number: usize,
        /// Where it stands.
        at: Origin,
        /// Why it matched: its `if` with values, the file that changed or exists.
        why: String,
    },
    /// The job has no rules and the pipeline takes such jobs.
    NoRules,
    /// `only` and `except` let it in.
    Only(String),
    /// No rule matched, a rule says `never`, or `only` and `except` keep it out.
    Left(String),
}

/// A job that the file defines and the pipeline does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// Its name in the file.
    pub name: Arc<str>,
    /// Where its key stands.
    pub at: Origin,
    /// Why.
    pub why: String,
}

/// Something to tell once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file; empty for what belongs to no file.
    pub file: Arc<str>,
    /// Its line, from 1; 0 for what belongs to no line.
    pub line: usize,
    /// The first job that it concerns.
    pub job: Option<Arc<str>>,
    /// What it is, and what follows.
    pub message: String,
}

impl Plan {
    /// The file and line of a value.
    pub fn place(&self, at: Origin) -> (&str, usize) {
        (self.files.get(at.file as usize).map_or("", |name| name), at.line as usize)
    }
}
