//! Runs a pipeline and its child pipelines: starts jobs by the schedule, and processes their results.

mod attempts;
mod dependencies;
mod ending;
mod interaction;
mod pipelines;
mod settlement;
mod triggers;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::local::attempt::{AttemptResult, RunContext};
use crate::local::mapped::MappedProjects;
use crate::local::options::RunOptions;
use crate::local::results::{JobResult, RunStatus, in_words};
use crate::local::schedule::{PipelineStatus, ScheduleState};
use crate::local::sources::LocalSources;
use crate::pipeline::plan::Plan;
use crate::pipeline::request::PlanRequest;
use pipelines::{JobProgress, PlannedPipeline, RunningPipeline};

/// The refresh interval of the status lines.
const REFRESH_INTERVAL: Duration = Duration::from_millis(100);

/// A job of a run.
#[derive(Clone, Copy)]
pub struct JobIndex {
    /// The index of the pipeline in the run.
    pipeline: usize,
    /// The index of the job in the pipeline.
    job: usize,
}

/// An event while jobs run.
pub enum RunEvent {
    /// An attempt has ended.
    Ended(JobIndex, Box<AttemptResult>),
    /// A signal from the keyboard or from another program.
    Interrupt,
    /// The line that the user typed after a question.
    Answer(String),
}

/// A run from its first job to its last.
pub struct LocalRunner<'a> {
    context: Arc<RunContext>,
    options: &'a RunOptions,
    sources: &'a LocalSources,
    mapped: &'a MappedProjects,
    pipelines: Vec<RunningPipeline<'a>>,
    sender: Sender<RunEvent>,
    events: Receiver<RunEvent>,
    /// The next id of an attempt or of a downstream pipeline.
    next_id: i64,
    /// The next key of a job on the screen.
    next_key: usize,
    threads: Vec<thread::JoinHandle<()>>,
    is_interrupted: bool,
    /// Manual jobs that the user will be asked about.
    questions: Vec<JobIndex>,
    /// Whether the user has not yet answered the question about the first of them.
    is_asking: bool,
}

impl<'a> LocalRunner<'a> {
    /// A run without pipelines; `first_id` is the id of the first job.
    pub fn new(
        context: Arc<RunContext>,
        options: &'a RunOptions,
        (sources, mapped): (&'a LocalSources, &'a MappedProjects),
        (sender, events): (Sender<RunEvent>, Receiver<RunEvent>),
        first_id: i64,
    ) -> Self {
        Self {
            context,
            options,
            sources,
            mapped,
            pipelines: Vec::new(),
            sender,
            events,
            next_id: first_id,
            next_key: 0,
            threads: Vec::new(),
            is_interrupted: false,
            questions: Vec::new(),
            is_asking: false,
        }
    }

    /// Runs the plan. Returns the result, and all jobs in the order of the file.
    pub fn run(mut self, plan: Plan, request: PlanRequest<'a>) -> (RunStatus, Vec<JobResult>) {
        let (project, sources) = (Arc::clone(&self.context.project), self.sources);
        self.add_pipeline(PlannedPipeline { plan, request, project, sources, parent: None, level: 0 });
        self.run_jobs();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
        self.context.screen.clear_status_lines();
        self.process_failed_jobs();
        (self.status(), self.results())
    }

    /// Starts jobs and processes events until no job can start any more.
    fn run_jobs(&mut self) {
        loop {
            self.start_ready_jobs();
            if !self.is_stalled() || self.ask_about_manual_job() {
                self.wait_for_event();
            } else if !self.mark_blocked_triggers() {
                return;
            }
        }
    }

    /// The result of the run: that of its first pipeline.
    fn status(&self) -> RunStatus {
        match self.pipelines[0].schedule.status() {
            _ if self.is_interrupted => RunStatus::Interrupted,
            PipelineStatus::Success | PipelineStatus::Skipped => RunStatus::Success,
            PipelineStatus::Failed | PipelineStatus::Canceled => RunStatus::Failed,
            PipelineStatus::Blocked => RunStatus::Blocked,
        }
    }

