//! The end of a run: opens shells for failed jobs, keeps their trees, and collects the results of all jobs.

use std::path::PathBuf;

use nix::unistd::Uid;

use super::{JobIndex, LocalRunner};
use crate::local::attempt::FailedJob;
use crate::local::conclusion::final_status;
use crate::local::results::JobResult;
use crate::local::{failed_shell, report};

impl LocalRunner<'_> {
    /// Opens shells in the trees of failed jobs (`--shell-on-failure`), and keeps the trees (`--keep`).
    pub(super) fn process_failed_jobs(&mut self) {
        for job in self.all_jobs() {
            let result = self.progress_mut(job).result.as_mut();
            let Some(failed) = result.and_then(|result| result.failed_job.take()) else { continue };
            if self.options.shell_on_failure && !self.is_interrupted {
                failed_shell::open(&self.context, &self.name(job), &failed);
            }
            if self.options.keep_failed_trees {
                self.progress_mut(job).kept = self.keep_tree(job, &failed);
            }
        }
    }

    /// Moves the tree of a failed job to the directory for kept trees. Returns the directory of the project. If that
    /// fails, shows a warning.
    fn keep_tree(&self, job: JobIndex, failed: &FailedJob) -> Option<PathBuf> {
        let name = &self.name(job);
        // The files belong to the users of the job's container. Without root's rights, the developer could neither read
        // nor remove them.
        if failed.image.is_some() && !Uid::effective().is_root() {
            let containers = self.context.containers.as_ref();
            if !containers.is_some_and(|containers| containers.restore_ownership(&failed.tree.builds)) {
                self.context
                    .screen
                    .show_message(&format!("warning: files of {name} still belong to the user of its container"));
            }
        }
        let place = self.context.kept.join(format!("{}-{}", self.progress(job).id, report::file_stem(name)));
        let kept = failed.tree.keep(&place);
        kept.inspect_err(|error| {
            self.context.screen.show_message(&format!("warning: cannot keep the tree of {name}: {error}"))
        })
        .ok()
    }

    /// The results of all jobs of all pipelines.
    pub(super) fn results(&self) -> Vec<JobResult> {
        self.all_jobs().into_iter().map(|job| self.result(job)).collect()
    }

    fn result(&self, job: JobIndex) -> JobResult {
        let name = self.name(job);
        let running = &self.pipelines[job.pipeline];
        let (planned, progress) = (&running.plan.jobs[job.job], &running.jobs[job.job]);
        let result = progress.result.as_ref();
        let failure = result.and_then(|result| result.failure);
        let extracted = result.map(|result| result.extracted.clone()).unwrap_or_default();
        let log = self.options.logs.as_ref().map(|directory| directory.join(report::log_name(&name)));
        JobResult {
            stage: planned.stage.to_string(),
            status: final_status(running.schedule.state(job.job)),
            is_blocking: running.schedule.is_blocking(job.job) && planned.trigger.is_none(),
            exit_code: match failure {
                Some((_, code)) => code,
                None => result.map(|_| 0),
            },
            duration: progress.duration,
            attempts: progress.attempts,
            coverage: extracted.coverage,
            failure_reason: failure.map(|(reason, _)| reason),
            message: progress.message.clone(),
            log: log.filter(|path| path.exists()),
            tail: extracted.tail,
            command: extracted.command,
            kept: progress.kept.clone(),
            name,
        }
    }
}
