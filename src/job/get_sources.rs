//! The stage that fetches the sources: hooks before, git, hooks after.

use super::context::Job;
use super::file_step::file_step;
use super::file_task;
use super::flags::WITHOUT_TOKENS;
use super::outcome::StageResult;
use super::script::LineGroup;
use super::scripts::script_task;
use super::sources::{self, Strategy};
use super::steps::{StepRunner, StopPolicy};
use crate::failure::JobError;
use crate::journal::Progress;
use crate::shim::spec::Task;
use crate::sys;

/// One attempt; steps that an earlier agent saw to their end are not run again.
pub fn run(steps: &mut StepRunner<'_>) -> StageResult {
    let job = steps.job;
    if is_skipped(job) {
        return Ok(());
    }
    let tasks = tasks(job, &steps.journal.progress)?;
    let limit = job.deadlines.sources(&mut steps.journal.progress.sources_deadline, sys::boottime());
    for (index, task) in tasks.into_iter().enumerate().skip(steps.journal.progress.steps_done) {
        steps.run(task, &limit, StopPolicy::CancelOrEviction)?;
        steps.settle_step(index + 1)?;
    }
    Ok(())
}

/// True when there is nothing to fetch, nothing to remove and no hook to run.
pub fn is_skipped(job: &Job<'_>) -> bool {
    let strategy = sources::strategy(&job.payload, &job.settings.variables);
    let runner = &job.context.runner;
    let has_hooks = !job.payload.hooks.iter().all(|hook| hook.script.is_empty())
        || runner.pre_get_sources_script.is_some()
        || runner.post_get_sources_script.is_some();
    !has_hooks && !job.settings.flags.is_on(WITHOUT_TOKENS) && strategy.is_ok_and(|strategy| strategy == Strategy::None)
}

fn tasks(job: &Job<'_>, progress: &Progress) -> StageResult<Vec<Task>> {
    let plan = plan(job, progress)?;
    let runner = &job.context.runner;
    let has_hooks = plan.strategy != Strategy::Empty;
    let of_runner = |text: &Option<String>| -> Vec<String> { text.iter().filter(|_| has_hooks).cloned().collect() };
    let of_job = |name: &str| if has_hooks { job.payload.hook(name).to_vec() } else { Vec::new() };
    let before = [
        LineGroup { origin: "pre_clone_script", lines: of_runner(&runner.pre_get_sources_script) },
        LineGroup { origin: "pre_clone_script", lines: of_job("pre_get_sources_script") },
    ];
    let after = [
        LineGroup { origin: "post_clone_script", lines: of_job("post_get_sources_script") },
        LineGroup { origin: "post_clone_script", lines: of_runner(&runner.post_get_sources_script) },
    ];
    let has_lines = |groups: &[LineGroup<'_>]| groups.iter().any(|group| !group.lines.is_empty());
    let mut tasks = Vec::new();
    if has_lines(&before) {
        tasks.push(script_task(job, progress, &before, None, None));
    }
    tasks.push(file_step(job, &file_task::FileTask::Sources(plan))?);
    if has_lines(&after) {
        tasks.push(script_task(job, progress, &after, Some(job.project_directory()), None));
    }
    Ok(tasks)
}

/// What git has to do. Errors: what the job asks for cannot be done.
pub fn plan(job: &Job<'_>, progress: &Progress) -> Result<sources::SourcesPlan, JobError> {
    let (settings, context) = (&job.settings, job.context);
    let sources_settings = sources::SourcesSettings {
        project: settings.dirs.project.clone(),
        temporary: settings.dirs.temporary.clone(),
        temporary_in_container: settings
            .dirs
            .container_builds
            .as_ref()
            .map(|_| settings.dirs.as_seen_by_job(&settings.dirs.temporary)),
        server: context.runner.url.clone(),
        clone_url: context.runner.clone_url.clone(),
        ca_certificates: settings.ca_certificates.clone(),
        correlation_id: match settings.flags.is_on("FF_USE_GITALY_CORRELATION_ID") {
            true => job.request_id.clone(),
            false => String::new(),
        },
        environment: context.executor.environment(),
        without_tokens: settings.flags.is_on(WITHOUT_TOKENS),
        record_key: (!has_services(job)).then(|| sources::record_key(context.runner.key().reveal())),
        reuse: !is_shared_with_unprotected(job),
    };
    let plan = sources::plan(&job.payload, &settings.variables, sources_settings)?;
    Ok(sources::SourcesPlan { clear_worktree: progress.attempt == 1, ..plan })
}

/// Whether services of the job could change files of the checkout while git works on it.
fn has_services(job: &Job<'_>) -> bool {
    let configured = &job.context.runner.docker.services;
    job.context.runner.executor.has_containers() && !(job.payload.services.is_empty() && configured.is_empty())
}

/// Whether a protected job works in a directory of its own choice, which unprotected jobs can choose as well.
fn is_shared_with_unprotected(job: &Job<'_>) -> bool {
    let is_chosen = job.settings.variables.value("GIT_CLONE_PATH").is_some_and(|path| !path.is_empty());
    is_chosen && job.context.executor.shares_builds(job.context) && job.payload.is_protected()
}
