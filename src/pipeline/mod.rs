//! Plans a `.gitlab-ci.yml` as a local pipeline, for `mayfly exec`: turns files into jobs in the order of their stages.
//!
//! This layer reads and plans, and never runs anything. It accesses files and the network only through
//! [`request::Sources`]. [`plan()`] lists its steps in order.

pub mod ahead;
mod context;
mod cycle;
mod decide;
mod draft;
mod duration;
mod env;
mod expand;
mod file;
mod glob;
mod hash;
mod include;
pub mod listing;
mod merge;
pub mod pattern;
pub mod plan;
mod predefined;
pub mod problem;
mod reference;
pub mod request;
mod root;
mod rules;
mod slug;
pub mod suggest;
pub mod syntax;
mod variables;
mod view;

use std::sync::Arc;

use context::Context;

/// Facts about one run of a job, which the caller provides.
#[derive(Clone, Debug, Default)]
pub struct JobRun {
    /// `CI_JOB_ID`
    pub id: u64,
    /// `CI_JOB_STARTED_AT`, ISO 8601.
    pub started_at: String,
    /// Variables from dotenv reports of earlier jobs, later ones win.
    pub dotenv: Vec<(String, String)>,
    /// Predefined variables such as `CI_PROJECT_DIR`; they override those of the planner.
    pub predefined: Vec<(String, String)>,
}

/// Plans the pipeline for a configuration. On failure, returns all problems; a cause comes before its consequences.
pub fn plan(request: &request::PlanRequest<'_>) -> Result<plan::Plan, Vec<problem::Problem>> {
    let mut context = Context::new(request);
    match steps(&mut context) {
        Some(plan) if context.report.problems.is_empty() => Ok(plan),
        _ => Err(context.report.problems),
    }
}

/// The planning steps in order. `None`: there is a problem, which is already reported. A step starts only if the
/// earlier steps found no problem, so that one mistake is reported once.
fn steps(context: &mut Context<'_>) -> Option<plan::Plan> {
    let loaded = include::load(context)?;
    let extended = merge::extend_all(&loaded, &mut context.report);
    let merged = reference::resolve_all(&extended, &mut context.report);
    let names = loaded.mapping().into_iter().flat_map(|mapping| mapping.keys());
    let broken = names.filter(|name| merged.mapping().is_none_or(|kept| !kept.contains_key(*name))).cloned().collect();
    let root = root::Root::read(&merged, broken, context);
    let mut jobs = expand::ExpandedJobs::new(&root.drafts, root.broken.clone(), &root.stages, context);
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
                "rules exclude all jobs".to_owned()
            } else {
                "rules exclude all jobs outside of .pre and .post".to_owned()
            });
            return;
        }
        self.created = true;
        self.jobs = decided.jobs;
        self.cancel_on_job_failure = workflow.cancel_on_job_failure;
        let view =
            view::View { scope: &self.scope, yaml: &[], defaults: &workflow.variables, job: &[], environment: None };
        let name = name.map(|name| view.expand(name).trim().to_owned());
        self.pipeline_name = name.filter(|name| !name.is_empty());
        if let Some(name) = &self.pipeline_name {
            let scope = Arc::make_mut(&mut self.scope);
            scope.predefined.insert("CI_PIPELINE_NAME".into(), name.as_str().into());
        }
    }
}

#[cfg(test)]
mod tests;
