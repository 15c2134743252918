//! A `.gitlab-ci.yml` as a local pipeline, for `mayfly exec`: from the file to jobs in the order of their stages.
//!
//! This layer reads and plans; it never runs anything and never asks the network.

#![allow(dead_code, unused_imports)] // Until the command line uses the planner.

mod context;
mod decide;
mod draft;
mod duration;
mod env;
mod expand;
mod file;
mod glob;
mod include;
mod keywords;
pub mod listing;
mod merge;
pub mod pattern;
pub mod plan;
mod predefined;
pub mod problem;
mod read;
mod reference;
pub mod request;
mod root;
mod rules;
mod slug;
mod suggest;
pub mod syntax;
mod variables;
mod yaml;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use context::Context;
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
    let mut context = Context::new(request);
    match steps(&mut context) {
        Some(plan) if context.report.problems.is_empty() => Ok(plan),
        _ => Err(context.report.problems),
    }
}

/// The order of planning. `None`: there is a problem, which is reported. A step begins only when those before it left
/// the configuration sound, so that one mistake is told once.
fn steps(context: &mut Context<'_>) -> Option<plan::Plan> {
    let loaded = include::load(context)?;
    let extended = merge::extend_all(&loaded, &mut context.report);
    let merged = reference::resolve_all(&extended, &mut context.report);
    let names = loaded.mapping().into_iter().flat_map(|mapping| mapping.keys());
    let broken = names.filter(|name| merged.mapping().is_none_or(|kept| !kept.contains_key(*name))).cloned().collect();
    let root = root::Root::read(&merged, broken, context);
    let mut jobs = expand::Jobs::new(&root.drafts, root.broken.clone(), &root.stages, context);
    jobs.resolve(context);
    decide::check_on_stop(&jobs, context);
    if !context.report.problems.is_empty() {
        return None;
    }
    let mut plan = plan::Plan {
        created: false,
        not_created: None,
        pipeline_name: None,
        stages: root.stages.clone(),
        jobs: Vec::new(),
        absent: Vec::new(),
        warnings: Vec::new(),
        merged: merged.clone(),
        files: Vec::new(),
        cancel_on_job_failure: false,
        scope: Arc::clone(&context.scope),
    };
    match decide::workflow(&root, context).ok()? {
        Ok(workflow) => {
            let mut decided = decide::jobs(&jobs, &workflow, root.rules.is_some(), context);
            decide::settle_needs(&mut decided, &jobs, context);
            plan.take(decided, &workflow, root.name.as_ref());
        }
        Err(why) => plan.not_created = Some(why),
    }
    plan.warnings = std::mem::take(&mut context.report.warnings);
    plan.files.clone_from(&context.report.files);
    Some(plan)
}

impl plan::Plan {
    fn take(&mut self, decided: decide::Decided, workflow: &decide::Workflow, name: Option<&Arc<str>>) {
        self.absent = decided.absent;
        let edge = |job: &plan::Job| matches!(&*job.stage, ".pre" | ".post");
        if decided.jobs.iter().all(edge) {
            self.not_created = Some(if decided.jobs.is_empty() {
                "rules leave no job".to_owned()
            } else {
                "rules leave no job outside of .pre and .post".to_owned()
            });
            return;
        }
        self.created = true;
        self.jobs = decided.jobs;
        self.cancel_on_job_failure = workflow.cancel_on_job_failure;
        let view = variables::View { scope: &self.scope, yaml: &[], defaults: &workflow.variables, job: &[] };
        let name = name.map(|name| view.expand(name).trim().to_owned());
        self.pipeline_name = name.filter(|name| !name.is_empty());
        if let Some(name) = &self.pipeline_name {
            let scope = Arc::make_mut(&mut self.scope);
            scope.predefined.insert("CI_PIPELINE_NAME".into(), name.as_str().into());
        }
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

#[cfg(test)]
mod tests;
