//! The stages for files: caches, artifacts, and the clean-up of the project directory.

use std::time::Duration;

use super::artifacts::{self, ArtifactServer, ProvenanceStatement};
use super::context::Job;
use super::file_step::file_step;
use super::file_task::FileTask;
use super::flags;
use super::script::GITLAB_ENV_FILE;
use super::stage_result::StageResult;
use super::stages::outcome_so_far;
use super::steps::StepRunner;
use super::stop_policy::StopPolicy;
use super::transfer::ProjectDir;
use super::{cache, sources_plan};
use crate::coordinator::gitlab::api_base;
use crate::version::{VERSION, architecture, user_agent};

/// Restores the caches.
pub fn restore_cache(steps: &mut StepRunner<'_>) -> StageResult {
    let job = steps.job;
    let (variables, flags) = (&job.settings.variables, &job.settings.flags);
    let plan = cache::restore_plan(&job.payload, variables, flags, &cache_settings(job))?;
    run(steps, plan.map(FileTask::RestoreCache), StopPolicy::CancelOrEviction)
}

/// Saves the caches.
pub fn save_cache(steps: &mut StepRunner<'_>) -> StageResult {
    let job = steps.job;
    let (variables, flags) = (&job.settings.variables, &job.settings.flags);
    let plan = cache::save_plan(
        &job.payload,
        variables,
        flags,
        &cache_settings(job),
        outcome_so_far(&steps.journal.progress),
    )?;
    let saved = run(steps, plan.map(FileTask::SaveCache), StopPolicy::EvictionOnly);
    // If the interruption of the instance stops the saving of a cache, the job does not fail.
    let stop_requests = job.control.stop_requests();
    if StopPolicy::EvictionOnly.stops(&stop_requests) && !stop_requests.stops_job() {
        forgive_failure(saved)
    } else {
        saved
    }
}

/// Downloads artifacts of other jobs.
pub fn download_artifacts(steps: &mut StepRunner<'_>) -> StageResult {
    let job = steps.job;
    let (variables, flags) = (&job.settings.variables, &job.settings.flags);
    let plan = artifacts::download_plan(&job.payload, variables, flags, &artifact_settings(job));
    run(steps, plan.map(FileTask::DownloadArtifacts), StopPolicy::CancelOrEviction)
}

/// Uploads artifacts.
pub fn upload_artifacts(steps: &mut StepRunner<'_>) -> StageResult {
    let job = steps.job;
    // Names and paths are expanded as in the job's shell, including variables from `GITLAB_ENV`.
    let mut variables = job.settings.variables.clone();
    variables.push_lines(&job.settings.dirs.read_temporary(GITLAB_ENV_FILE, job.context.executor.user()));
    let (settings, outcome) = (artifact_settings(job), outcome_so_far(&steps.journal.progress));
    let plan = artifacts::upload_plan(&job.payload, &variables, &settings, outcome, || statement(job));
    run(steps, plan.map(FileTask::UploadArtifacts), StopPolicy::Never)
}

/// Cleans the project directory if the job requests it. Never fails the job, and never runs in a tree of `mayfly exec`,
/// which is cleaned before its next use.
pub fn clean_up(steps: &mut StepRunner<'_>) -> StageResult {
    let job = steps.job;
    if !job.settings.flags.is_on(flags::FF_ENABLE_JOB_CLEANUP) || job.context.local.is_some() {
        return Ok(());
    }
    let plan = sources_plan::plan(job).ok();
    let cleaned = run(steps, plan.map(FileTask::CleanUp), StopPolicy::Never);
    forgive_failure(cleaned)
}

/// Runs a file task, if there is one.
fn run(steps: &mut StepRunner<'_>, task: Option<FileTask>, stop_policy: StopPolicy) -> StageResult {
    let Some(task) = task else { return Ok(()) };
    let program = file_step(steps.job, task)?;
    steps.run(program, &steps.job.deadlines.job(), stop_policy)
}

/// Ignores the failure of a stage that must not fail the job.
fn forgive_failure(result: StageResult) -> StageResult {
    use super::stage_result::StageError::{Failed, JournalUnusable};
    match result {
        Err(JournalUnusable(error)) => Err(JournalUnusable(error)),
        Ok(()) | Err(Failed(_)) => Ok(()),
    }
}

fn project(job: &Job<'_>) -> ProjectDir {
    let dirs = &job.settings.dirs;
    let (builds, directory) = (dirs.builds.clone(), dirs.project.clone());
    ProjectDir { builds, seen: dirs.as_seen_by_job(&directory), directory }
}

fn artifact_settings(job: &Job<'_>) -> artifacts::ArtifactSettings {
    let runner = &job.context.runner;
    artifacts::ArtifactSettings {
        project: project(job),
        temporary: job.settings.dirs.temporary.clone(),
        server: ArtifactServer {
            api: api_base(&runner.url).trim_end_matches('/').to_owned(),
            tls: runner.tls.with_contents(),
            user_agent: user_agent(),
            directory: job.context.local.as_ref().map(|local| local.artifacts.clone()),
        },
        timeout: runner.upload_timeout,
        response_timeout: runner.upload_response_timeout,
    }
}

fn cache_settings<'a>(job: &'a Job<'_>) -> cache::CacheSettings<'a> {
    let context = job.context;
    cache::CacheSettings {
        project: project(job),
        store: job.settings.dirs.cache.clone(),
        root: context.caches.clone(),
        remote: context.store.as_deref(),
        tls: context.runner.tls.with_contents(),
        user_agent: user_agent(),
        job_timeout: Duration::from_secs(job.payload.timeout_seconds()),
        limits: context.runner.retention.caches,
    }
}

/// The provenance statement of the job's artifacts.
fn statement(job: &Job<'_>) -> ProvenanceStatement {
    let runner = &job.context.runner;
    let now = jiff::Timestamp::now();
    let started = now.as_second() - i64::try_from(job.began.elapsed().as_secs()).unwrap_or(0);
    let variable = |key: &str| job.settings.variables.value(key).unwrap_or_default();
    ProvenanceStatement {
        version: VERSION.to_owned(),
        variables: job.payload.variables.iter().map(|variable| variable.key.clone()).collect(),
        entry_point: job.payload.job_info.name.clone(),
        source: variable("CI_PROJECT_URL"),
        runner_id: variable("CI_RUNNER_ID"),
        runner: runner.name.clone(),
        executor: runner.executor.as_str().to_owned(),
        architecture: architecture().to_owned(),
        job: job.payload.id.to_string(),
        sha: job.payload.git_info.sha.clone(),
        started: jiff::Timestamp::from_second(started).unwrap_or(now).to_string(),
        finished: now.to_string(),
    }
}
