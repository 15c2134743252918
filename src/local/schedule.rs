//! When jobs run: stages, needs, `when`, manual jobs, delays and resource groups, by GitLab's rules for the status of a
//! pipeline. Pure state: it neither runs anything nor looks at a clock.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::pipeline::plan::{AllowFailure, When};

/// What is known of a job before anything runs.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its stage.
    pub stage: usize,
    /// Keyword `when`.
    pub when: When,
    /// Indices of the jobs that it needs; `None` for the order of stages.
    pub needs: Option<Vec<usize>>,
    /// Whether its failure, or its waiting for a person, counts.
    pub allow_failure: AllowFailure,
    /// `start_in`, unless delays are skipped.
    pub delay: Option<Duration>,
    /// Jobs of one group run one after another.
    pub resource_group: Option<String>,
    /// The user named it: it runs whatever became of the others.
    pub named: bool,
    /// It starts another pipeline and takes no slot.
    pub is_trigger: bool,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Others come first.
    Waiting,
    /// Its delay runs until then.
    Delayed(Instant),
    /// A person must start it.
    Manual,
    /// It may start as soon as there is room.
    Due,
    /// It runs.
    Running,
    /// It is over.
    Done(Verdict),
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Success,
    /// It failed, and may.
    Warning,
    /// It failed.
    Failed,
    /// It did not run.
    Skipped,
    /// It was stopped, or never began because the run was stopped.
    Canceled,
}

/// How a pipeline stands when nothing runs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// No job failed that may not.
    Success,
    /// A job failed.
    Failed,
    /// A manual job holds back the rest.
    Blocked,
    /// It was stopped.
    Canceled,
}

/// The jobs of one pipeline.
pub struct Schedule {
    tasks: Vec<Task>,
    states: Vec<State>,
    /// Manual jobs that a person has started.
    started: HashSet<usize>,
    canceled: bool,
}

/// Whether a job may go.
enum Readiness {
    Wait,
    Go,
    Skip,
}

/// What became of the jobs that another one waits for.
#[derive(Clone, Copy, Default)]
struct Sum {
    open: bool,
    failed: bool,
    skipped: bool,
}

impl Sum {
    fn add(&mut self, state: State, blocks: bool) {
        match state {
            State::Done(Verdict::Failed | Verdict::Canceled) => self.failed = true,
            State::Done(Verdict::Skipped) => self.skipped = true,
            State::Done(_) => {}
            State::Manual if !blocks => {}
            _ => self.open = true,
        }
    }

    fn merge(self, other: Self) -> Self {
        Self {
            open: self.open || other.open,
            failed: self.failed || other.failed,
            skipped: self.skipped || other.skipped,
        }
    }
}

impl Schedule {
    /// A pipeline before it runs.
    pub fn new(tasks: Vec<Task>) -> Self {
        let states = vec![State::Waiting; tasks.len()];
        Self { tasks, states, started: HashSet::new(), canceled: false }
    }

    /// Where a job stands.
    pub fn state(&self, job: usize) -> State {
        self.states[job]
    }

