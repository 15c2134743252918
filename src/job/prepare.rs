//! The stage `prepare_executor`: checks what the job requests, and creates its directories and its container.

use super::context::Job;
use super::stage_result::StageResult;
use super::steps::StepRunner;
use super::stop_policy::StopPolicy;
use crate::executor::docker::prepared::PreparedContainer;
use crate::failure::JobError;
use crate::payload::Secret;
use crate::shim::spec::StepProgram;

/// Checks the job, and creates its directories. Returns the program that creates the job's container, if the executor
/// uses containers.
pub fn run(job: &Job<'_>) -> StageResult<Option<StepProgram>> {
    check(job)?;
    job.context.executor.prepare(job)
}

/// Creates the job's container. `None` if the stage was stopped before.
pub fn create_container(
    steps: &mut StepRunner<'_>,
    program: StepProgram,
) -> StageResult<Option<Box<PreparedContainer>>> {
    steps.run_for_container(program, &steps.job.deadlines.prepare(), StopPolicy::CancelOrEviction)
}

/// Fails if the job requests something that this runner does not support, or access to the instance's credentials
/// cannot be blocked.
fn check(job: &Job<'_>) -> Result<(), JobError> {
    if job.payload.run {
        return Err(JobError::configuration("the job uses `run`; this runner runs jobs with `script`"));
    }
    refuse_secrets(job)?;
    match job.context.metadata_block.as_ref().map(|metadata_block| metadata_block.ensure()) {
        Some(Err(why)) => {
            Err(JobError::system(format!("cannot block the job's access to the instance's credentials: {why}")))
        }
        _ => Ok(()),
    }
}

/// A job must not run without secrets that it needs.
fn refuse_secrets(job: &Job<'_>) -> Result<(), JobError> {
    let secrets = job.payload.secrets.iter().map(|(name, secret)| {
        let provider = secret.as_ref().and_then(Secret::provider).unwrap_or("no store");
        format!("{name} from {provider}")
    });
    let wanted: Vec<String> = secrets.collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let wanted = wanted.join(", ");
    let why = format!("the job needs secrets ({wanted}), which this runner cannot fetch; use CI/CD variables");
    Err(JobError::configuration(why))
}
