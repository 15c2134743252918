//! Child pipelines: planned when their trigger job starts.

use super::attempt::Ground;
use super::wishes::{Options, image_of};
use crate::pipeline::plan::{Job, Plan};
use crate::pipeline::request::Request;

/// Plans the pipeline that a trigger job starts. Errors: what is wrong with its configuration, or that there is none.
pub fn plan<'a>(parent: &Plan, job: &Job, request: &Request<'a>, id: u64) -> Result<(Plan, Request<'a>), String> {
    let mut request = parent.child(job, request).ok_or("it starts no pipeline of this project")?;
    request.facts.pipeline_id = id;
    let plan = crate::pipeline::plan(&request).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        format!("the child pipeline is refused: {}", lines.join("; "))
    })?;
    match plan.created {
        true => Ok((plan, request)),
        false => Err(plan.not_created.unwrap_or_else(|| "the child pipeline has no jobs".to_owned())),
    }
}

/// Whether jobs of a child pipeline can run here. Errors: one asks for a container, and there is no engine.
pub fn check(plan: &Plan, options: &Options, ground: &Ground) -> Result<(), String> {
    let wanted = plan.jobs.iter().find(|job| image_of(job, options).is_some());
    match wanted {
        Some(job) if ground.containers.is_none() => Err(format!(
            "the child pipeline's job `{}` asks for a container, and no engine was found when the run began; start it \
             or add --shell",
            job.name
        )),
        _ => Ok(()),
    }
}
