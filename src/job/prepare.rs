//! The stages before the sources: what a job needs before anything of its own runs.

use super::containers;
use super::context::Job;
use super::outcome::StageResult;
use super::script::BRIDGE;
use super::steps::{StepRunner, StopsFor};
use crate::executor::docker::prepared::Prepared;
use crate::executor::{Ground, shell::Shell};
use crate::failure::JobError;
use crate::payload::Secret;

/// Prepares the executor; returns the job's container where there is one.
pub fn executor(steps: &mut StepRunner<'_>) -> StageResult<Option<Box<Prepared>>> {
    let job = steps.job;
    refuse_unsupported(job)?;
    refuse_without_guard(job)?;
    match job.context.executor.ground() {
        Ground::Shell(shell) => prepare_shell(job, shell).map(|()| None).map_err(Into::into),
        Ground::Containers(docker) => {
            let task = containers::prepare_task(job, docker)?;
            steps.run_for_container(task, &job.deadlines.prepare(), StopsFor::Any)
        }
    }
}

/// Empties the file of `GITLAB_ENV`: what an earlier job left in it is not for this one. Which user a container runs as,
/// the container alone knows, so its script makes the file.
pub fn environment(job: &Job<'_>) {
    let dirs = &job.settings.dirs;
    match job.context.executor.ground() {
        Ground::Shell(_) => dirs.renew_temporary(BRIDGE, job.context.executor.user()),
        Ground::Containers(_) => dirs.remove_temporary(&[BRIDGE.to_owned()]),
    }
}

fn refuse_unsupported(job: &Job<'_>) -> Result<(), JobError> {
    if job.payload.run {
        return Err(JobError::configuration("the job uses `run`; this runner runs jobs with `script`"));
    }
    let secrets = job.payload.secrets.iter().map(|(name, secret)| {
        let provider = secret.as_ref().and_then(Secret::provider).unwrap_or("no store");
        format!("{name} from {provider}")
    });
    let wanted: Vec<String> = secrets.collect();
    if wanted.is_empty() {
        return Ok(());
    }
    // A job must not run without the secrets that it counts on.
    let wanted = wanted.join(", ");
    let why = format!("the job wants secrets ({wanted}), and this runner fetches none: use CI/CD variables");
    Err(JobError::configuration(why))
}

fn refuse_without_guard(job: &Job<'_>) -> Result<(), JobError> {
    match job.context.guard.as_ref().map(|guard| guard.hold()) {
        Some(Err(why)) => Err(JobError::system(format!("the job is not kept from the instance's credentials: {why}"))),
        _ => Ok(()),
    }
}

fn prepare_shell(job: &Job<'_>, shell: &Shell) -> Result<(), JobError> {
    shell.prepare()?;
    let dirs = &job.settings.dirs;
    dirs.create(&job.context.caches, job.context.executor.user())
        .map_err(|error| JobError::system(format!("cannot make {}: {error}", dirs.builds.display())))
}
