//! The plan of the stage `get_sources`, from the payload and the settings of the job.

use super::context::Job;
use super::flags;
use super::sources::{self, GitStrategy};
use crate::failure::JobError;

/// True if the job fetches nothing, removes nothing and has no scripts before or after git.
pub fn is_skipped(job: &Job<'_>) -> bool {
    let strategy = sources::strategy(&job.payload, &job.settings.variables);
    let runner = &job.context.runner;
    let has_hooks = !job.payload.hooks.iter().all(|hook| hook.script.is_empty())
        || runner.hooks.pre_get_sources.is_some()
        || runner.hooks.post_get_sources.is_some();
    !has_hooks
        && !job.settings.flags.is_on(flags::FF_GIT_URLS_WITHOUT_TOKENS)
        && strategy.is_ok_and(|strategy| strategy == GitStrategy::None)
}

/// The plan for git. Errors: the job requests something that is not possible.
pub fn plan(job: &Job<'_>) -> Result<sources::SourcesPlan, JobError> {
    let (settings, context) = (&job.settings, job.context);
    let sources_settings = sources::SourcesSettings {
        project: settings.dirs.project.clone(),
        temporary: settings.dirs.temporary.clone(),
        temporary_in_container: settings.dirs.temporary_in_container(),
        server: context.runner.url.clone(),
        clone_url: context.runner.clone_url.clone(),
        ca_certificates: settings.ca_certificates.clone(),
        correlation_id: match settings.flags.is_on(flags::FF_USE_GITALY_CORRELATION_ID) {
            true => job.request_id.clone(),
            false => String::new(),
        },
        environment: context.executor.environment(),
        without_tokens: settings.flags.is_on(flags::FF_GIT_URLS_WITHOUT_TOKENS),
        record_key: (!context.executor.has_services(job)).then(|| sources::record_key(context.runner.key().reveal())),
        reuse: !is_shared_with_unprotected(job),
    };
    sources::plan(&job.payload, &settings.variables, sources_settings)
}

/// Whether a protected job uses a custom directory that unprotected jobs can choose as well.
fn is_shared_with_unprotected(job: &Job<'_>) -> bool {
    let is_chosen = job.settings.variables.value("GIT_CLONE_PATH").is_some_and(|path| !path.is_empty());
    is_chosen && job.context.executor.shares_builds(job.context) && job.payload.is_protected()
}
