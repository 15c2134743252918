//! Connects to the container engine and pulls the images before any job runs, so that a run fails at its start.

use std::collections::HashSet;
use std::path::PathBuf;

use serde_json::Value;

use super::terminal;
use crate::config::Runner;
use crate::local::containers::{ContainerOptions, Containers};
use crate::local::options::{ExecutorPolicy, RunOptions, image_of, services_in_the_shell};
use crate::local::payload;
use crate::local::screen::Screen;
use crate::local::state::Run;
use crate::pipeline::plan::{Job, Plan};

/// Connects a run to the container engine.
pub struct EngineConnection<'a> {
    pub plan: &'a Plan,
    pub options: &'a RunOptions,
    pub runner: &'a Runner,
    pub run: &'a Run,
    pub screen: &'a Screen,
}

impl EngineConnection<'_> {
    /// Connects to the engine and pulls the images, if a job needs containers. `objects` are the object directories
    /// that containers mount. Fails if the engine does not answer, an image cannot be pulled, or a job that must run in
    /// a container has no image.
    pub fn open(&self, objects: Vec<PathBuf>) -> Result<Option<Containers>, String> {
        self.refuse_jobs_without_image()?;
        warn_about_shell_jobs(self.plan, self.options);
        let settings = ContainerOptions { objects, run: self.run.directory.clone() };
        let jobs = self.plan.jobs.iter();
        let images: Vec<(&Job, Value)> = jobs.filter_map(|job| Some((job, image_of(job, self.options)?))).collect();
        let containers = match images.first() {
            Some((first, _)) => Some(self.connect(&settings, first)?),
            // A triggered pipeline may need containers; without an engine its trigger job fails.
            None if self.plan.jobs.iter().any(|job| job.trigger.is_some()) => {
                Containers::connect(self.runner, &settings).ok()
            }
            None => None,
        };
        if let Some(containers) = &containers {
            self.run.record_engine(containers.address())?;
            pull(containers, self.plan, images, self.screen)?;
        }
        Ok(containers)
    }

    fn refuse_jobs_without_image(&self) -> Result<(), String> {
        if self.options.executor != ExecutorPolicy::Containers {
            return Ok(());
        }
        let has_no_image = |job: &&Job| job.trigger.is_none() && image_of(job, self.options).is_none();
        match self.plan.jobs.iter().find(has_no_image) {
            None => Ok(()),
            Some(job) => {
                Err(format!("{}: the job has no image; set one with --default-image IMAGE", definition(self.plan, job)))
            }
        }
    }

    /// Connects for `first`, the first job that needs a container.
    fn connect(&self, settings: &ContainerOptions, first: &Job) -> Result<Containers, String> {
        Containers::connect(self.runner, settings).map_err(|why| {
            format!(
                "{}: `image` needs a container engine: {why}; no job was started. --shell runs the scripts on this \
                 machine instead",
                definition(self.plan, first)
            )
        })
    }
}

/// Warns about jobs that lack their containers or services because they run in the shell.
fn warn_about_shell_jobs(plan: &Plan, options: &RunOptions) {
    if options.executor == ExecutorPolicy::Shell {
        let with_image: Vec<&str> = plan.jobs.iter().filter(|job| job.image.is_some()).map(|job| &*job.name).collect();
        if !with_image.is_empty() {
            terminal::print_error(&format!(
                "mayfly: warning: --shell: {} run on this machine as your user instead of in a container\n",
                with_image.join(", ")
            ));
        }
    }
    let without_services = services_in_the_shell(&plan.jobs, options);
    if !without_services.is_empty() {
        terminal::print_error(&format!(
            "mayfly: warning: {} run in the shell without their services; --default-image IMAGE runs them in containers\n",
            without_services.join(", ")
        ));
    }
}

/// Pulls the images of jobs and of their services, each once. Fails if an image is missing, except for an image that an
/// earlier job may build: mayfly retries its pull when the job starts.
fn pull(containers: &Containers, plan: &Plan, images: Vec<(&Job, Value)>, screen: &Screen) -> Result<(), String> {
    let mut tried = HashSet::new();
    for (job, image) in images {
        let expand = |text: &str| plan.expand(job, text);
        for image in payload::service_entries(job).into_iter().chain([image]) {
            let may_be_built = may_be_built_here(&image) && !starts_at_once(plan, job);
            let name = expand(image["name"].as_str().unwrap_or_default());
            if !tried.insert(format!("{may_be_built} {name}{image}")) {
                continue;
            }
            match containers.provide_image(&image, screen, &expand) {
                Ok(()) => {}
                Err(error) if may_be_built => terminal::print_error(&format!(
                    "{}: warning: {error}; mayfly retries the pull when the job starts, because an earlier job may build \
                     the image\n",
                    definition(plan, job)
                )),
                Err(error) => return Err(format!("{}: {error}; no job was started", definition(plan, job))),
            }
        }
    }
    Ok(())
}

/// Whether a job of this pipeline may build the image: its name contains a variable
/// (`$CI_REGISTRY_IMAGE:$CI_COMMIT_SHA`), or its pull policy is `never`.
fn may_be_built_here(image: &Value) -> bool {
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

/// The file and line that define a job, and its name, for messages.
fn definition(plan: &Plan, job: &Job) -> String {
    let (file, line) = plan.file_and_line(job.at);
    format!("{file}:{line}: job `{}`", job.name)
}
