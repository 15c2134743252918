//! Decides when jobs run: stages, needs, `when`, manual jobs, delays and resource groups, by GitLab's rules for the
//! status of a pipeline. Pure state without I/O; callers pass the time.

mod predecessors;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::pipeline::plan::{AllowFailure, When};
use predecessors::Readiness;

/// The static facts of a job.
#[derive(Clone, Debug)]
pub struct ScheduledJob {
    /// The index of the stage.
    pub stage: usize,
    pub when: When,
    /// Indices of the jobs that this job needs; `None` for stage order.
    pub needs: Option<Vec<usize>>,
    /// Whether a failure is allowed; for a manual job, whether it does not block the pipeline.
    pub allow_failure: AllowFailure,
    /// The delay of `start_in`, unless delays are skipped.
    pub delay: Option<Duration>,
    /// Jobs of the same group never run at the same time.
    pub resource_group: Option<String>,
    pub selection: JobSelection,
    pub work: JobWork,
}

/// Who selected a job for the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobSelection {
    /// The rules of the pipeline, or a job that needs it.
    ByPipeline,
    /// The user named the job, so it runs regardless of the results of other jobs.
    ByUser,
}

/// The work of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobWork {
    Script,
    /// The job starts another pipeline, which needs no slot.
    Trigger,
}

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleState {
    /// The job waits for other jobs.
    Waiting,
    /// The job is delayed until this time.
    Delayed(Instant),
    /// A person must start the job.
    Manual,
    /// The job can start as soon as a slot is free.
    Due,
    Running,
    Done(Conclusion),
}

/// The final result of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conclusion {
    Success,
    /// The job failed, and its failure is allowed.
    Warning,
    Failed,
    /// The job did not run.
    Skipped,
    /// The job was stopped, or did not start because the run was stopped.
    Canceled,
}

/// The status of a pipeline in which no job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipelineStatus {
    /// Every job succeeded or was allowed to fail.
    Success,
    /// Every job was skipped, or is an optional manual job that no person has started.
    Skipped,
    /// A job failed.
    Failed,
    /// A manual job blocks the remaining jobs.
    Blocked,
    /// The pipeline was stopped.
    Canceled,
}

impl ScheduledJob {
    /// Whether the job blocks the pipeline while a person must start it.
    fn blocks_as_manual_job(&self) -> bool {
        self.allow_failure != AllowFailure::Yes
    }
}

/// The jobs of one pipeline and their states.
pub struct Schedule {
    jobs: Vec<ScheduledJob>,
    states: Vec<ScheduleState>,
    /// Manual jobs that a person has started.
    started: HashSet<usize>,
    canceled: bool,
}

impl Schedule {
    pub fn new(jobs: Vec<ScheduledJob>) -> Self {
        let states = vec![ScheduleState::Waiting; jobs.len()];
        Self { jobs, states, started: HashSet::new(), canceled: false }
    }

    pub fn state(&self, job: usize) -> ScheduleState {
        self.states[job]
    }

    /// Updates the states of all jobs at time `now`. Returns the manual jobs that have become startable, and the jobs
    /// whose delay has begun.
    pub fn advance(&mut self, now: Instant) -> Vec<usize> {
        let mut reached = Vec::new();
        loop {
            let mut changed = false;
            let before = self.before_stages();
            for job in 0..self.jobs.len() {
                let next = match self.states[job] {
                    ScheduleState::Delayed(until) if until <= now => ScheduleState::Due,
                    ScheduleState::Waiting => match self.readiness(job, &before) {
                        Readiness::Wait => continue,
                        Readiness::Skip => ScheduleState::Done(Conclusion::Skipped),
                        Readiness::Start => self.state_of_ready_job(job, now),
                    },
                    _ => continue,
                };
                if matches!(next, ScheduleState::Manual | ScheduleState::Delayed(_)) {
                    reached.push(job);
                }
                self.states[job] = next;
                changed = true;
            }
            if !changed {
                return reached;
            }
        }
    }

    /// The state of a job that waits for no other job any more.
    fn state_of_ready_job(&self, job: usize, now: Instant) -> ScheduleState {
        let scheduled = &self.jobs[job];
        match scheduled.when {
            When::Manual if !self.started.contains(&job) => ScheduleState::Manual,
            When::Delayed => scheduled.delay.map_or(ScheduleState::Due, |delay| ScheduleState::Delayed(now + delay)),
            _ => ScheduleState::Due,
        }
    }

    /// The resource groups of running jobs. The group of a trigger job is not in use, so that the jobs of its
    /// downstream pipeline can have the same group.
    pub fn groups_in_use(&self) -> impl Iterator<Item = &str> {
        let running = self
            .jobs
            .iter()
            .zip(&self.states)
            .filter(|(scheduled, state)| **state == ScheduleState::Running && scheduled.work == JobWork::Script);
        running.filter_map(|(scheduled, _)| scheduled.resource_group.as_deref())
    }

