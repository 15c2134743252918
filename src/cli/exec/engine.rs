//! Connects to the container engine and pulls the images before any job runs, so that a run fails at its start.

use std::collections::HashSet;

use serde_json::Value;

use super::session::Session;
use super::terminal;
use crate::config::Runner as Configured;
use crate::local::containers::{ContainerOptions, Containers};
use crate::local::options::{self as run_options, RunOptions, image_of};
use crate::local::payload;
use crate::local::project::LocalProject;
use crate::local::screen::Screen;
use crate::pipeline::plan::{Job, Plan};

/// The connection to the container engine, if a job needs containers. Fails if the engine does not answer, an image
/// cannot be pulled, or a job that must run in a container has no image.
pub fn connect(
    session: &Session<'_>,
    plan: &Plan,
    jobs: &RunOptions,
    (runner, project): (&Configured, &LocalProject),
    screen: &Screen,
) -> Result<Option<Containers>, String> {
    if let Some(job) =
        plan.jobs.iter().find(|job| jobs.docker && job.trigger.is_none() && image_of(job, jobs).is_none())
    {
        return Err(format!("{}: the job has no image; set one with --default-image IMAGE", place(plan, job)));
    }
    warn_about_shell_jobs(plan, jobs);
    let starts_pipelines = plan.jobs.iter().any(|job| job.trigger.is_some());
    let mut objects = if starts_pipelines { session.mapped.objects() } else { Vec::new() };
    objects.extend(project.objects.iter().cloned());
    // The engine accepts a destination only once.
    objects.sort_unstable();
    objects.dedup();
    let settings = ContainerOptions { objects, run: session.run.directory.clone() };
    let wanted: Vec<(&Job, Value)> = plan.jobs.iter().filter_map(|job| Some((job, image_of(job, jobs)?))).collect();
    let Some((first, _)) = wanted.first() else {
        // A triggered pipeline may need containers; without an engine its trigger job fails.
        let containers = starts_pipelines.then(|| Containers::connect(runner, &settings).ok()).flatten();
        containers.iter().try_for_each(|containers| session.run.note_engine(containers.address()))?;
        return Ok(containers);
    };
    let containers = Containers::connect(runner, &settings).map_err(|why| {
        format!(
            "{}: `image` needs a container engine: {why}; no job was started. --shell runs the scripts on this machine \
             instead",
            place(plan, first)
        )
    })?;
    session.run.note_engine(containers.address())?;
    pull(&containers, plan, wanted, screen)?;
    Ok(Some(containers))
}

fn warn_about_shell_jobs(plan: &Plan, jobs: &RunOptions) {
    if jobs.shell {
        let with_image: Vec<&str> = plan.jobs.iter().filter(|job| job.image.is_some()).map(|job| &*job.name).collect();
        if !with_image.is_empty() {
            terminal::print_error(&format!(
                "mayfly: warning: --shell: {} run on this machine as your user instead of in a container\n",
                with_image.join(", ")
            ));
        }
    }
    let without_services = run_options::services_in_the_shell(&plan.jobs, jobs);
    if !without_services.is_empty() {
        terminal::print_error(&format!(
            "mayfly: warning: {} run in the shell without their services; --default-image IMAGE runs them in containers\n",
            without_services.join(", ")
        ));
    }
}

/// Pulls the images of jobs and of their services, each once. Fails if an image is missing, except for an image that an
/// earlier job may build: mayfly retries its pull when the job starts.
fn pull(containers: &Containers, plan: &Plan, wanted: Vec<(&Job, Value)>, screen: &Screen) -> Result<(), String> {
    let mut tried = HashSet::new();
    for (job, image) in wanted {
        let expand = |text: &str| plan.expand(job, text);
        for image in payload::services(job).into_iter().chain([image]) {
            let may_be_built = may_be_local(&image) && !starts_at_once(plan, job);
            let name = expand(image["name"].as_str().unwrap_or_default());
            if !tried.insert(format!("{may_be_built} {name}{image}")) {
                continue;
            }
            match containers.obtain(&image, screen, &expand) {
                Ok(()) => {}
                Err(error) if may_be_built => terminal::print_error(&format!(
                    "{}: warning: {error}; mayfly retries the pull when the job starts, because an earlier job may build \
                     the image\n",
                    place(plan, job)
                )),
                Err(error) => return Err(format!("{}: {error}; no job was started", place(plan, job))),
            }
        }
    }
    Ok(())
}

/// Whether an image may be one that a job of this pipeline builds: its name contains a variable, as names of the commit
/// or of the project do, or it is never pulled.
fn may_be_local(image: &Value) -> bool {
    let has_variable = image["name"].as_str().is_some_and(|name| name.contains('$'));
    has_variable || image["pull_policy"] == serde_json::json!(["never"])
}

/// Whether a job waits for no other job of the plan.
fn starts_at_once(plan: &Plan, job: &Job) -> bool {
    let is_awaited = |other: &Job| match &job.needs {
        Some(needs) => needs.iter().any(|need| need.job == other.name),
        None => other.stage_index < job.stage_index,
    };
    !plan.jobs.iter().any(is_awaited)
}

/// Where the configuration defines the job.
fn place(plan: &Plan, job: &Job) -> String {
    let (file, line) = plan.place(job.at);
    format!("{file}:{line}: job `{}`", job.name)
}
