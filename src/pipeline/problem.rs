//! Collects the problems and warnings of planning, each with its position.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::plan::Warning;
use super::request::UnknownKeywords;
use super::syntax::Origin;

/// A problem that prevents the pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub class: Class,
    /// The file; empty if the problem concerns no file.
    pub file: Arc<str>,
    /// The line, from 1; 0 if unknown.
    pub line: usize,
    pub job: Option<Arc<str>>,
    /// The problem, the value, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line > 0 {
                write!(f, "{}:", self.line)?;
            }
            f.write_str(" ")?;
        }
        f.write_str(&self.message)
    }
}

/// The kind of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The text is not YAML, or exceeds a limit.
    YamlSyntax,
    /// The file or a job is not a mapping.
    NotAMapping,
    /// The configuration has no visible job.
    NoVisibleJob,
    /// A keyword that does not exist in this place.
    UnknownKeyword,
    /// A value of the wrong type, or one that the keyword does not allow.
    BadValue,
    /// A job without `script`, `run` or `trigger`.
    MissingScript,
    /// `script` and `trigger` in one job.
    ScriptAndTrigger,
    /// A stage that is not declared.
    UnknownStage,
    /// A value of `when` that does not exist or is not allowed in this place.
    BadWhen,
    /// `start_in` without `when: delayed`, or `when: delayed` without `start_in`.
    StartIn,
    /// `rules` together with `only` or `except`.
    RulesWithOnly,
    /// An expression with a syntax error.
    IfSyntax,
    /// A ref of `compare_to` that does not exist.
    CompareTo,
    /// A parent of `extends` that does not exist.
    ExtendsUnknown,
    /// `extends` forms a cycle.
    ExtendsCycle,
    /// More levels of `extends` than GitLab allows.
    ExtendsTooDeep,
    /// A `!reference` to a key that does not exist.
    ReferenceUnknown,
    /// More levels of `!reference` than GitLab allows.
    ReferenceTooDeep,
    /// `!reference` forms a cycle.
    ReferenceCycle,
    /// An included file that does not exist or is empty.
    IncludeMissing,
    /// An included file that cannot be fetched.
    IncludeFailed,
    /// A malformed `include`.
    IncludeSyntax,
    /// Too many included files, or files that include each other.
    IncludeLimit,
    /// An included file whose hash differs from `integrity`.
    IncludeIntegrity,
    /// A mandatory input without a value.
    InputMissing,
    /// A value for an input that is not declared.
    InputUnknown,
    /// A value of the wrong type.
    InputType,
    /// A value that is not one of the options.
    InputOption,
    /// A value that does not match the regex.
    InputRegex,
    /// A function that does not exist or cannot be applied.
    InputFunction,
    /// A malformed `spec`.
    InputSpec,
    /// A malformed block `$[[ … ]]`.
    InputSyntax,
    /// Variables that form a cycle.
    VariableCycle,
    /// A value that is not one of the variable's options.
    VariableOption,
    /// A need that does not exist.
    NeedsUnknown,
    /// A need in a later stage.
    NeedsLaterStage,
    /// A need that rules exclude from the pipeline.
    NeedsExcluded,
    /// The same need twice.
    NeedsDuplicate,
    /// Needs that form a cycle.
    NeedsCycle,
    /// More needs than GitLab allows.
    NeedsLimit,
    /// A dependency that does not exist.
    DependenciesUnknown,
    /// A dependency that is not among the needs.
    DependenciesNotNeeded,
    /// A dependency in a later stage.
    DependenciesLaterStage,
    /// `parallel` beyond the limit.
    MatrixTooBig,
    /// `retry` outside 0 to 2.
    RetryRange,
    /// More caches than GitLab allows.
    CacheLimit,
    /// A keyword both at the top level and in `default`.
    DefaultConflict,
    /// A job of `environment:on_stop` that does not exist or does not stop.
    OnStop,
    /// A job name that GitLab does not accept.
    JobName,
    /// Evaluating the configuration exceeds a limit.
    TooBig,
}