    /// Brings every job as far as it can come at `now`. Returns the manual jobs that have just been reached.
    pub fn advance(&mut self, now: Instant) -> Vec<usize> {
        let mut reached = Vec::new();
        loop {
            let mut changed = false;
            let before = self.before_stages();
            for job in 0..self.tasks.len() {
                let next = match self.states[job] {
                    State::Delayed(until) if until <= now => State::Due,
                    State::Waiting => match self.readiness(job, &before) {
                        Readiness::Wait => continue,
                        Readiness::Skip => State::Done(Verdict::Skipped),
                        Readiness::Go => self.reach(job, now),
                    },
                    _ => continue,
                };
                if next == State::Manual {
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

    fn reach(&self, job: usize, now: Instant) -> State {
        let task = &self.tasks[job];
        match task.when {
            When::Manual if !self.started.contains(&job) => State::Manual,
            When::Delayed => task.delay.map_or(State::Due, |delay| State::Delayed(now + delay)),
            _ => State::Due,
        }
    }

    /// For each stage what became of all jobs in the stages before it.
    fn before_stages(&self) -> Vec<Sum> {
        let stages = self.tasks.iter().map(|task| task.stage + 1).max().unwrap_or(0);
        let mut own = vec![Sum::default(); stages];
        for (task, state) in self.tasks.iter().zip(&self.states) {
            own[task.stage].add(*state, task.allow_failure != AllowFailure::Yes);
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
        let (sum, skip_counts) = match &task.needs {
            None => (before[task.stage], false),
            Some(needs) => {
                let mut sum = Sum::default();
                needs.iter().for_each(|need| sum.add(self.states[*need], true));
                (sum, true)
            }
        };
        if sum.open {
            return Readiness::Wait;
        }
        let well = !(sum.failed || skip_counts && sum.skipped);
        match task.when {
            _ if task.named => Readiness::Go,
            When::Always => Readiness::Go,
            When::OnFailure if sum.failed => Readiness::Go,
            When::OnSuccess | When::Manual | When::Delayed if well => Readiness::Go,
            _ => Readiness::Skip,
        }
    }

    /// The jobs to start now, in the order of stages and of the file; they count as running. Triggers take no slot.
    pub fn take(&mut self, slots: usize) -> Vec<usize> {
        let group_of = |job: usize| self.tasks[job].resource_group.as_deref();
        let running = (0..self.tasks.len()).filter(|job| self.states[*job] == State::Running);
        let mut busy: HashSet<&str> = running.filter_map(group_of).collect();
        let mut due: Vec<usize> = (0..self.tasks.len()).filter(|job| self.states[*job] == State::Due).collect();
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
        taken.iter().for_each(|job| self.states[*job] = State::Running);
        taken
    }

    /// A job is over.
    pub fn end(&mut self, job: usize, verdict: Verdict) {
        self.states[job] = State::Done(verdict);
    }

    /// A person starts a manual job, reached or not yet.
    pub fn start(&mut self, job: usize) {
        self.started.insert(job);
        if self.states[job] == State::Manual {
            self.states[job] = State::Due;
        }
    }

    /// What does not run yet never will.
    pub fn cancel(&mut self) {
        self.canceled = true;
        for state in &mut self.states {
            if !matches!(state, State::Running | State::Done(_)) {
                *state = State::Done(Verdict::Canceled);
            }
        }
    }

    /// A job waits for a person in a pipeline that it has started.
    pub fn hold(&mut self, job: usize) {
        self.states[job] = State::Manual;
    }

    /// What did not run was stopped.
    pub fn is_canceled(&self) -> bool {
        self.canceled
    }

    /// True when no job can start, now or later, before another one ends.
    pub fn is_stalled(&self) -> bool {
        !self.states.iter().any(|state| matches!(state, State::Due | State::Delayed(_)))
    }

    /// True when nothing runs and nothing is going to.
    pub fn is_over(&self) -> bool {
        !self.states.iter().any(|state| matches!(state, State::Running | State::Due | State::Delayed(_)))
    }

    /// When the next delay is over.
    pub fn next_delay(&self) -> Option<Instant> {
        let until = self.states.iter().filter_map(|state| match state {
            State::Delayed(until) => Some(*until),
            _ => None,
        });
        until.min()
    }

    /// How the pipeline stands.
    pub fn status(&self) -> Status {
        let has = |wanted: Verdict| self.states.contains(&State::Done(wanted));
        let blocks =
            |(task, state): (&Task, &State)| *state == State::Manual && task.allow_failure != AllowFailure::Yes;
        match () {
            () if has(Verdict::Failed) => Status::Failed,
            () if self.canceled || has(Verdict::Canceled) => Status::Canceled,
            () if self.tasks.iter().zip(&self.states).any(blocks) => Status::Blocked,
            () => Status::Success,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(stage: usize, when: When, needs: Option<&[usize]>) -> Task {
        Task {
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

    /// Runs everything one after another; `failing` jobs fail. Returns the jobs in the order of their start.
    fn run(schedule: &mut Schedule, failing: &[usize]) -> Vec<usize> {
        let mut order = Vec::new();
        loop {
            schedule.advance(Instant::now());
            let Some(job) = schedule.take(1).pop() else { return order };
            order.push(job);
            let allowed = schedule.tasks[job].allow_failure == AllowFailure::Yes;
            schedule.end(
                job,
                match failing.contains(&job) {
                    true if allowed => Verdict::Warning,
                    true => Verdict::Failed,
                    false => Verdict::Success,
                },
            );
        }
    }

    use When::{Always, Delayed, Manual, OnFailure, OnSuccess};

    #[test]
    fn a_failure_skips_later_stages_but_not_what_is_for_failures() {
        let mut schedule = Schedule::new(vec![
            task(0, OnSuccess, None),
            task(0, OnSuccess, None),
            task(1, OnSuccess, None),
            task(1, OnFailure, None),
            task(2, Always, None),
            task(2, OnSuccess, None),
        ]);
        assert_eq!(run(&mut schedule, &[1]), [0, 1, 3, 4]);
        assert_eq!(schedule.state(2), State::Done(Verdict::Skipped));
        assert_eq!((schedule.status(), schedule.is_over()), (Status::Failed, true));
    }

    #[test]
    fn an_allowed_failure_changes_nothing() {
        let soft = Task { allow_failure: AllowFailure::Yes, ..task(0, OnSuccess, None) };
        let mut schedule = Schedule::new(vec![soft, task(1, OnSuccess, Some(&[0])), task(1, OnFailure, None)]);
        assert_eq!(run(&mut schedule, &[0]), [0, 1]);
        assert_eq!(schedule.status(), Status::Success);
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
        assert_eq!(schedule.take(9), [0, 1]);
        schedule.end(1, Verdict::Success);
        schedule.advance(Instant::now());
        assert_eq!(schedule.take(9), [2], "it does not wait for the first job");
        schedule.end(0, Verdict::Success);
        schedule.end(2, Verdict::Success);
        assert_eq!(run(&mut schedule, &[]), [5]);
        assert_eq!(schedule.state(4), State::Done(Verdict::Skipped));
    }

    #[test]
    fn a_blocking_manual_job_holds_later_stages_and_an_optional_one_does_not() {
        let jobs = |allow_failure| vec![Task { allow_failure, ..task(0, Manual, None) }, task(1, OnSuccess, None)];
        let mut blocked = Schedule::new(jobs(AllowFailure::No));
        assert_eq!(blocked.advance(Instant::now()), [0]);
        assert!(blocked.is_over() && blocked.status() == Status::Blocked && blocked.state(1) == State::Waiting);
        blocked.start(0);
        assert_eq!(run(&mut blocked, &[]), [0, 1]);
        let mut optional = Schedule::new(jobs(AllowFailure::Yes));
        assert_eq!(run(&mut optional, &[]), [1]);
        assert_eq!((optional.status(), optional.state(0)), (Status::Success, State::Manual));
    }

    #[test]
    fn a_manual_job_behind_a_failure_is_skipped_and_one_that_was_asked_for_runs() {
        let mut schedule = Schedule::new(vec![task(0, OnSuccess, None), task(1, Manual, None)]);
        assert_eq!(run(&mut schedule, &[0]), [0]);
        assert_eq!(schedule.state(1), State::Done(Verdict::Skipped));
        let mut schedule = Schedule::new(vec![task(0, OnSuccess, None), task(1, Manual, None)]);
        schedule.start(1);
        assert_eq!(run(&mut schedule, &[]), [0, 1]);
    }

    #[test]
    fn delays_begin_with_their_stage_and_groups_run_one_after_another() {
        let now = Instant::now();
        let delayed = Task { delay: Some(Duration::from_secs(60)), ..task(0, Delayed, None) };
        let grouped = || Task { resource_group: Some("g".to_owned()), ..task(0, OnSuccess, None) };
        let mut schedule = Schedule::new(vec![delayed, grouped(), grouped()]);
        schedule.advance(now);
        assert_eq!(schedule.take(9), [1]);
        schedule.end(1, Verdict::Success);
        assert_eq!(schedule.take(9), [2]);
        schedule.end(2, Verdict::Success);
        assert!(!schedule.is_over() && schedule.next_delay() == Some(now + Duration::from_secs(60)));
        schedule.advance(now + Duration::from_secs(61));
        assert_eq!(schedule.take(9), [0]);
    }

    #[test]
    fn slots_go_to_earlier_stages_first_and_triggers_need_none() {
        let trigger = Task { is_trigger: true, ..task(1, OnSuccess, Some(&[])) };
        let mut schedule = Schedule::new(vec![
            task(1, OnSuccess, Some(&[])),
            task(0, OnSuccess, None),
            task(0, OnSuccess, None),
            trigger,
        ]);
        schedule.advance(Instant::now());
        assert_eq!(schedule.take(1), [1, 3]);
        assert_eq!(schedule.take(0), [0; 0]);
        schedule.cancel();
        assert_eq!(schedule.state(2), State::Done(Verdict::Canceled));
        assert!(!schedule.is_over(), "two still run");
    }

    #[test]
    fn a_named_job_runs_whatever_its_when_says() {
        let mut schedule = Schedule::new(vec![Task { named: true, ..task(1, OnFailure, None) }]);
        assert_eq!(run(&mut schedule, &[]), [0]);
    }
}
