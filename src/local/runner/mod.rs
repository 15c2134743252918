//! Runs a pipeline and its child pipelines: starts jobs by the schedule, and processes their results.

mod ending;
mod interaction;
mod settlement;
mod triggers;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::job::artifacts::local_archive;
use crate::job::control::JobControl;
use crate::local::attempt::{self, Attempt, AttemptResult, RunContext};
use crate::local::coverage;
use crate::local::dotenv;
use crate::local::mapped::MappedProjects;
use crate::local::options::{RunOptions, image_of, matches};
use crate::local::project::LocalProject;
use crate::local::results::{JobResult, RunStatus, in_words};
use crate::local::schedule::{self, Schedule, ScheduleState, ScheduledJob};
use crate::local::sources::LocalSources;
use crate::pipeline::plan::{Job, Plan, When};
use crate::pipeline::request::PlanRequest;
use crate::sync;

/// The nesting depth of child pipelines, as on GitLab.
const LEVELS: usize = 2;
/// The number of pipelines above one that a job starts, so that projects cannot trigger each other forever.
const ANCESTORS_MOST: usize = 10;
/// The stack of a job's thread: large enough to parse large payloads.
const JOB_STACK: usize = 1 << 20;
/// The refresh interval of the status lines.
const TICK: Duration = Duration::from_millis(100);

/// An event while jobs run.
pub enum RunEvent {
    /// An attempt has ended: pipeline, job, result.
    Ended(usize, usize, Box<AttemptResult>),
    /// A signal from the keyboard or from another program.
    Interrupt,
    /// The user answered a question.
    Answer(String),
}

/// A running pipeline or child pipeline.
struct Running<'a> {
    plan: Arc<Plan>,
    project: Arc<LocalProject>,
    sources: &'a LocalSources,
    /// The request that it was planned from; requests of child pipelines derive from it.
    request: Rc<PlanRequest<'a>>,
    schedule: Schedule,
    jobs: Vec<Progress>,
    /// The trigger job that started it: pipeline and job.
    parent: Option<(usize, usize)>,
    /// The names of the trigger jobs above it, each followed by a slash.
    prefix: String,
    /// The number of child pipelines within its project that it is nested in.
    level: usize,
    /// Whether the trigger job that started it has its result.
    is_reported: bool,
}

/// A pipeline to run.
struct Planned<'a> {
    plan: Plan,
    request: PlanRequest<'a>,
    project: Arc<LocalProject>,
    sources: &'a LocalSources,
    /// The trigger job that starts it: pipeline and job.
    parent: Option<(usize, usize)>,
    level: usize,
}

/// The progress of a job.
#[derive(Default)]
struct Progress {
    key: usize,
    attempts: u32,
    /// The id of the last attempt.
    id: i64,
    control: Option<Arc<JobControl>>,
    result: Option<AttemptResult>,
    message: Option<String>,
    kept: Option<PathBuf>,
    began: Option<Instant>,
    duration: Option<Duration>,
}

