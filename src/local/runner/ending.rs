//! The end of a run: keeps the trees of failed jobs, and collects the results of all jobs.

use std::path::PathBuf;

use nix::unistd::Uid;

use super::LocalRunner;
use crate::local::attempt::FailedJob;
use crate::local::conclusion::status_of;
use crate::local::results::JobResult;
use crate::local::{failed_shell, report};

impl LocalRunner<'_> {
    /// Opens shells in the trees of failed jobs, and moves the trees to the directory for kept trees.
    pub(super) fn keep_trees(&mut self) {
        for pipeline in 0..self.pipelines.len() {
            for job in 0..self.pipelines[pipeline].jobs.len() {
                let name = self.name(pipeline, job);
                let progress = &mut self.pipelines[pipeline].jobs[job];
                let Some(failed) = progress.result.as_mut().and_then(|result| result.failed_job.take()) else {
                    continue;
                };
                let id = progress.id;
                if self.options.shell_on_failure && !self.is_interrupted {
                    failed_shell::open(&self.context, &name, &failed);
                }
                if self.options.keep {
                    self.pipelines[pipeline].jobs[job].kept = self.keep_tree(&name, id, &failed);
                }
            }
        }
    }

    /// Moves the tree of a failed job to the directory for kept trees. Returns the directory of the project; a failure
    /// is a warning.
    fn keep_tree(&self, name: &str, id: i64, failed: &FailedJob) -> Option<PathBuf> {
        // The files belong to the users of the job's container. Without root's rights, the developer could neither read
        // nor remove them.
        if failed.image.is_some() && !Uid::effective().is_root() {
            let containers = self.context.containers.as_ref();
            if !containers.is_some_and(|containers| containers.restore_ownership(&failed.tree.builds)) {
                self.context.screen.say(&format!("warning: files of {name} still belong to the user of its container"));
            }
        }
        let place = self.context.kept.join(format!("{id}-{}", report::log_name(name))).with_extension("");
        let kept = failed.tree.keep(&place);
        kept.inspect_err(|error| self.context.screen.say(&format!("warning: cannot keep the tree of {name}: {error}")))
            .ok()
    }

    /// The results of all jobs of all pipelines.
    pub(super) fn results(&mut self) -> Vec<JobResult> {
        let mut results = Vec::new();
        for pipeline in 0..self.pipelines.len() {
            for job in 0..self.pipelines[pipeline].jobs.len() {
                let name = self.name(pipeline, job);
                let running = &self.pipelines[pipeline];
                let (planned, progress) = (&running.plan.jobs[job], &running.jobs[job]);
                let result = progress.result.as_ref();
                let failure = result.and_then(|result| result.failure);
                let extracted = result.map(|result| result.extracted.clone()).unwrap_or_default();
                let log = self.options.logs.as_ref().map(|directory| directory.join(report::log_name(&name)));
                results.push(JobResult {
                    stage: planned.stage.to_string(),
                    status: status_of(running.schedule.state(job)),
                    is_blocking: running.schedule.is_blocking(job) && planned.trigger.is_none(),
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
                });
            }
        }
        results
    }
}