    /// Takes the jobs to start now, in the order of stages and of the file, and marks them as running. Trigger jobs
    /// take no slot. `groups_elsewhere` contains the resource groups that other pipelines use.
    pub fn take_due_jobs(&mut self, slots: usize, groups_elsewhere: &HashSet<String>) -> Vec<usize> {
        let group_of = |job: usize| self.jobs[job].resource_group.as_deref();
        let running = (0..self.jobs.len()).filter(|job| self.states[*job] == ScheduleState::Running);
        let mut busy: HashSet<&str> =
            running.filter_map(group_of).chain(groups_elsewhere.iter().map(String::as_str)).collect();
        let mut due: Vec<usize> = (0..self.jobs.len()).filter(|job| self.states[*job] == ScheduleState::Due).collect();
        due.sort_by_key(|job| self.jobs[*job].stage);
        let mut free_slots = slots;
        let mut taken = Vec::new();
        for job in due {
            let needs_slot = self.jobs[job].work == JobWork::Script;
            if needs_slot && free_slots == 0 || group_of(job).is_some_and(|group| !busy.insert(group)) {
                continue;
            }
            free_slots -= usize::from(needs_slot);
            taken.push(job);
        }
        taken.iter().for_each(|job| self.states[*job] = ScheduleState::Running);
        taken
    }

    /// Records the result of a job.
    pub fn end(&mut self, job: usize, conclusion: Conclusion) {
        self.states[job] = ScheduleState::Done(conclusion);
    }

    /// Starts a manual job on behalf of a person, even before it is startable.
    pub fn start_manual_job(&mut self, job: usize) {
        self.started.insert(job);
        if self.states[job] == ScheduleState::Manual {
            self.states[job] = ScheduleState::Due;
            self.requeue_dependents(job);
        }
    }

    /// Lets skipped jobs wait again if they depend on a manual job that has just been started: jobs that need it, and
    /// jobs without needs in later stages, directly or through others.
    fn requeue_dependents(&mut self, job: usize) {
        let mut requeued = vec![job];
        while let Some(from) = requeued.pop() {
            for other in 0..self.jobs.len() {
                let depends = match &self.jobs[other].needs {
                    None => self.jobs[other].stage > self.jobs[from].stage,
                    Some(needs) => needs.contains(&from),
                };
                if depends && self.states[other] == ScheduleState::Done(Conclusion::Skipped) {
                    self.states[other] = ScheduleState::Waiting;
                    requeued.push(other);
                }
            }
        }
    }

    /// Cancels all jobs that have not started.
    pub fn cancel(&mut self) {
        self.canceled = true;
        for state in &mut self.states {
            if !matches!(state, ScheduleState::Running | ScheduleState::Done(_)) {
                *state = ScheduleState::Done(Conclusion::Canceled);
            }
        }
    }

    /// Marks a trigger job as manual, because its downstream pipeline waits for a person.
    pub fn mark_as_manual(&mut self, job: usize) {
        self.states[job] = ScheduleState::Manual;
    }

    /// Whether the pipeline was cancelled.
    pub fn is_canceled(&self) -> bool {
        self.canceled
    }

    /// Whether no job can start, now or later, until a running one ends or a person starts a manual job.
    pub fn is_stalled(&self) -> bool {
        !self.states.iter().any(|state| matches!(state, ScheduleState::Due | ScheduleState::Delayed(_)))
    }

    /// Whether no job runs and none will start.
    pub fn is_over(&self) -> bool {
        !self
            .states
            .iter()
            .any(|state| matches!(state, ScheduleState::Running | ScheduleState::Due | ScheduleState::Delayed(_)))
    }

    /// When the next delay ends.
    pub fn next_delay(&self) -> Option<Instant> {
        let until = self.states.iter().filter_map(|state| match state {
            ScheduleState::Delayed(until) => Some(*until),
            _ => None,
        });
        until.min()
    }

    /// Whether the pipeline waits for a person to start this job.
    pub fn is_blocking(&self, job: usize) -> bool {
        self.states[job] == ScheduleState::Manual && self.jobs[job].blocks_as_manual_job()
    }

    /// Whether the pipeline has jobs, and none of them has run.
    fn has_run_no_job(&self) -> bool {
        let has_not_run = |state| matches!(state, &ScheduleState::Done(Conclusion::Skipped) | &ScheduleState::Manual);
        !self.states.is_empty() && self.states.iter().all(has_not_run)
    }

    /// The status of the pipeline.
    pub fn status(&self) -> PipelineStatus {
        let has = |wanted: Conclusion| self.states.contains(&ScheduleState::Done(wanted));
        if has(Conclusion::Failed) {
            PipelineStatus::Failed
        } else if self.canceled || has(Conclusion::Canceled) {
            PipelineStatus::Canceled
        } else if (0..self.jobs.len()).any(|job| self.is_blocking(job)) {
            PipelineStatus::Blocked
        } else if self.has_run_no_job() {
            PipelineStatus::Skipped
        } else {
            PipelineStatus::Success
        }
    }
}
