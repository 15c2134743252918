//! The end of a run: keeps the trees of failed jobs, and collects the results of all jobs.

use super::LocalRunner;
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
                let Some(left) = progress.result.as_mut().and_then(|outcome| outcome.left.take()) else { continue };
                if self.options.shell_on_failure && !self.is_interrupted {
                    failed_shell::open(&self.context, &name, &left);
                }
                if !self.options.keep {
                    continue;
                }
                // A container's user owns the files; the developer could neither read nor remove them.
                if left.image.is_some() && !nix::unistd::Uid::effective().is_root() {
                    let containers = self.context.containers.as_ref();
                    if !containers.is_some_and(|containers| containers.restore_ownership(&left.tree.builds)) {
                        let text = format!("warning: files of {name} still belong to the user of its container");
                        self.context.screen.say(&text);
                    }
                }
                let place = self.context.kept.join(format!("{}-{}", progress.id, report::log_name(&name)));
                match left.tree.keep(&place.with_extension("")) {
                    Ok(project) => progress.kept = Some(project),
                    Err(error) => self.context.screen.say(&format!("warning: cannot keep the tree of {name}: {error}")),
                }
            }
        }
    }

    pub(super) fn results(&mut self) -> Vec<JobResult> {
        let mut results = Vec::new();
        for pipeline in 0..self.pipelines.len() {
            for job in 0..self.pipelines[pipeline].jobs.len() {
                let name = self.name(pipeline, job);
                let running = &self.pipelines[pipeline];
                let (planned, progress) = (&running.plan.jobs[job], &running.jobs[job]);
                let outcome = progress.result.as_ref();
                let failure = outcome.and_then(|outcome| outcome.failure);
                let taken = outcome.map(|outcome| outcome.taken.clone()).unwrap_or_default();
                let log = self.options.logs.as_ref().map(|directory| directory.join(report::log_name(&name)));
                results.push(JobResult {
                    stage: planned.stage.to_string(),
                    status: status_of(running.schedule.state(job)),
                    is_blocking: running.schedule.is_blocking(job) && planned.trigger.is_none(),
                    exit_code: match failure {
                        Some((_, code)) => code,
                        None => outcome.map(|_| 0),
                    },
                    duration: progress.duration,
                    attempts: progress.attempts,
                    coverage: taken.coverage,
                    failure_reason: failure.map(|(reason, _)| reason),
                    message: progress.message.clone(),
                    log: log.filter(|path| path.exists()),
                    tail: taken.tail,
                    command: taken.command,
                    kept: progress.kept.clone(),
                    name,
                });
            }
        }
        results
    }
}
