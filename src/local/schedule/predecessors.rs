//! The jobs that another job waits for, and whether their states let that job start.

use super::{Conclusion, JobSelection, Schedule, ScheduleState, ScheduledJob};
use crate::pipeline::plan::When;

/// Whether a waiting job can start.
pub enum Readiness {
    Wait,
    Start,
    Skip,
}

/// The numbers of jobs that another job waits for, by their states. Jobs that succeeded are not counted.
#[derive(Clone, Copy, Default)]
pub struct Predecessors {
    /// Jobs that have not ended, and manual jobs that block the pipeline.
    open: usize,
    failed: usize,
    /// Jobs that were skipped, and optional manual jobs that no person has started.
    not_run: usize,
}

impl Predecessors {
    fn add(&mut self, job: &ScheduledJob, state: ScheduleState) {
        match state {
            ScheduleState::Done(Conclusion::Failed | Conclusion::Canceled) => self.failed += 1,
            ScheduleState::Done(Conclusion::Skipped) => self.not_run += 1,
            ScheduleState::Done(Conclusion::Success | Conclusion::Warning) => {}
            ScheduleState::Manual if !job.blocks_as_manual_job() => self.not_run += 1,
            _ => self.open += 1,
        }
    }

    fn add_all(&mut self, other: Self) {
        self.open += other.open;
        self.failed += other.failed;
        self.not_run += other.not_run;
    }
}

impl Schedule {
    /// For each stage, the jobs of all earlier stages.
    pub(super) fn before_stages(&self) -> Vec<Predecessors> {
        let stages = self.jobs.iter().map(|scheduled| scheduled.stage + 1).max().unwrap_or(0);
        let mut of_stage = vec![Predecessors::default(); stages];
        for (scheduled, state) in self.jobs.iter().zip(&self.states) {
            of_stage[scheduled.stage].add(scheduled, *state);
        }
        let mut earlier = Predecessors::default();
        let mut before = Vec::with_capacity(stages);
        for stage in of_stage {
            before.push(earlier);
            earlier.add_all(stage);
        }
        before
    }

    /// Whether a waiting job can start. `before` is the result of [`Schedule::before_stages`].
    pub(super) fn readiness(&self, job: usize, before: &[Predecessors]) -> Readiness {
        let scheduled = &self.jobs[job];
        let predecessors = match &scheduled.needs {
            None => before[scheduled.stage],
            Some(needs) => {
                let mut predecessors = Predecessors::default();
                needs.iter().for_each(|need| predecessors.add(&self.jobs[*need], self.states[*need]));
                predecessors
            }
        };
        // If a need does not run, the job waits for no other need, and a failure of another need does not count.
        let lacks_a_need = scheduled.needs.is_some() && predecessors.not_run > 0;
        if predecessors.open > 0 && !lacks_a_need {
            return Readiness::Wait;
        }
        let starts = match scheduled.when {
            _ if scheduled.selection == JobSelection::ByUser => true,
            When::Always => true,
            _ if lacks_a_need => false,
            When::OnFailure => predecessors.failed > 0,
            When::OnSuccess | When::Manual | When::Delayed => predecessors.failed == 0,
        };
        if starts { Readiness::Start } else { Readiness::Skip }
    }
}
