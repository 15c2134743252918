//! Decides when jobs run: stages, needs, `when`, manual jobs, delays and resource groups, by GitLab's rules for the
//! status of a pipeline. Pure state without I/O; callers pass the time.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::pipeline::plan::{AllowFailure, When};

/// The static facts of a job.
#[derive(Clone, Debug)]
pub struct ScheduledJob {
    /// The index of the stage.
    pub stage: usize,
    pub when: When,
    /// Indices of the jobs that it needs; `None` for stage order.
    pub needs: Option<Vec<usize>>,
    /// Whether a failure is allowed; for a manual job, whether it does not block the pipeline.
    pub allow_failure: AllowFailure,
    /// The delay of `start_in`, unless delays are skipped.
    pub delay: Option<Duration>,
    /// Jobs of the same group never run at the same time.
    pub resource_group: Option<String>,
    /// Whether the user named the job: it runs regardless of other jobs.
    pub named: bool,
    /// Whether it starts another pipeline; such a job takes no slot.
    pub is_trigger: bool,
}

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleState {
    /// It waits for other jobs.
    Waiting,
    /// The job is delayed until this time.
    Delayed(Instant),
    /// A person must start it.
    Manual,
    /// It can start as soon as a slot is free.
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
    /// Every job was skipped, or is an optional manual job that nobody has started.
    Skipped,
    /// A job failed.
    Failed,
    /// A manual job blocks the remaining jobs.
    Blocked,
    /// The pipeline was stopped.
    Canceled,
}

/// The jobs of one pipeline and their states.
pub struct Schedule {
    tasks: Vec<ScheduledJob>,
    states: Vec<ScheduleState>,
    /// Manual jobs that a person has started.
    started: HashSet<usize>,
    canceled: bool,
}

/// Whether a job can start.
enum Readiness {
    Wait,
    Go,
    Skip,
}

/// The states of the jobs that another job waits for.
#[derive(Clone, Copy, Default)]
struct Sum {
    /// A job has not ended, or blocks the pipeline.
    open: bool,
    failed: bool,
    /// A job was skipped, or is an optional manual job that nobody has started.
    idle: bool,
}

impl Sum {
    fn add(&mut self, state: ScheduleState, blocks: bool) {
        match state {
            ScheduleState::Done(Conclusion::Failed | Conclusion::Canceled) => self.failed = true,
            ScheduleState::Done(Conclusion::Skipped) => self.idle = true,
            ScheduleState::Done(_) => {}
            ScheduleState::Manual if !blocks => self.idle = true,
            _ => self.open = true,
        }
    }

    fn merge(self, other: Self) -> Self {
        Self { open: self.open || other.open, failed: self.failed || other.failed, idle: self.idle || other.idle }
    }
}

