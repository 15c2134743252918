//! Starts jobs: each attempt in a thread, which reports its end as an event.

use std::sync::Arc;
use std::time::Instant;

use super::{LocalRunner, RunEvent};
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
    pub(super) fn start(&mut self, pipeline: usize, job: usize) {
        let plan = Arc::clone(&self.pipelines[pipeline].plan);
        let name = self.name(pipeline, job);
        let progress = &mut self.pipelines[pipeline].jobs[job];
        progress.attempts += 1;
        progress.began.get_or_insert_with(Instant::now);
        let (key, is_first) = (progress.key, progress.attempts == 1);
        if is_first {
            self.context.screen.begin(key, &name, &plan.jobs[job].stage);
        }
        match &plan.jobs[job].trigger {
            Some(trigger) => self.run_trigger(pipeline, job, trigger),
            None => self.start_attempt(pipeline, job, &plan),
        }
    }

    /// Starts an attempt of a job in a new thread.
    fn start_attempt(&mut self, pipeline: usize, job: usize, plan: &Arc<Plan>) {
        let control = match JobControl::new() {
            Ok(control) => Arc::new(control),
            Err(error) => {
                let why = format!("cannot create a pipe: {error}; raise the limit of open files (ulimit -n)");
                return self.fail(pipeline, job, why);
            }
        };
        let id = self.next_id;
        self.next_id += 1;
        let attempt = self.prepare_attempt(pipeline, job, plan, id);
        let progress = &mut self.pipelines[pipeline].jobs[job];
        progress.id = id;
        progress.control = Some(Arc::clone(&control));
        let (context, sender) = (Arc::clone(&self.context), self.sender.clone());
        let spawned = sync::spawn(format!("job-{id}"), JOB_STACK, move || {
            let result = attempt::run(&context, attempt, &control);
            // The receiver lives as long as any job runs.
            let _ = sender.send(RunEvent::Ended(pipeline, job, Box::new(result)));
        });
        match spawned {
            Ok(thread) => self.threads.push(thread),
            Err(error) => self.fail(pipeline, job, format!("cannot start a thread: {error}")),
        }
    }

    fn prepare_attempt(&self, pipeline: usize, job: usize, plan: &Arc<Plan>, id: i64) -> Attempt {
        let running = &self.pipelines[pipeline];
        let planned = &plan.jobs[job];
        let dependencies = self.dependencies(pipeline, job);
        let dotenv = self.dotenv(&dependencies);
        let has_archive =
            |(id, _): &(i64, String)| local_archive(&self.context.artifacts, &(*id).into(), "archive").exists();
        let log = report::log_name(&self.name(pipeline, job));
        Attempt {
            project: Arc::clone(&running.project),
            plan: Arc::clone(plan),
            job,
            id,
            key: running.jobs[job].key,
            dependencies: dependencies.into_iter().filter(has_archive).collect(),
            dotenv,
            image: image_of(planned, self.options),
            log: self.options.logs.as_ref().map(|directory| directory.join(log)),
            coverage: planned.coverage.as_deref().and_then(coverage::finder),
            notice: self.reason_for_retry(pipeline, job),
        }
    }

    /// The reason for a further attempt of a job.
    fn reason_for_retry(&self, pipeline: usize, job: usize) -> Option<String> {
        let progress = &self.pipelines[pipeline].jobs[job];
        let why = progress.message.as_deref().unwrap_or("failed");
        (progress.attempts > 1).then(|| format!("{why}; starting attempt {}", progress.attempts))
    }
}
