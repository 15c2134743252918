//! Downstream pipelines: child pipelines and pipelines of mapped projects. They are planned when their trigger job
//! starts.

use super::attempt::RunContext;
use super::mapped::MappedCheckout;
use super::options::{ExecutorPolicy, RunOptions, image_of, services_in_the_shell};
use crate::pipeline::plan::{Job, Plan};
use crate::pipeline::request::PlanRequest;

/// Plans the child pipeline of a trigger job. Fails if its configuration is invalid or has no jobs. `dotenv` contains
/// the variables that the trigger job gets from other jobs.
pub fn plan_child<'a>(
    parent: &Plan,
    job: &Job,
    request: &PlanRequest<'a>,
    id: u64,
    dotenv: Vec<(String, String)>,
) -> Result<(Plan, PlanRequest<'a>), String> {
    let request =
        parent.child_request(job, request, dotenv).ok_or("the job does not trigger a pipeline of this project")?;
    plan_request(request, id, "the child pipeline")
}

/// Plans the pipeline of another project, on a branch or on the current one. Fails as [`plan_child`] does.
pub fn plan_mapped<'a>(
    parent: &Plan,
    job: &Job,
    request: &PlanRequest<'_>,
    id: u64,
    dotenv: Vec<(String, String)>,
    mapped: &'a MappedCheckout,
    branch: Option<String>,
) -> Result<(Plan, PlanRequest<'a>), String> {
    let mut facts = mapped.facts.clone();
    if let Some(branch) = branch {
        facts.protected = branch == facts.default_branch;
        facts.branch = Some(branch);
    }
    let request = parent.downstream_request(job, request, dotenv, facts, &mapped.sources);
    plan_request(request.ok_or("the job does not trigger a pipeline of another project")?, id, "the triggered pipeline")
}

fn plan_request<'a>(
    mut request: PlanRequest<'a>,
    id: u64,
    description: &str,
) -> Result<(Plan, PlanRequest<'a>), String> {
    request.facts.pipeline_id = id;
    let plan = crate::pipeline::plan(&request).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        format!("the configuration of {description} is invalid: {}", lines.join("; "))
    })?;
    match plan.not_created {
        None => Ok((plan, request)),
        Some(why) => Err(why),
    }
}

/// Checks that the jobs of a downstream pipeline can run here, and warns about jobs that run without their services.
/// Fails if a job needs a container and no engine is connected.
pub fn check(plan: &Plan, options: &RunOptions, context: &RunContext) -> Result<(), String> {
    let is_script = |job: &&Job| job.trigger.is_none();
    let without_image = plan.jobs.iter().filter(is_script).find(|job| image_of(job, options).is_none());
    if let Some(job) = without_image.filter(|_| options.executor == ExecutorPolicy::Containers) {
        return Err(format!(
            "job `{}` of the triggered pipeline has no image; set one with --default-image IMAGE",
            job.name
        ));
    }
    let without_services = services_in_the_shell(&plan.jobs, options);
    if !without_services.is_empty() {
        let names = without_services.join(", ");
        context.screen.show_message(&format!("warning: {names} run in the shell without their services"));
    }
    let wanted = plan.jobs.iter().find(|job| image_of(job, options).is_some());
    match wanted {
        Some(job) if context.containers.is_none() => Err(format!(
            "job `{}` of the triggered pipeline needs a container, and mayfly found no engine when the run began; \
             start it or add --shell",
            job.name
        )),
        _ => Ok(()),
    }
}