impl Schedule {
    pub fn new(tasks: Vec<ScheduledJob>) -> Self {
        let states = vec![ScheduleState::Waiting; tasks.len()];
        Self { tasks, states, started: HashSet::new(), canceled: false }
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
            for job in 0..self.tasks.len() {
                let next = match self.states[job] {
                    ScheduleState::Delayed(until) if until <= now => ScheduleState::Due,
                    ScheduleState::Waiting => match self.readiness(job, &before) {
                        Readiness::Wait => continue,
                        Readiness::Skip => ScheduleState::Done(Conclusion::Skipped),
                        Readiness::Go => self.reach(job, now),
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

    fn reach(&self, job: usize, now: Instant) -> ScheduleState {
        let task = &self.tasks[job];
        match task.when {
            When::Manual if !self.started.contains(&job) => ScheduleState::Manual,
            When::Delayed => task.delay.map_or(ScheduleState::Due, |delay| ScheduleState::Delayed(now + delay)),
            _ => ScheduleState::Due,
        }
    }

    /// For each stage, the combined result of all jobs in earlier stages.
    fn before_stages(&self) -> Vec<Sum> {
        let stages = self.tasks.iter().map(|task| task.stage + 1).max().unwrap_or(0);
        let mut own = vec![Sum::default(); stages];
        for (job, task) in self.tasks.iter().enumerate() {
            own[task.stage].add(self.states[job], self.blocks(job));
        }
        let mut before = Vec::with_capacity(stages);
        let mut sum = Sum::default();
        for stage in own {
            before.push(sum);
            sum = sum.merge(stage);
        }
        before
    }

    fn readiness(&self, job: usize, before: &[Sum]) -> Readiness {
        let task = &self.tasks[job];
        // A need that does not run decides for a job with needs: it waits for no other, and a failure does not count.
        let (sum, is_cut_off) = match &task.needs {
            None => (before[task.stage], false),
            Some(needs) => {
                let mut sum = Sum::default();
                needs.iter().for_each(|need| sum.add(self.states[*need], self.blocks(*need)));
                (sum, sum.idle)
            }
        };
        if sum.open && !is_cut_off {
            return Readiness::Wait;
        }
        match task.when {
            _ if task.named => Readiness::Go,
            When::Always => Readiness::Go,
            When::OnFailure if sum.failed && !is_cut_off => Readiness::Go,
            When::OnSuccess | When::Manual | When::Delayed if !sum.failed && !is_cut_off => Readiness::Go,
            _ => Readiness::Skip,
        }
    }

    /// Whether the job blocks the pipeline while a person must start it.
    fn blocks(&self, job: usize) -> bool {
        self.tasks[job].allow_failure != AllowFailure::Yes
    }

    /// The resource groups of jobs that run. A trigger job does not keep its group from the jobs of its own pipeline.
    pub fn groups_in_use(&self) -> impl Iterator<Item = &str> {
        let running = self
            .tasks
            .iter()
            .zip(&self.states)
            .filter(|(task, state)| **state == ScheduleState::Running && !task.is_trigger);
        running.filter_map(|(task, _)| task.resource_group.as_deref())
    }

    /// Takes the jobs to start now, in the order of stages and of the file, and marks them as running. Triggers take no
    /// slot. `elsewhere` are the resource groups that other pipelines use.
    pub fn take(&mut self, slots: usize, elsewhere: &HashSet<String>) -> Vec<usize> {
        let group_of = |job: usize| self.tasks[job].resource_group.as_deref();
        let running = (0..self.tasks.len()).filter(|job| self.states[*job] == ScheduleState::Running);
        let mut busy: HashSet<&str> =
            running.filter_map(group_of).chain(elsewhere.iter().map(String::as_str)).collect();
        let mut due: Vec<usize> = (0..self.tasks.len()).filter(|job| self.states[*job] == ScheduleState::Due).collect();
        due.sort_by_key(|job| self.tasks[*job].stage);
        let mut left = slots;
        let mut taken = Vec::new();
        for job in due {
            let needs_slot = !self.tasks[job].is_trigger;
            if needs_slot && left == 0 || group_of(job).is_some_and(|group| !busy.insert(group)) {
                continue;
            }
            left -= usize::from(needs_slot);
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
    pub fn start(&mut self, job: usize) {
        self.started.insert(job);
        if self.states[job] == ScheduleState::Manual {
            self.states[job] = ScheduleState::Due;
            self.revive(job);
        }
    }

    /// Lets jobs that were skipped wait again, if they depend on a manual job that has just been started: jobs in stage
    /// order of later stages, and jobs that need it, directly or through others.
    fn revive(&mut self, job: usize) {
        let mut revived = vec![job];
        while let Some(from) = revived.pop() {
            for other in 0..self.tasks.len() {
                let depends = match &self.tasks[other].needs {
                    None => self.tasks[other].stage > self.tasks[from].stage,
                    Some(needs) => needs.contains(&from),
                };
                if depends && self.states[other] == ScheduleState::Done(Conclusion::Skipped) {
                    self.states[other] = ScheduleState::Waiting;
                    revived.push(other);
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

    /// Marks a trigger job as waiting for a person in its downstream pipeline.
    pub fn hold(&mut self, job: usize) {
        self.states[job] = ScheduleState::Manual;
    }

    /// Whether the pipeline was cancelled.
    pub fn is_canceled(&self) -> bool {
        self.canceled
    }

    /// Whether no job can start, now or later, until another one ends.
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
        self.states[job] == ScheduleState::Manual && self.blocks(job)
    }

    fn is_idle(&self) -> bool {
        let is_idle = |state| matches!(state, &ScheduleState::Done(Conclusion::Skipped) | &ScheduleState::Manual);
        !self.states.is_empty() && self.states.iter().all(is_idle)
    }

    /// The status of the pipeline.
    pub fn status(&self) -> PipelineStatus {
        let has = |wanted: Conclusion| self.states.contains(&ScheduleState::Done(wanted));
        match () {
            () if has(Conclusion::Failed) => PipelineStatus::Failed,
            () if self.canceled || has(Conclusion::Canceled) => PipelineStatus::Canceled,
            () if (0..self.tasks.len()).any(|job| self.is_blocking(job)) => PipelineStatus::Blocked,
            () if self.is_idle() => PipelineStatus::Skipped,
            () => PipelineStatus::Success,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(stage: usize, when: When, needs: Option<&[usize]>) -> ScheduledJob {
        ScheduledJob {
            stage,
            when,
            needs: needs.map(<[usize]>::to_vec),
            allow_failure: AllowFailure::No,
            delay: None,
            resource_group: None,
            named: false,
            is_trigger: false,
        }
    }

    /// Runs all jobs one after another; the jobs in `failing` fail. Returns the jobs in the order of their start.
    fn run(schedule: &mut Schedule, failing: &[usize]) -> Vec<usize> {
        let mut order = Vec::new();
        loop {
            schedule.advance(Instant::now());
            let Some(job) = schedule.take(1, &HashSet::new()).pop() else { return order };
            order.push(job);
            let allowed = schedule.tasks[job].allow_failure == AllowFailure::Yes;
            schedule.end(
                job,
                match failing.contains(&job) {
                    true if allowed => Conclusion::Warning,
                    true => Conclusion::Failed,
                    false => Conclusion::Success,
                },
            );
        }
    }

    use When::{Always, Delayed, Manual, OnFailure, OnSuccess};

    #[test]
    fn a_failure_skips_later_stages_except_jobs_for_failures() {
        let mut schedule = Schedule::new(vec![
            task(0, OnSuccess, None),
            task(0, OnSuccess, None),
            task(1, OnSuccess, None),
            task(1, OnFailure, None),
            task(2, Always, None),
            task(2, OnSuccess, None),
        ]);
        assert_eq!(run(&mut schedule, &[1]), [0, 1, 3, 4]);
        assert_eq!(schedule.state(2), ScheduleState::Done(Conclusion::Skipped));
        assert_eq!((schedule.status(), schedule.is_over()), (PipelineStatus::Failed, true));
    }

    #[test]
    fn an_allowed_failure_does_not_stop_the_pipeline() {
        let soft = ScheduledJob { allow_failure: AllowFailure::Yes, ..task(0, OnSuccess, None) };
        let mut schedule = Schedule::new(vec![soft, task(1, OnSuccess, Some(&[0])), task(1, OnFailure, None)]);
        assert_eq!(run(&mut schedule, &[0]), [0, 1]);
        assert_eq!(schedule.status(), PipelineStatus::Success);
    }

    #[test]
    fn needs_ignore_stages_and_a_skipped_need_skips() {
        let mut schedule = Schedule::new(vec![
            task(0, OnSuccess, None),
            task(1, OnSuccess, Some(&[])),
            task(2, OnSuccess, Some(&[1])),
            task(1, OnFailure, Some(&[0])),
            task(2, OnSuccess, Some(&[3])),
            task(2, Always, Some(&[3])),
        ]);
        schedule.advance(Instant::now());
        assert_eq!(schedule.take(9, &HashSet::new()), [0, 1]);
        schedule.end(1, Conclusion::Success);
        schedule.advance(Instant::now());
        assert_eq!(schedule.take(9, &HashSet::new()), [2], "it does not wait for the first job");
        schedule.end(0, Conclusion::Success);
        schedule.end(2, Conclusion::Success);
        assert_eq!(run(&mut schedule, &[]), [5]);
        assert_eq!(schedule.state(4), ScheduleState::Done(Conclusion::Skipped));
    }

    #[test]
    fn a_blocking_manual_job_blocks_later_stages_and_an_optional_one_does_not() {
        let jobs =
            |allow_failure| vec![ScheduledJob { allow_failure, ..task(0, Manual, None) }, task(1, OnSuccess, None)];
        let mut blocked = Schedule::new(jobs(AllowFailure::No));
        assert_eq!(blocked.advance(Instant::now()), [0]);
        assert!(
            blocked.is_over()
                && blocked.status() == PipelineStatus::Blocked
                && blocked.state(1) == ScheduleState::Waiting
        );
        blocked.start(0);
        assert_eq!(run(&mut blocked, &[]), [0, 1]);
        let mut optional = Schedule::new(jobs(AllowFailure::Yes));
        assert_eq!(run(&mut optional, &[]), [1]);
        assert_eq!((optional.status(), optional.state(0)), (PipelineStatus::Success, ScheduleState::Manual));
    }

    #[test]
    fn a_need_that_does_not_run_decides_at_once() {
        let optional = || ScheduledJob { allow_failure: AllowFailure::Yes, ..task(0, Manual, None) };
        let mut schedule = Schedule::new(vec![
            optional(),
            task(0, OnSuccess, None),
            task(0, OnFailure, None),
            task(0, OnSuccess, Some(&[0, 1])),
            task(0, Always, Some(&[0, 1])),
            task(1, OnFailure, Some(&[1, 2])),
            task(1, OnFailure, Some(&[1])),
            task(1, OnSuccess, Some(&[3])),
            task(1, OnFailure, None),
        ]);
        schedule.advance(Instant::now());
        for skipped in [2, 3, 5, 7] {
            assert_eq!(schedule.state(skipped), ScheduleState::Done(Conclusion::Skipped), "{skipped}");
        }
        assert_eq!(run(&mut schedule, &[1]), [1, 4, 6, 8]);
        assert_eq!(schedule.state(0), ScheduleState::Manual);
    }

    #[test]
    fn a_manual_job_that_is_started_revives_what_depends_on_it() {
        let optional = || ScheduledJob { allow_failure: AllowFailure::Yes, ..task(0, Manual, None) };
        let mut schedule = Schedule::new(vec![
            optional(),
            optional(),
            task(1, OnSuccess, Some(&[0])),
            task(1, OnSuccess, Some(&[1])),
            task(2, OnSuccess, Some(&[2])),
            task(2, OnFailure, None),
        ]);
        assert_eq!(run(&mut schedule, &[]), [0; 0]);
        assert_eq!((schedule.status(), schedule.is_over()), (PipelineStatus::Skipped, true));
        schedule.start(0);
        assert_eq!(run(&mut schedule, &[]), [0, 2, 4]);
        assert_eq!(schedule.state(3), ScheduleState::Done(Conclusion::Skipped));
        assert_eq!(schedule.state(5), ScheduleState::Done(Conclusion::Skipped));
        schedule.start(1);
        assert_eq!(run(&mut schedule, &[3]), [1, 3, 5]);
    }

    #[test]
    fn a_manual_job_after_a_failure_is_skipped_unless_it_was_started() {
        let mut schedule = Schedule::new(vec![task(0, OnSuccess, None), task(1, Manual, None)]);
        assert_eq!(run(&mut schedule, &[0]), [0]);
        assert_eq!(schedule.state(1), ScheduleState::Done(Conclusion::Skipped));
        let mut schedule = Schedule::new(vec![task(0, OnSuccess, None), task(1, Manual, None)]);
        schedule.start(1);
        assert_eq!(run(&mut schedule, &[]), [0, 1]);
    }

    #[test]
    fn delays_start_with_their_stage_and_resource_groups_serialise_jobs() {
        let now = Instant::now();
        let delayed = ScheduledJob { delay: Some(Duration::from_secs(60)), ..task(0, Delayed, None) };
        let grouped = || ScheduledJob { resource_group: Some("g".to_owned()), ..task(0, OnSuccess, None) };
        let mut schedule = Schedule::new(vec![delayed, grouped(), grouped()]);
        schedule.advance(now);
        assert_eq!(schedule.groups_in_use().count(), 0);
        assert_eq!(schedule.take(9, &HashSet::from(["g".to_owned()])), [0; 0], "another pipeline uses the group");
        assert_eq!(schedule.take(9, &HashSet::new()), [1]);
        assert_eq!(schedule.groups_in_use().collect::<Vec<_>>(), ["g"]);
        schedule.end(1, Conclusion::Success);
        assert_eq!(schedule.take(9, &HashSet::new()), [2]);
        schedule.end(2, Conclusion::Success);
        assert!(!schedule.is_over() && schedule.next_delay() == Some(now + Duration::from_secs(60)));
        schedule.advance(now + Duration::from_secs(61));
        assert_eq!(schedule.take(9, &HashSet::new()), [0]);
    }

    #[test]
    fn earlier_stages_get_slots_first_and_triggers_need_none() {
        let trigger = ScheduledJob { is_trigger: true, ..task(1, OnSuccess, Some(&[])) };
        let mut schedule = Schedule::new(vec![
            task(1, OnSuccess, Some(&[])),
            task(0, OnSuccess, None),
            task(0, OnSuccess, None),
            trigger,
        ]);
        schedule.advance(Instant::now());
        assert_eq!(schedule.take(1, &HashSet::new()), [1, 3]);
        assert_eq!(schedule.take(0, &HashSet::new()), [0; 0]);
        schedule.cancel();
        assert_eq!(schedule.state(2), ScheduleState::Done(Conclusion::Canceled));
        assert!(!schedule.is_over(), "two still run");
    }

    #[test]
    fn a_named_job_runs_regardless_of_its_when() {
        let mut schedule = Schedule::new(vec![ScheduledJob { named: true, ..task(1, OnFailure, None) }]);
        assert_eq!(run(&mut schedule, &[]), [0]);
    }
}
