//! Runs the stages of a job in the machine's shell.

use std::path::Path;
use std::sync::Arc;

use super::build_dir::BuildDir;
use super::context::{CleanUp, Job, JobExecutor, RunnerContext};
use super::file_task::FileTask;
use super::script::GITLAB_ENV_FILE;
use super::stage_result::StageResult;
use crate::config::feature_flags::JobHost;
use crate::executor::Executor;
use crate::executor::job_dirs::JobDirs;
use crate::executor::shell::Shell;
use crate::failure::JobError;
use crate::journal::Progress;
use crate::payload::Payload;
use crate::payload::variables::Variables;
use crate::shim::spec::{OutputStreams, Rights, StepProgram};

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

    fn build_dir(&self, _: &RunnerContext, dirs: &JobDirs) -> Option<BuildDir> {
        // If slots have separate users, each user has a directory below the root.
        let root = self.shares_caches().then(|| dirs.builds.parent()).flatten();
        BuildDir::of_project(dirs, root, self.user())
    }

    fn job_host(&self) -> JobHost {
        JobHost::Shell
    }

    fn image<'a>(&self, _: &'a RunnerContext, _: &'a Payload) -> Option<&'a str> {
        None
    }

    fn own_network(&self, _: &RunnerContext, _: &Payload, _: u32) -> Option<String> {
        None
    }

    fn prepare(&self, job: &Job<'_>) -> StageResult<Option<StepProgram>> {
        self.check()?;
        let (dirs, caches) = (&job.settings.dirs, &job.context.caches);
        let made = dirs.create(caches, self);
        made.map_err(|error| JobError::system(format!("cannot create {}: {error}", dirs.builds.display())))?;
        Ok(None)
    }

    fn reset_env_file(&self, job: &Job<'_>) {
        job.settings.dirs.truncate_temporary(GITLAB_ENV_FILE, self.user());
    }

    fn script(&self, _: &Job<'_>, _: &Progress, text: String, streams: OutputStreams) -> StepProgram {
        self.script_program(text, streams)
    }

    fn file_task_rights(&self, _: &Job<'_>, _: &FileTask) -> Rights {
        Rights::User
    }

    fn for_slot(&self, slot: usize) -> Option<Arc<dyn JobExecutor>> {
        self.for_slot(slot).map(|shell| Arc::new(shell) as Arc<dyn JobExecutor>)
    }

    fn clean_up(&self, _: &RunnerContext, _: String, _: Option<&Path>) -> Option<CleanUp> {
        None
    }
}
