//! Runs one step under a shim: records it in the journal first, and waits for its end.
//!
//! A step of an earlier agent is resumed: the step still runs, or has written its result, or never started.

use std::io;
use std::time::Duration;

use super::context::Job;
use super::deadlines::StepDeadline;
use super::job_log::JobLog;
use super::stage_result::{StageError, StageResult};
use super::step_result::{EndedStep, StepKind};
use super::stop_policy::StopPolicy;
use crate::executor::docker::prepared::PreparedContainer;
use crate::journal::{JobJournal, StepRecord};
use crate::shim::spec::{Rights, StepEnd, StepProgram, StepSpec, StepStatus};
use crate::shim::{self, RunningShim, ShimEvent, StepOutcome};

/// An idempotent step fails its stage if its process is killed again after this many restarts.
const MAX_RESTARTS: u32 = 3;

/// How much longer than the script's own grace period the shim waits for a child that communicates with a container
/// engine.
const ENGINE_GRACE: Duration = Duration::from_secs(60);

/// Runs the steps of a job.
pub struct StepRunner<'a> {
    pub job: &'a Job<'a>,
    pub journal: &'a mut JobJournal,
    pub log: &'a JobLog,
}

impl StepRunner<'_> {
    /// Runs a step, or resumes one of an earlier agent. Fails if the step failed; see also [`StageError`].
    pub fn run(&mut self, task: StepProgram, step_deadline: &StepDeadline, stop_policy: StopPolicy) -> StageResult {
        self.run_for_container(task, step_deadline, stop_policy).map(drop)
    }

    /// Runs a step that may prepare a container, and returns the container. Fails as [`StepRunner::run`] does.
    pub fn run_for_container(
        &mut self,
        task: StepProgram,
        step_deadline: &StepDeadline,
        stop_policy: StopPolicy,
    ) -> StageResult<Option<Box<PreparedContainer>>> {
        let kind = StepKind::new(&task);
        let repetition = (kind == StepKind::Idempotent).then(|| task.clone());
        let mut outcome = match self.journal.progress.step().cloned() {
            Some(step) => self.resume_step(task, &step, stop_policy)?,
            None => self.begin(task, step_deadline, stop_policy)?,
        };
        for _ in 0..MAX_RESTARTS {
            let Some(task) = repetition.clone().filter(|_| kind.was_killed(&outcome)) else { break };
            if self.must_stop(stop_policy) {
                break;
            }
            self.sweep();
            let why =
                "The process for this stage was killed: memory ran out, or another program killed it. Repeating it";
            self.log.warn(self.journal, why.to_owned())?;
            outcome = self.begin(task, step_deadline, stop_policy)?;
        }
        if matches!(outcome, StepOutcome::Lost) {
            self.sweep();
        }
        let ended = EndedStep { kind, outcome: &outcome, step_deadline, stop_policy };
        ended.result(self.job, self.journal).map_err(StageError::Failed)
    }

    fn must_stop(&self, stop_policy: StopPolicy) -> bool {
        let stop_requests = self.job.control.stop_requests();
        stop_requests.stops_job() || stop_policy.stops(&stop_requests)
    }

    /// Clears the finished step before another one of the same stage starts. Fails if the journal is not writable.
    pub fn settle_step(&mut self, steps_done: usize) -> io::Result<()> {
        self.journal.progress.end_step();
        if let Some(stage) = &mut self.journal.progress.stage {
            stage.steps_done = steps_done;
        }
        self.journal.save()
    }

    /// Kills processes that a dead shim left running.
    pub fn sweep(&self) {
        if let Some(step) = self.journal.progress.step() {
            shim::sweep(&step.id, &step.cgroups);
        }
    }

    /// Records the start of a step, and runs it.
    fn begin(
        &mut self,
        task: StepProgram,
        step_deadline: &StepDeadline,
        stop_policy: StopPolicy,
    ) -> io::Result<StepOutcome> {
        // Another server, or another agent on this machine, may have a job with this id.
        let id = format!("{}-{}", self.job.name(), self.journal.progress.steps);
        let executor = &self.job.context.executor;
        let cgroups = match &task {
            StepProgram::File { rights: Rights::Sandboxed(_), .. } => executor.confined_cgroups(&id),
            _ => executor.cgroups(&id),
        };
        let step = StepRecord { id, shim: None, cgroups, deadline: Some(step_deadline.deadline) };
        self.journal.progress.begin_step(step.clone());
        self.journal.save()?;
        self.start(task, &step, stop_policy)
    }

    fn start(&mut self, task: StepProgram, step: &StepRecord, stop_policy: StopPolicy) -> io::Result<StepOutcome> {
        let spec = StepSpec {
            id: step.id.clone(),
            spool: self.journal.directory.spool(),
            status: self.journal.directory.status(&step.id),
            filters: self.job.settings.filters.clone(),
            user: self.job.context.executor.user().cloned(),
            cgroups: step.cgroups.clone(),
            grace: self.grace(&task),
            deadline: step.deadline,
            // A job of a local run is never resumed.
            stop_with_pid: self.job.context.local.as_ref().map(|_| std::process::id().cast_signed()),
            task,
        };
        let running = match RunningShim::start(&spec) {
            Ok(running) => running,
            // The machine has no processes or memory left: the job fails with the error in its log.
            Err(error) => {
                let end = StepEnd::NotStarted(format!("cannot start a process for the script: {error}"));
                return Ok(StepOutcome::Ended(StepStatus {
                    id: spec.id,
                    end,
                    stopped: None,
                    killed_processes: 0,
                    report: String::new(),
                }));
            }
        };
        self.journal.progress.set_shim(running.identity());
        self.journal.save()?;
        self.wait(running, stop_policy)
    }

    /// The time between SIGTERM and SIGKILL; a child that communicates with a container engine itself waits for the
    /// script's grace period.
    fn grace(&self, task: &StepProgram) -> Duration {
        let grace = self.job.context.runner.kill_grace;
        match task {
            StepProgram::File { output_fifos: Some(_), .. } => grace + ENGINE_GRACE,
            _ => grace,
        }
    }

    fn resume_step(
        &mut self,
        task: StepProgram,
        step: &StepRecord,
        stop_policy: StopPolicy,
    ) -> io::Result<StepOutcome> {
        let status = self.journal.directory.status(&step.id);
        let running = match step.shim {
            Some(identity) => RunningShim::adopt(identity, &status),
            None => RunningShim::find(&step.id, &status),
        };
        if let Some(running) = running {
            return self.wait(running, stop_policy);
        }
        match StepOutcome::read(&status) {
            StepOutcome::Lost if !shim::started_marker(&status).exists() => self.start(task, step, stop_policy),
            outcome => Ok(outcome),
        }
    }

    /// Waits for the end of a step, and stops it on request. The request is recorded in the journal first, because the
    /// result of a stopped step does not contain the cause.
    fn wait(&mut self, running: RunningShim, stop_policy: StopPolicy) -> io::Result<StepOutcome> {
        let control = &self.job.control;
        loop {
            let stop_requests = control.stop_requests();
            if stop_requests.stops_job() || stop_policy.stops(&stop_requests) {
                if self.journal.progress.stop_requests != stop_requests {
                    self.journal.progress.stop_requests = stop_requests;
                    self.journal.save()?;
                }
                running.stop();
            }
            match running.wait(control.wake_fd(), None) {
                ShimEvent::Ended => return Ok(running.outcome()),
                ShimEvent::Woken | ShimEvent::TimedOut => control.clear_wake(),
            }
        }
    }
}
