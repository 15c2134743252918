//! What makes a job fail before its executor is prepared.

use super::context::Job;
use crate::failure::JobError;
use crate::payload::Secret;

/// Errors: the job asks for what this runner cannot do, or cannot be kept from the instance's credentials.
pub fn check(job: &Job<'_>) -> Result<(), JobError> {
    if job.payload.run {
        return Err(JobError::configuration("the job uses `run`; this runner runs jobs with `script`"));
    }
    refuse_secrets(job)?;
    match job.context.metadata_block.as_ref().map(|metadata_block| metadata_block.ensure()) {
        Some(Err(why)) => Err(JobError::system(format!("the job is not kept from the instance's credentials: {why}"))),
        _ => Ok(()),
    }
}

/// A job must not run without the secrets that it counts on.
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
    let why = format!("the job wants secrets ({wanted}), and this runner fetches none: use CI/CD variables");
    Err(JobError::configuration(why))
}