    /// Starts all jobs that can start, in all pipelines.
    fn start_ready_jobs(&mut self) {
        loop {
            let mut started = false;
            for pipeline in 0..self.pipelines.len() {
                self.advance_schedule(pipeline);
                let free_slots = self.options.parallel.saturating_sub(self.running_attempts());
                let groups_elsewhere = self.resource_groups_of_other_pipelines(pipeline);
                for job in self.pipelines[pipeline].schedule.take_due_jobs(free_slots, &groups_elsewhere) {
                    started = true;
                    self.start(JobIndex { pipeline, job });
                }
            }
            // A job that has just started may have ended already, or may have added a pipeline. So a pipeline counts as
            // finished only after a round in which no job started.
            if !started && !self.finish_triggers() {
                return;
            }
        }
    }

    /// Updates the states of a pipeline's jobs. Announces jobs whose delay has begun, and notes manual jobs that the
    /// user can start now.
    fn advance_schedule(&mut self, pipeline: usize) {
        for job in self.pipelines[pipeline].schedule.advance(Instant::now()) {
            let index = JobIndex { pipeline, job };
            match self.pipelines[pipeline].schedule.state(job) {
                ScheduleState::Delayed(until) => self.announce_delay(index, until),
                _ => self.questions.push(index),
            }
        }
    }

    fn resource_groups_of_other_pipelines(&self, pipeline: usize) -> HashSet<String> {
        let others = self.pipelines.iter().enumerate().filter(|(other, _)| *other != pipeline);
        others.flat_map(|(_, running)| running.schedule.groups_in_use().map(str::to_owned)).collect()
    }

    fn announce_delay(&self, job: JobIndex, until: Instant) {
        let delay = in_words(until.saturating_duration_since(Instant::now()));
        let name = self.name(job);
        self.context
            .screen
            .show_message(&format!("{name} starts in {delay}; --skip-delays starts delayed jobs immediately"));
    }

    /// The number of running attempts.
    fn running_attempts(&self) -> usize {
        let jobs = self.pipelines.iter().flat_map(|running| &running.jobs);
        jobs.filter(|job| job.control.is_some()).count()
    }

    /// Whether every pipeline waits for an event.
    fn is_stalled(&self) -> bool {
        self.running_attempts() == 0 && self.pipelines.iter().all(|running| running.schedule.is_stalled())
    }

    /// Waits for the next event and processes it.
    fn wait_for_event(&mut self) {
        let delay = self.pipelines.iter().filter_map(|running| running.schedule.next_delay()).min();
        let delay = delay.map(|until| until.saturating_duration_since(Instant::now()));
        let tick = self.context.screen.has_status_lines().then_some(REFRESH_INTERVAL);
        let event = match [delay, tick].into_iter().flatten().min() {
            Some(timeout) => self.events.recv_timeout(timeout),
            None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        self.context.screen.refresh();
        match event {
            Ok(RunEvent::Ended(job, result)) => self.finish_attempt(job, *result),
            Ok(RunEvent::Interrupt) => self.interrupt(),
            Ok(RunEvent::Answer(line)) => self.process_answer(&line),
            Err(_) => {}
        }
        if self.context.screen.is_closed() && !self.is_interrupted {
            self.interrupt();
        }
    }

    /// The name of a job, with the names of the trigger jobs above it.
    fn name(&self, job: JobIndex) -> String {
        let running = &self.pipelines[job.pipeline];
        format!("{}{}", running.prefix, running.plan.jobs[job.job].name)
    }

    fn progress(&self, job: JobIndex) -> &JobProgress {
        &self.pipelines[job.pipeline].jobs[job.job]
    }

    fn progress_mut(&mut self, job: JobIndex) -> &mut JobProgress {
        &mut self.pipelines[job.pipeline].jobs[job.job]
    }

    /// All jobs of all pipelines, in the order of the pipelines and of their files.
    fn all_jobs(&self) -> Vec<JobIndex> {
        let jobs_of = |(pipeline, running): (usize, &RunningPipeline<'_>)| {
            (0..running.jobs.len()).map(move |job| JobIndex { pipeline, job })
        };
        self.pipelines.iter().enumerate().flat_map(jobs_of).collect()
    }

    /// A new id for an attempt or a downstream pipeline.
    fn take_id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id - 1
    }
}