/// A run from its first job to its last.
pub struct LocalRunner<'a> {
    context: Arc<RunContext>,
    options: &'a RunOptions,
    sources: &'a LocalSources,
    mapped: &'a MappedProjects,
    pipelines: Vec<Running<'a>>,
    sender: Sender<RunEvent>,
    events: Receiver<RunEvent>,
    next_id: i64,
    next_key: usize,
    threads: Vec<thread::JoinHandle<()>>,
    is_interrupted: bool,
    /// Manual jobs that the user will be asked about.
    questions: Vec<(usize, usize)>,
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
        self.add(Planned { plan, request, project, sources, parent: None, level: 0 });
        loop {
            self.advance();
            if self.is_stalled() && !self.ask() {
                if self.hold_triggers() {
                    continue;
                }
                break;
            }
            self.wait_for_event();
        }
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
        self.context.screen.finish();
        self.keep_trees();
        let status = self.pipelines[0].schedule.status();
        let ending = match status {
            _ if self.is_interrupted => RunStatus::Interrupted,
            schedule::PipelineStatus::Success | schedule::PipelineStatus::Skipped => RunStatus::Success,
            schedule::PipelineStatus::Failed | schedule::PipelineStatus::Canceled => RunStatus::Failed,
            schedule::PipelineStatus::Blocked => RunStatus::Blocked,
        };
        (ending, self.results())
    }

    fn add(&mut self, planned: Planned<'a>) {
        let Planned { plan, request, project, sources, parent, level } = planned;
        let (plan, request) = (Arc::new(plan), Rc::new(request));
        let prefix = parent.map(|(pipeline, job)| format!("{}/", self.name(pipeline, job))).unwrap_or_default();
        let index: HashMap<&str, usize> = plan.jobs.iter().enumerate().map(|(at, job)| (&*job.name, at)).collect();
        let tasks = plan.jobs.iter().map(|job| self.task(&plan, job, &index, parent.is_none())).collect();
        let mut schedule = Schedule::new(tasks);
        for (at, job) in plan.jobs.iter().enumerate() {
            let name = format!("{prefix}{}", job.name);
            if job.when == When::Manual && self.options.manual.iter().any(|wanted| matches(wanted, &name)) {
                schedule.start(at);
            }
        }
        let jobs = plan.jobs.iter().map(|_| {
            self.next_key += 1;
            Progress { key: self.next_key - 1, ..Progress::default() }
        });
        let jobs = jobs.collect();
        let is_reported = false;
        self.pipelines.push(Running {
            plan,
            project,
            sources,
            request,
            schedule,
            jobs,
            parent,
            prefix,
            level,
            is_reported,
        });
    }

    fn task(&self, plan: &Plan, job: &Job, index: &HashMap<&str, usize>, is_first: bool) -> ScheduledJob {
        let needs = job.needs.as_ref().map(|needs| {
            let known = needs.iter().filter_map(|need| index.get(&*need.job).copied());
            known.collect()
        });
        ScheduledJob {
            stage: job.stage_index,
            when: job.when,
            needs,
            allow_failure: job.allow_failure.clone(),
            delay: job.start_in.as_ref().map(|delay| delay.duration).filter(|_| !self.options.skip_delays),
            resource_group: job.resource_group.as_ref().map(|group| plan.expand(job, group)),
            named: is_first && job.when != When::Manual && self.options.named.contains(&*job.name),
            is_trigger: job.trigger.is_some(),
        }
    }

    /// Starts all jobs that can start, in all pipelines.
    fn advance(&mut self) {
        loop {
            let mut started = false;
            for pipeline in 0..self.pipelines.len() {
                let reached = self.pipelines[pipeline].schedule.advance(Instant::now());
                for job in reached {
                    match self.pipelines[pipeline].schedule.state(job) {
                        ScheduleState::Delayed(until) => self.announce_delay(pipeline, job, until),
                        _ => self.questions.push((pipeline, job)),
                    }
                }
                let free = self.options.parallel.saturating_sub(self.busy());
                let others = self.pipelines.iter().enumerate().filter(|(other, _)| *other != pipeline);
                let elsewhere =
                    others.flat_map(|(_, running)| running.schedule.groups_in_use().map(str::to_owned)).collect();
                for job in self.pipelines[pipeline].schedule.take(free, &elsewhere) {
                    started = true;
                    self.start(pipeline, job);
                }
            }
            // A job that has just started can be finished already, or have added a pipeline: look at all jobs again
            // before a pipeline counts as finished.
            if !started && !self.end_children() {
                return;
            }
        }
    }

    fn announce_delay(&self, pipeline: usize, job: usize, until: Instant) {
        let delay = in_words(until.saturating_duration_since(Instant::now()));
        let name = self.name(pipeline, job);
        self.context.screen.say(&format!("{name} starts in {delay}; --skip-delays starts delayed jobs immediately"));
    }

    /// The number of running attempts.
    fn busy(&self) -> usize {
        let jobs = self.pipelines.iter().flat_map(|running| &running.jobs);
        jobs.filter(|job| job.control.is_some()).count()
    }

    /// Whether every pipeline waits for an event.
    fn is_stalled(&self) -> bool {
        self.busy() == 0 && self.pipelines.iter().all(|running| running.schedule.is_stalled())
    }

    fn start(&mut self, pipeline: usize, job: usize) {
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
            Some(trigger) => self.trigger(pipeline, job, trigger),
            None => self.attempt(pipeline, job, plan),
        }
    }

    fn attempt(&mut self, pipeline: usize, job: usize, plan: Arc<Plan>) {
        let id = self.next_id;
        self.next_id += 1;
        let dependencies = self.dependencies(pipeline, job);
        let dotenv = self.dotenv(&dependencies);
        let archives =
            |(id, _): &(i64, String)| local_archive(&self.context.artifacts, &(*id).into(), "archive").exists();
        let name = self.name(pipeline, job);
        let planned = &plan.jobs[job];
        let attempt = Attempt {
            project: Arc::clone(&self.pipelines[pipeline].project),
            job,
            id,
            key: self.pipelines[pipeline].jobs[job].key,
            dependencies: dependencies.into_iter().filter(archives).collect(),
            dotenv,
            image: image_of(planned, self.options),
            log: self.options.logs.as_ref().map(|directory| directory.join(crate::local::report::log_name(&name))),
            coverage: planned.coverage.as_deref().and_then(coverage::finder),
            notice: self.why_again(pipeline, job),
            plan: Arc::clone(&plan),
        };
        let control = match JobControl::new() {
            Ok(control) => Arc::new(control),
            Err(error) => {
                return self.fail(
                    pipeline,
                    job,
                    format!("cannot create a pipe: {error}; raise the limit of open files (ulimit -n)"),
                );
            }
        };
        let progress = &mut self.pipelines[pipeline].jobs[job];
        progress.id = id;
        progress.control = Some(Arc::clone(&control));
        let (context, sender) = (Arc::clone(&self.context), self.sender.clone());
        let spawned = sync::spawn(format!("job-{id}"), JOB_STACK, move || {
            let outcome = attempt::run(&context, attempt, &control);
            // The receiver lives as long as any job runs.
            let _ = sender.send(RunEvent::Ended(pipeline, job, Box::new(outcome)));
        });
        match spawned {
            Ok(thread) => self.threads.push(thread),
            Err(error) => self.fail(pipeline, job, format!("cannot start a thread: {error}")),
        }
    }

    /// The reason for a further attempt of a job.
    fn why_again(&self, pipeline: usize, job: usize) -> Option<String> {
        let progress = &self.pipelines[pipeline].jobs[job];
        let why = progress.message.as_deref().unwrap_or("failed");
        (progress.attempts > 1).then(|| format!("{why}; starting attempt {}", progress.attempts))
    }

    /// The variables of the dotenv reports of jobs.
    fn dotenv(&self, jobs: &[(i64, String)]) -> Vec<(String, String)> {
        let reports = jobs.iter().map(|(id, _)| local_archive(&self.context.artifacts, &(*id).into(), "dotenv"));
        reports.filter_map(|path| dotenv::read(&path).ok()).flatten().collect()
    }

    /// The jobs whose artifacts a job downloads, in order, with the ids of their last attempts.
    fn dependencies(&self, pipeline: usize, job: usize) -> Vec<(i64, String)> {
        let running = &self.pipelines[pipeline];
        let planned = &running.plan.jobs[job];
        let wanted: Option<HashSet<&str>> = match (&planned.dependencies, &planned.needs) {
            (Some(names), Some(needs)) => {
                let with_files: HashSet<&str> =
                    needs.iter().filter(|need| need.artifacts).map(|need| &*need.job).collect();
                Some(names.iter().map(|name| &**name).filter(|name| with_files.contains(name)).collect())
            }
            (Some(names), None) => Some(names.iter().map(|name| &**name).collect()),
            (None, Some(needs)) => Some(needs.iter().filter(|need| need.artifacts).map(|need| &*need.job).collect()),
            (None, None) => None,
        };
        let is_wanted = |other: &Job| match &wanted {
            Some(names) => names.contains(&*other.name),
            None => other.stage_index < planned.stage_index,
        };
        let ended = running
            .plan
            .jobs
            .iter()
            .zip(&running.jobs)
            .filter(|(other, progress)| progress.id > 0 && progress.control.is_none() && is_wanted(other));
        let mut jobs: Vec<_> =
            ended.map(|(other, progress)| (other.stage_index, progress.id, other.name.to_string())).collect();
        jobs.sort_unstable_by_key(|(stage, id, _)| (*stage, *id));
        jobs.into_iter().map(|(_, id, name)| (id, name)).collect()
    }

    /// Waits for the next event and processes it.
    fn wait_for_event(&mut self) {
        let delay = self.pipelines.iter().filter_map(|running| running.schedule.next_delay()).min();
        let delay = delay.map(|until| until.saturating_duration_since(Instant::now()));
        let tick = self.context.screen.look().live.then_some(TICK);
        let event = match [delay, tick].into_iter().flatten().min() {
            Some(timeout) => self.events.recv_timeout(timeout),
            None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        self.context.screen.tick();
        match event {
            Ok(RunEvent::Ended(pipeline, job, outcome)) => self.ended(pipeline, job, *outcome),
            Ok(RunEvent::Interrupt) => self.interrupt(),
            Ok(RunEvent::Answer(answer)) => self.answered(&answer),
            Err(_) => {}
        }
        if self.context.screen.is_closed() && !self.is_interrupted {
            self.interrupt();
        }
    }

    fn name(&self, pipeline: usize, job: usize) -> String {
        let running = &self.pipelines[pipeline];
        format!("{}{}", running.prefix, running.plan.jobs[job].name)
    }
}
