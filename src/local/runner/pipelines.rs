//! The pipelines of a run, and the progress of their jobs.

use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{JobIndex, LocalRunner};
use crate::job::control::JobControl;
use crate::local::attempt::AttemptResult;
use crate::local::options::{DelayPolicy, matches_pattern};
use crate::local::project::LocalProject;
use crate::local::schedule::{JobSelection, JobWork, Schedule, ScheduledJob};
use crate::local::sources::LocalSources;
use crate::pipeline::plan::{Job, Plan, When};
use crate::pipeline::request::PlanRequest;

/// A running pipeline or child pipeline.
pub(super) struct RunningPipeline<'a> {
    pub(super) plan: Arc<Plan>,
    pub(super) project: Arc<LocalProject>,
    pub(super) sources: &'a LocalSources,
    /// The request that the pipeline was planned from; requests of child pipelines derive from it.
    pub(super) request: Rc<PlanRequest<'a>>,
    pub(super) schedule: Schedule,
    pub(super) jobs: Vec<JobProgress>,
    /// The trigger job that started the pipeline.
    pub(super) parent: Option<JobIndex>,
    /// The names of the trigger jobs above the pipeline, each followed by a slash.
    pub(super) prefix: String,
    /// The number of pipelines of the same project that the pipeline is nested in.
    pub(super) level: usize,
    /// Whether the trigger job that started the pipeline has its result.
    pub(super) is_reported: bool,
}

/// A pipeline to run.
pub(super) struct PlannedPipeline<'a> {
    pub(super) plan: Plan,
    pub(super) request: PlanRequest<'a>,
    pub(super) project: Arc<LocalProject>,
    pub(super) sources: &'a LocalSources,
    /// The trigger job that starts the pipeline.
    pub(super) parent: Option<JobIndex>,
    pub(super) level: usize,
}

/// The progress of a job.
#[derive(Default)]
pub(super) struct JobProgress {
    /// The key of the job on the screen.
    pub(super) key: usize,
    pub(super) attempts: u32,
    /// The id of the last attempt; 0 before the first one.
    pub(super) id: i64,
    /// Controls the running attempt; `None` if no attempt runs.
    pub(super) control: Option<Arc<JobControl>>,
    /// The result of the last attempt.
    pub(super) result: Option<AttemptResult>,
    /// The reason for the last failure, or a note.
    pub(super) message: Option<String>,
    /// The directory in which the work tree is kept.
    pub(super) kept: Option<PathBuf>,
    pub(super) began: Option<Instant>,
    pub(super) duration: Option<Duration>,
}

impl JobProgress {
    /// Whether an attempt has ended, and no other one runs.
    pub(super) fn has_ended(&self) -> bool {
        self.id > 0 && self.control.is_none()
    }
}

impl RunningPipeline<'_> {
    /// The jobs of the plan with their progress.
    pub(super) fn planned_jobs(&self) -> impl Iterator<Item = (&Job, &JobProgress)> {
        self.plan.jobs.iter().zip(&self.jobs)
    }

    /// Stops all running jobs and cancels all others. `why` is shown in the output of the running jobs.
    pub(super) fn cancel(&mut self, why: &str) {
        self.schedule.cancel();
        self.jobs.iter().filter_map(|job| job.control.as_ref()).for_each(|control| control.interrupt(why));
    }
}

impl<'a> LocalRunner<'a> {
    /// Adds a pipeline whose jobs have not started.
    pub(super) fn add_pipeline(&mut self, planned: PlannedPipeline<'a>) {
        let PlannedPipeline { plan, request, project, sources, parent, level } = planned;
        let prefix = parent.map(|trigger| format!("{}/", self.name(trigger))).unwrap_or_default();
        let index: HashMap<&str, usize> = plan.jobs.iter().enumerate().map(|(at, job)| (&*job.name, at)).collect();
        // Names on the command line are names of jobs of the first pipeline.
        let selection = |job: &Job| match self.options.named.contains(&*job.name) && job.when != When::Manual {
            true if parent.is_none() => JobSelection::ByUser,
            _ => JobSelection::ByPipeline,
        };
        let scheduled = |job| ScheduledJob { selection: selection(job), ..self.scheduled_job(&plan, job, &index) };
        let mut schedule = Schedule::new(plan.jobs.iter().map(scheduled).collect());
        for (at, job) in plan.jobs.iter().enumerate() {
            let name = format!("{prefix}{}", job.name);
            if job.when == When::Manual && self.options.manual.iter().any(|pattern| matches_pattern(pattern, &name)) {
                schedule.start_manual_job(at);
            }
        }
        let first_key = self.next_key;
        self.next_key += plan.jobs.len();
        let jobs = (first_key..self.next_key).map(|key| JobProgress { key, ..JobProgress::default() }).collect();
        self.pipelines.push(RunningPipeline {
            plan: Arc::new(plan),
            project,
            sources,
            request: Rc::new(request),
            schedule,
            jobs,
            parent,
            prefix,
            level,
            is_reported: false,
        });
    }

    /// A job for the schedule. `index` contains the indices of jobs by name.
    fn scheduled_job(&self, plan: &Plan, job: &Job, index: &HashMap<&str, usize>) -> ScheduledJob {
        let needs = job.needs.as_ref().map(|needs| {
            let known = needs.iter().filter_map(|need| index.get(&*need.job).copied());
            known.collect()
        });
        let delay = job.start_in.as_ref().map(|delay| delay.duration);
        ScheduledJob {
            stage: job.stage_index,
            when: job.when,
            needs,
            allow_failure: job.allow_failure.clone(),
            delay: delay.filter(|_| self.options.delays == DelayPolicy::Wait),
            resource_group: job.resource_group.as_ref().map(|group| plan.expand(job, group)),
            selection: JobSelection::ByPipeline,
            work: if job.trigger.is_some() { JobWork::Trigger } else { JobWork::Script },
        }
    }
}
