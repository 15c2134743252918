//! Plans a `.gitlab-ci.yml` as a local pipeline, for `mayfly exec`: turns files into jobs in the order of their stages.
//!
//! This layer reads and plans, and never runs anything. It accesses files and the network only through
//! [`request::Sources`]. [`plan()`] goes through these steps; each has its module:
//!
//! | Step | Module | Result |
//! |---|---|---|
//! | 1. Read the first file and the files that it includes | [`mod@include`] | one tree of YAML values ([`syntax::Node`]) |
//! | – split a file into header and content, compute its inputs, insert them | [`mod@file`] | the content of a file |
//! | 2. Apply `extends` | [`merge`] | the same tree, jobs merged with their templates |
//! | 3. Replace `!reference` | [`mod@reference`] | the merged tree, which `--preview` prints |
//! | 4. Read the keywords | [`configuration`], [`draft`] for jobs, [`rules`] for rules | one [`draft::Draft`] for each job of the file |
//! | 5. Expand `parallel` | [`expand`] | one [`expand::ExpandedJob`] for each job that can run |
//! | 6. Resolve `needs` and `dependencies` | [`job_graph`] | the full names of the other jobs |
//! | 7. Evaluate rules | [`decide`], [`rule_evaluation`] | the [`plan::Job`]s of this pipeline |
//!
//! A caller then asks the [`plan::Plan`] for the variables of a job ([`mod@env`]) and for the pipelines that trigger jobs
//! start ([`downstream`]).
//!
//! All steps share a [`context::Context`], which collects problems and warnings ([`problem`]). A function that reads a
//! value returns `None`, or [`problem::Reported`] as the error, after it has reported the problem. A step starts only if
//! the earlier steps found no problem, so that one mistake is reported once.

pub mod ahead;
mod configuration;
mod context;
mod decide;
mod downstream;
mod draft;
mod duration;
mod env;
mod expand;
mod expansion;
mod file;
mod glob;
mod hash;
mod include;
mod job_graph;
pub mod listing;
mod merge;
pub mod pattern;
pub mod plan;
mod predefined;
pub mod problem;
mod project_address;
mod reference;
pub mod request;
mod rule_evaluation;
mod rules;
mod slug;
pub mod suggest;
pub mod syntax;
mod variable_checks;
mod variable_references;
mod variable_view;
mod variables;

use std::collections::HashSet;
use std::sync::Arc;

use configuration::Configuration;
use context::Context;
use decide::DecidedPipeline;
use expand::ExpandedJobs;
use plan::Plan;
use problem::Problem;
use request::PlanRequest;
use syntax::Node;

pub use env::JobRun;

/// Plans the pipeline for a configuration. On failure, returns all problems; a cause comes before its consequences.
pub fn plan(request: &PlanRequest<'_>) -> Result<Plan, Vec<Problem>> {
    let mut context = Context::new(request);
    match plan_steps(&mut context) {
        Some(plan) if context.report.problems.is_empty() => Ok(plan),
        _ => Err(context.report.problems),
    }
}

/// The steps in order. `None`: there is a problem, which is already reported.
fn plan_steps(context: &mut Context<'_>) -> Option<Plan> {
    let loaded = include::load(context)?;
    let extended = merge::extend_all(&loaded, &mut context.report);
    let merged = reference::resolve_all(&extended, &mut context.report);
    let configuration = Configuration::read(&merged, dropped_entries(&loaded, &merged), context);
    let mut jobs = ExpandedJobs::new(&configuration, context);
    jobs.resolve(context);
    job_graph::check_on_stop(&jobs, context);
    if !context.report.problems.is_empty() {
        return None;
    }
    let decided = decide::decide(&configuration, &jobs, context).ok()?;
    Some(finished_plan(decided, configuration.stages.clone(), merged, context))
}

/// The names of entries that merging left out because of a problem.
fn dropped_entries(loaded: &Node, merged: &Node) -> HashSet<Arc<str>> {
    let names = loaded.mapping().into_iter().flat_map(|mapping| mapping.keys());
    names.filter(|name| merged.mapping().is_none_or(|kept| !kept.contains_key(*name))).cloned().collect()
}

fn finished_plan(decided: DecidedPipeline, stages: Vec<Arc<str>>, merged: Node, context: &mut Context<'_>) -> Plan {
    let mut shared_variables = Arc::clone(&context.shared_variables);
    if let Some(name) = &decided.name {
        let shared = Arc::make_mut(&mut shared_variables);
        shared.predefined.insert("CI_PIPELINE_NAME".into(), name.as_str().into());
    }
    Plan {
        not_created: decided.not_created,
        pipeline_name: decided.name,
        stages,
        jobs: decided.jobs,
        absent: decided.absent,
        warnings: std::mem::take(&mut context.report.warnings),
        merged,
        files: context.report.files.clone(),
        cancel_on_job_failure: decided.cancel_on_job_failure,
        shared_variables,
    }
}

#[cfg(test)]
mod tests;
