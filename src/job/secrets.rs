//! Removes the files with secrets that a job had on the machine.

use super::containers::OUTPUT_FIFOS;
use super::context::Job;
use super::script::GITLAB_ENV_FILE;
use super::sources::SECRET_FILES;

/// Removes file variables, credentials, and the files through which scripts pass variables and output.
pub fn remove(job: &Job<'_>) {
    let settings = &job.settings;
    let mut names: Vec<String> = settings.variables.files().into_iter().map(|(name, _)| name).collect();
    let fixed = SECRET_FILES.into_iter().chain([GITLAB_ENV_FILE]).chain(OUTPUT_FIFOS);
    names.extend(fixed.map(str::to_owned));
    settings.dirs.remove_temporary(&names, job.context.executor.user());
}