/// Evaluation failed; the problem is already reported.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reported;

/// The number of problems that a report holds; further problems are dropped.
const MAX_PROBLEMS: usize = 1000;

/// Collects the problems and warnings of planning.
#[derive(Debug, Default)]
pub(super) struct ProblemReport {
    /// File names; [`Origin::file`] is an index into this list.
    pub files: Vec<Arc<str>>,
    pub problems: Vec<Problem>,
    pub warnings: Vec<Warning>,
    unknown_keywords: UnknownKeywords,
    reported: HashSet<(Class, Origin, String)>,
    warned: HashSet<String>,
}

impl ProblemReport {
    pub fn new(unknown_keywords: UnknownKeywords) -> Self {
        Self { unknown_keywords, ..Self::default() }
    }

    /// Reports a problem of the configuration.
    pub fn error(&mut self, class: Class, at: Origin, message: impl Into<String>) {
        self.push(class, at, None, message.into());
    }

    /// Reports a problem of a job. The message begins with the job's name.
    pub fn job_error(&mut self, class: Class, at: Origin, job: &Arc<str>, message: impl fmt::Display) {
        self.push(class, at, Some(Arc::clone(job)), format!("job `{job}`: {message}"));
    }

    /// Reports a problem of a job, or of the configuration if `job` is `None`.
    pub fn add(&mut self, class: Class, at: Origin, job: Option<&Arc<str>>, message: impl fmt::Display) {
        match job {
            Some(job) => self.job_error(class, at, job, message),
            None => self.error(class, at, message.to_string()),
        }
    }

    fn push(&mut self, class: Class, at: Origin, job: Option<Arc<str>>, message: String) {
        let problem = Problem { class, file: self.file(at), line: at.line as usize, job, message };
        // One value can reach many jobs through `extends`, `default` and `parallel`. Its problem is reported once, so
        // the job's name is not part of the key.
        let without_job = match &problem.job {
            Some(job) => problem.message.strip_prefix(&format!("job `{job}`: ")).unwrap_or(&problem.message),
            None => &problem.message,
        };
        let key = (class, at, without_job.to_owned());
        if self.problems.len() < MAX_PROBLEMS && (at.line == 0 || self.reported.insert(key)) {
            self.problems.push(problem);
        }
    }

    /// Reports an unknown keyword of the configuration.
    pub fn unknown_keyword(&mut self, at: Origin, message: String) {
        let _ = self.unknown_keyword_of(at, None, message);
    }

    /// Reports an unknown keyword of a job, or of the configuration if `job` is `None`. `None`: the report is a problem,
    /// not a warning.
    pub fn unknown_keyword_of(&mut self, at: Origin, job: Option<&Arc<str>>, message: String) -> Option<()> {
        match (self.unknown_keywords, job) {
            (UnknownKeywords::AreErrors, _) => {
                self.add(Class::UnknownKeyword, at, job, message);
                return None;
            }
            (UnknownKeywords::AreWarnings, Some(name)) => self.warn(at, job, format!("job `{name}`: {message}")),
            (UnknownKeywords::AreWarnings, None) => self.warn(at, None, message),
        }
        Some(())
    }

    /// Adds a warning, unless one with the same message exists.
    pub fn warn(&mut self, at: Origin, job: Option<&Arc<str>>, message: impl Into<String>) {
        let message = message.into();
        if self.warned.insert(message.clone()) {
            let file = self.file(at);
            self.warnings.push(Warning { file, line: at.line as usize, job: job.cloned(), message });
        }
    }

    fn file(&self, at: Origin) -> Arc<str> {
        self.files.get(at.file as usize).cloned().unwrap_or_else(|| "".into())
    }

    /// Adds a file to the list of files, and returns its index.
    pub fn add_file(&mut self, name: &str) -> u32 {
        self.files.push(name.into());
        (self.files.len() - 1) as u32
    }
}
