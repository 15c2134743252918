//! The stages that carry files: caches and artifacts, by the plans of their modules.

use std::io;
use std::time::Duration;

use super::artifacts::{self, Outcome, Server, Statement};
use super::cache;
use super::engine::Engine;
use super::script::BRIDGE;
use super::transfer::Project;
use super::work::Plan;
use crate::coordinator::gitlab::{VERSION, api_base, architecture, user_agent};
use crate::failure::JobError;
use crate::payload::Payload;

/// Whether a job has anything to restore.
pub fn has_caches(payload: &Payload) -> bool {
    payload.cache.iter().any(|cache| cache.untracked || !cache.paths.is_empty())
}

/// Whether a job that came out like this has anything to save.
pub fn has_caches_to_save(payload: &Payload, outcome: Outcome) -> bool {
    let due = |cache: &&crate::payload::Cache| outcome.fits(&cache.when);
    payload.cache.iter().filter(due).any(|cache| cache.untracked || !cache.paths.is_empty())
}

/// Whether other jobs have something for this one.
pub fn has_dependencies(payload: &Payload) -> bool {
    payload.dependencies.iter().any(|dependency| !dependency.artifacts_file.filename.is_empty())
}

/// Whether a job that came out like this has anything to hand over.
pub fn has_artifacts(payload: &Payload, outcome: Outcome) -> bool {
    let due = |artifact: &&crate::payload::Artifact| outcome.fits(&artifact.when);
    let mut due = payload.artifacts.iter().filter(due);
    due.any(|artifact| artifact.untracked || !artifact.paths.is_empty() || !artifact.exclude.is_empty())
}

impl Engine<'_> {
    /// How the job came out so far.
    pub(super) fn outcome(&self) -> Outcome {
        if self.record.progress.failure.is_none() { Outcome::Success } else { Outcome::Failure }
    }

    /// Unpacks what caches hold.
    pub(super) fn restore_cache(&mut self) -> io::Result<Result<(), JobError>> {
        let plan = cache::restore_plan(&self.payload, &self.prepared.variables, &self.prepared.flags, &self.caches());
        match plan {
            Ok(plan) => self.carry(plan.map(Plan::RestoreCache)),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Keeps files for later jobs.
    pub(super) fn save_cache(&mut self) -> io::Result<Result<(), JobError>> {
        let outcome = self.outcome();
        let (variables, flags) = (&self.prepared.variables, &self.prepared.flags);
        match cache::save_plan(&self.payload, variables, flags, &self.caches(), outcome) {
            Ok(plan) => self.carry(plan.map(Plan::SaveCache)),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Fetches what other jobs made.
    pub(super) fn download_artifacts(&mut self) -> io::Result<Result<(), JobError>> {
        let (variables, flags) = (&self.prepared.variables, &self.prepared.flags);
        let plan = artifacts::download_plan(&self.payload, variables, flags, &self.artifacts());
        self.carry(plan.map(Plan::DownloadArtifacts))
    }

    /// Hands files to GitLab.
    pub(super) fn upload_artifacts(&mut self) -> io::Result<Result<(), JobError>> {
        // Names and paths are expanded as in the job's own shell, which knows what scripts have handed on.
        let mut variables = self.prepared.variables.clone();
        variables.push_lines(&self.prepared.place.read_temporary(BRIDGE));
        let (place, outcome) = (self.artifacts(), self.outcome());
        let plan = artifacts::upload_plan(&self.payload, &variables, &place, outcome, || self.statement());
        self.carry(plan.map(Plan::UploadArtifacts))
    }

    fn project(&self) -> Project {
        let place = &self.prepared.place;
        let (builds, directory) = (place.builds.clone(), place.project.clone());
        Project { builds, seen: place.seen(&directory), directory }
    }

    fn artifacts(&self) -> artifacts::Place {
        artifacts::Place {
            project: self.project(),
            temporary: self.prepared.place.temporary.clone(),
            server: Server {
                api: api_base(&self.context.runner.url).trim_end_matches('/').to_owned(),
                tls: self.context.runner.tls.carried(),
                user_agent: user_agent(),
            },
            timeout: self.context.runner.upload_timeout,
            answer_timeout: self.context.runner.upload_answer_timeout,
        }
    }

    fn caches(&self) -> cache::Place<'_> {
        cache::Place {
            project: self.project(),
            store: self.prepared.place.cache.clone(),
            root: self.context.caches.clone(),
            remote: self.context.store.as_deref(),
            tls: self.context.runner.tls.carried(),
            user_agent: user_agent(),
            job_timeout: Duration::from_secs(self.payload.timeout_seconds()),
            limits: self.context.runner.cache_limits,
        }
    }

    fn statement(&self) -> Statement {
        let now = jiff::Timestamp::now();
        let ran = crate::sys::boottime().saturating_sub(self.record.began);
        let started = now.as_second() - i64::try_from(ran / 1_000_000_000).unwrap_or(0);
        let variable = |key: &str| self.prepared.variables.value(key).unwrap_or_default();
        Statement {
            version: VERSION.to_owned(),
            variables: self.payload.variables.iter().map(|variable| variable.key.clone()).collect(),
            entry_point: self.payload.job_info.name.clone(),
            source: variable("CI_PROJECT_URL"),
            runner_id: variable("CI_RUNNER_ID"),
            runner: self.context.runner.name.clone(),
            executor: self.context.runner.executor.as_str().to_owned(),
            architecture: architecture().to_owned(),
            job: self.payload.id.to_string(),
            sha: self.payload.git_info.sha.clone(),
            started: jiff::Timestamp::from_second(started).unwrap_or(now).to_string(),
            finished: now.to_string(),
        }
    }
}
