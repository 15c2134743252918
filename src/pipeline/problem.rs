use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::plan::Warning;
use super::syntax::Origin;

/// Something that refuses the pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What kind.
    pub class: Class,
    /// The file; empty for what belongs to no file.
    pub file: Arc<str>,
    /// Its line, from 1; 0 for what belongs to no line.
    pub line: usize,
    /// The job that it concerns.
    pub job: Option<Arc<str>>,
    /// What is wrong, with which value, and what to do.
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
    /// The text is no YAML, or beyond the limits.
    YamlSyntax,
    /// The file, or a job, is no mapping.
    NotAMapping,
    /// There is nothing to run.
    NoVisibleJob,
    /// A keyword that does not exist at this place.
    UnknownKeyword,
    /// A value of the wrong type or outside of what a keyword allows.
    BadValue,
    /// A job without `script`, `run` or `trigger`.
    MissingScript,
    /// `script` and `trigger` in one job.
    ScriptAndTrigger,
    /// A stage that is not declared.
    UnknownStage,
    /// A value of `when` that does not exist or not at this place.
    BadWhen,
    /// `start_in` without `when: delayed`, or the reverse.
    StartIn,
    /// `rules` together with `only` or `except`.
    RulesWithOnly,
    /// An expression that cannot be read.
    IfSyntax,
    /// A ref of `compare_to` that does not exist.
    CompareTo,
    /// A parent of `extends` that does not exist.
    ExtendsUnknown,
    /// `extends` in a circle.
    ExtendsCycle,
    /// More levels of `extends` than GitLab allows.
    ExtendsTooDeep,
    /// A `!reference` to nothing.
    ReferenceUnknown,
    /// More levels of `!reference` than GitLab allows.
    ReferenceTooDeep,
    /// `!reference` in a circle.
    ReferenceCycle,
    /// An included file that does not exist or is empty.
    IncludeMissing,
    /// An included file that cannot be fetched.
    IncludeFailed,
    /// An `include` that cannot be read.
    IncludeSyntax,
    /// Too many included files, or files that include each other.
    IncludeLimit,
    /// An included file whose hash differs.
    IncludeIntegrity,
    /// A mandatory input without a value.
    InputMissing,
    /// An input that nobody declared.
    InputUnknown,
    /// A value of the wrong type.
    InputType,
    /// A value that is none of the options.
    InputOption,
    /// A value that does not match the pattern.
    InputRegex,
    /// A function that does not exist or cannot be applied.
    InputFunction,
    /// A `spec` that cannot be read.
    InputSpec,
    /// A block `$[[ … ]]` that cannot be read.
    InputSyntax,
    /// Variables that refer to each other in a circle.
    VariableCycle,
    /// A value that is none of the variable's options.
    VariableOption,
    /// A need that does not exist.
    NeedsUnknown,
    /// A need in a later stage.
    NeedsLaterStage,
    /// A need that rules keep out of the pipeline.
    NeedsExcluded,
    /// The same need twice.
    NeedsDuplicate,
    /// Needs in a circle.
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
    /// A keyword at the top level and in `default`.
    DefaultConflict,
    /// A job of `environment:on_stop` that does not exist or does not stop.
    OnStop,
    /// The job has a name that GitLab does not accept.
    JobName,
    /// Evaluating the configuration takes more than the limits allow.
    TooBig,
}

/// How many problems are told at once.
const PROBLEMS_LIMIT: usize = 1000;

/// Collects problems and warnings while a pipeline is planned.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Names of files by [`Origin::file`].
    pub files: Vec<Arc<str>>,
    /// All problems in the order in which they were found.
    pub problems: Vec<Problem>,
    /// All warnings.
    pub warnings: Vec<Warning>,
    /// Unknown keywords are warnings.
    pub lax: bool,
    told: HashSet<(Class, Origin, String)>,
    warned: HashSet<String>,
}

impl Report {
    /// Begins; `lax` makes unknown keywords warnings.
    pub fn new(lax: bool) -> Self {
        Self { lax, ..Self::default() }
    }

    /// A problem of the configuration.
    pub fn error(&mut self, class: Class, at: Origin, message: impl Into<String>) {
        self.push(class, at, None, message.into());
    }

    /// A problem of a job. The message begins with the job's name.
    pub fn job_error(&mut self, class: Class, at: Origin, job: &Arc<str>, message: impl fmt::Display) {
        self.push(class, at, Some(Arc::clone(job)), format!("job `{job}`: {message}"));
    }

    /// A problem of a job, or of the configuration when there is none.
    pub fn problem(&mut self, class: Class, at: Origin, job: Option<&Arc<str>>, message: impl fmt::Display) {
        match job {
            Some(job) => self.job_error(class, at, job, message),
            None => self.error(class, at, message.to_string()),
        }
    }

    fn push(&mut self, class: Class, at: Origin, job: Option<Arc<str>>, message: String) {
        let problem = Problem { class, file: self.file(at), line: at.line as usize, job, message };
        // One value can reach many jobs through `extends`, `default` and `parallel`; it is wrong once.
        let culprit = match &problem.job {
            Some(job) => problem.message.strip_prefix(&format!("job `{job}`: ")).unwrap_or(&problem.message),
            None => &problem.message,
        };
        let key = (class, at, culprit.to_owned());
        if self.problems.len() < PROBLEMS_LIMIT && (at.line == 0 || self.told.insert(key)) {
            self.problems.push(problem);
        }
    }

    /// An unknown keyword: a problem, or a warning when the caller is lax.
    pub fn unknown(&mut self, at: Origin, message: String) {
        self.unknown_of(at, None, message);
    }

    /// An unknown keyword of a job.
    pub fn unknown_of(&mut self, at: Origin, job: Option<&Arc<str>>, message: String) {
        match (self.lax, job) {
            (false, _) => self.problem(Class::UnknownKeyword, at, job, message),
            (true, Some(name)) => self.warn(at, job, format!("job `{name}`: {message}")),
            (true, None) => self.warn(at, None, message),
        }
    }

    /// Tells something once: the same message counts as the same warning wherever it arises.
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

    /// Registers a file and gives its number.
    pub fn add_file(&mut self, name: &str) -> u32 {
        self.files.push(name.into());
        (self.files.len() - 1) as u32
    }
}
