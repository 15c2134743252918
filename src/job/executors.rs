//! What a job asks of the executor that runs it: prepare, run a script, run a file task, clean up.

use std::path::Path;
use std::sync::Arc;

use super::context::{Job, RunnerContext};
use super::file_task::FileTask;
use super::outcome::StageResult;
use super::script::GITLAB_ENV_FILE;
use super::steps::StepRunner;
use crate::executor::Executor;
use crate::executor::docker::prepared::PreparedContainer;
use crate::executor::job_dirs::JobDirs;
use crate::executor::shell::Shell;
use crate::failure::JobError;
use crate::journal::Progress;
use crate::payload::Payload;
use crate::payload::variables::Variables;
use crate::shim::spec::{Rights, Task};

/// Removes what was made for a job, beside whatever comes next.
pub type CleanUp = Box<dyn FnOnce()>;

/// How the stages of a job are run. One implementation an executor.
pub trait JobExecutor: Executor {
    /// Where the job works, unless it asks for something else. `variables` are those of a job that works there.
    fn dirs(
        &self,
        context: &RunnerContext,
        payload: &Payload,
        concurrent: u32,
        variables: &dyn Fn(&JobDirs) -> Variables,
    ) -> JobDirs;

    /// The image of the job as it is named, with variables in it; `None` outside of containers.
    fn image<'a>(&self, context: &'a RunnerContext, payload: &'a Payload) -> Option<&'a str>;

    /// The name of the network that is made for the job alone, if one is (`CI_BUILD_NETWORK_NAME`).
    fn network(&self, context: &RunnerContext, payload: &Payload, own_network: bool, concurrent: u32)
    -> Option<String>;

    /// Makes everything that scripts need; returns the job's container where there is one. Errors: see `StageError`.
    fn prepare(&self, steps: &mut StepRunner<'_>) -> StageResult<Option<Box<PreparedContainer>>>;

    /// Empties the file of `GITLAB_ENV`: what an earlier job left in it is not for this one.
    fn reset_env_file(&self, job: &Job<'_>);

    /// A script as a task; `merge` sends standard error down the pipe of standard output.
    fn script(&self, job: &Job<'_>, progress: &Progress, text: String, merge: bool) -> Task;

    /// What a file task may do.
    fn file_task_rights(&self, job: &Job<'_>, plan: &FileTask) -> Rights;

    /// Whether jobs for protected and for other refs can choose the same directory.
    fn shares_builds(&self, _: &RunnerContext) -> bool {
        true
    }

    /// The executor for the jobs of one slot, where that is another one: each slot has a user of its own.
    fn for_slot(&self, _slot: usize) -> Option<Arc<dyn JobExecutor>> {
        None
    }

    /// What removes everything that was made for the job of this name, and its builds directory if that goes with it.
    fn clean_up(&self, job: String, builds: Option<&Path>) -> Option<CleanUp>;
}

impl JobExecutor for Shell {
    fn dirs(
        &self,
        context: &RunnerContext,
        payload: &Payload,
        concurrent: u32,
        _: &dyn Fn(&JobDirs) -> Variables,
    ) -> JobDirs {
        JobDirs::on_host(&context.builds, &context.caches, &context.runner.token.short(), concurrent, payload)
    }

    fn image<'a>(&self, _: &'a RunnerContext, _: &'a Payload) -> Option<&'a str> {
        None
    }

    fn network(&self, _: &RunnerContext, _: &Payload, _: bool, _: u32) -> Option<String> {
        None
    }

    fn prepare(&self, steps: &mut StepRunner<'_>) -> StageResult<Option<Box<PreparedContainer>>> {
        self.check()?;
        let (dirs, caches) = (&steps.job.settings.dirs, &steps.job.context.caches);
        let made = dirs.create(caches, self);
        made.map_err(|error| JobError::system(format!("cannot create {}: {error}", dirs.builds.display())))?;
        Ok(None)
    }

    fn reset_env_file(&self, job: &Job<'_>) {
        job.settings.dirs.truncate_temporary(GITLAB_ENV_FILE, self.user());
    }

    fn script(&self, _: &Job<'_>, _: &Progress, text: String, merge: bool) -> Task {
        self.script_task(text, merge)
    }

    fn file_task_rights(&self, _: &Job<'_>, _: &FileTask) -> Rights {
        Rights::User
    }

    fn for_slot(&self, slot: usize) -> Option<Arc<dyn JobExecutor>> {
        self.of_slot(slot).map(|shell| Arc::new(shell) as Arc<dyn JobExecutor>)
    }

    fn clean_up(&self, _: String, _: Option<&Path>) -> Option<CleanUp> {
        None
    }
}
