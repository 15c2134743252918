//! Starts jobs: each attempt in a thread, which reports its end as an event.

use std::sync::Arc;
use std::time::Instant;

use super::{JobIndex, LocalRunner, RunEvent};
use crate::job::artifacts::local_archive;
use crate::job::control::JobControl;
use crate::local::attempt::{self, Attempt};
use crate::local::options::image_of;
use crate::local::{coverage, report};
use crate::pipeline::plan::Plan;
use crate::sync;

/// The stack of a job's thread in bytes: large enough to parse large payloads.
const JOB_STACK: usize = 1 << 20;

impl LocalRunner<'_> {
    /// Starts the next attempt of a job, or the pipeline of a trigger job.
    pub(super) fn start(&mut self, job: JobIndex) {
        let plan = Arc::clone(&self.pipelines[job.pipeline].plan);
        let planned = &plan.jobs[job.job];
        let name = self.name(job);
        let progress = self.progress_mut(job);
        progress.attempts += 1;
        progress.began.get_or_insert_with(Instant::now);
        let (key, is_first) = (progress.key, progress.attempts == 1);
        if is_first {
            self.context.screen.begin_job(key, &name, &planned.stage);
        }
        match &planned.trigger {
            Some(trigger) => self.run_trigger(job, trigger),
            None => self.start_attempt(job, &plan),
        }
    }

    /// Starts an attempt of a job in a new thread.
    fn start_attempt(&mut self, job: JobIndex, plan: &Arc<Plan>) {
        let control = match JobControl::new() {
            Ok(control) => Arc::new(control),
            Err(error) => {
                let why = format!("cannot create a pipe: {error}; raise the limit of open files (ulimit -n)");
                return self.fail(job, why);
            }
        };
        let id = self.take_id();
        let attempt = self.prepare_attempt(job, plan, id);
        let progress = self.progress_mut(job);
        progress.id = id;
        progress.control = Some(Arc::clone(&control));
        let (context, sender) = (Arc::clone(&self.context), self.sender.clone());
        let spawned = sync::spawn(format!("job-{id}"), JOB_STACK, move || {
            let result = attempt::run(&context, attempt, &control);
            // The receiver lives as long as any job runs.
            let _ = sender.send(RunEvent::Ended(job, Box::new(result)));
        });
        match spawned {
            Ok(thread) => self.threads.push(thread),
            Err(error) => self.fail(job, format!("cannot start a thread: {error}")),
        }
    }

    fn prepare_attempt(&self, job: JobIndex, plan: &Arc<Plan>, id: i64) -> Attempt {
        let planned = &plan.jobs[job.job];
        let dependencies = self.dependencies(job);
        let dotenv = self.dotenv(&dependencies);
        let has_archive =
            |(id, _): &(i64, String)| local_archive(&self.context.artifacts, &(*id).into(), "archive").exists();
        let log = report::log_name(&self.name(job));
        Attempt {
            project: Arc::clone(&self.pipelines[job.pipeline].project),
            plan: Arc::clone(plan),
            job: job.job,
            id,
            key: self.progress(job).key,
            dependencies: dependencies.into_iter().filter(has_archive).collect(),
            dotenv,
            image: image_of(planned, self.options),
            log: self.options.logs.as_ref().map(|directory| directory.join(log)),
            coverage: planned.coverage.as_deref().and_then(coverage::finder),
            notice: self.retry_notice(job),
        }
    }

    /// The reason for the retry, to be shown in the output; `None` for the first attempt.
    fn retry_notice(&self, job: JobIndex) -> Option<String> {
        let progress = self.progress(job);
        let why = progress.message.as_deref().unwrap_or("failed");
        (progress.attempts > 1).then(|| format!("{why}; starting attempt {}", progress.attempts))
    }
}
