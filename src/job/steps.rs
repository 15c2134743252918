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
use crate::shim::spec::{Rights, StepProgram, StepSpec, StepStatus, Stop};
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
    pub fn run(&mut self, program: StepProgram, deadline: &StepDeadline, stop_policy: StopPolicy) -> StageResult {
        self.run_for_container(program, deadline, stop_policy).map(drop)
    }

    /// Runs a step that may prepare a container, and returns the container. Fails as [`StepRunner::run`] does.
    pub fn run_for_container(
        &mut self,
        program: StepProgram,
        deadline: &StepDeadline,
        stop_policy: StopPolicy,
    ) -> StageResult<Option<Box<PreparedContainer>>> {
        let kind = StepKind::new(&program);
        let repetition = (kind == StepKind::Idempotent).then(|| program.clone());
        let mut outcome = match self.journal.progress.step().cloned() {
            Some(step) => self.resume_step(program, &step, stop_policy)?,
            None => self.begin(program, deadline, stop_policy)?,
        };
        for _ in 0..MAX_RESTARTS {
            let Some(program) = repetition.clone().filter(|_| kind.was_killed(&outcome)) else { break };
            if self.must_stop(stop_policy)? {
                break;
            }
            self.sweep();
            let why =
                "The process for this stage was killed: memory ran out, or another program killed it. Repeating it";
            self.log.warn(self.journal, why.to_owned())?;
            outcome = self.begin(program, deadline, stop_policy)?;
        }
        if matches!(outcome, StepOutcome::Lost) {
            self.sweep();
        }
        let ended = EndedStep { kind, outcome: &outcome, deadline, stop_policy };
        ended.result(self.job, self.journal).map_err(StageError::Failed)
    }

    /// Clears the finished step before another one of the same stage starts. Fails if the journal is not writable.
    pub fn settle_step(&mut self, steps_done: usize) -> io::Result<()> {
        self.journal.progress.end_step();
        if let Some(stage) = &mut self.journal.progress.stage {
            stage.steps_done = steps_done;
        }
        self.journal.save()
    }

    /// Kills the step that an earlier agent left, and waits until its shim has written the rest of the output to the
    /// log.
    pub fn kill_step(&self) {
        if let Some(step) = self.journal.progress.step() {
            shim::kill_step(&step.id, step.shim, &self.journal.directory.status(&step.id), &step.cgroups);
        }
    }

    /// Kills processes that a dead shim left running.
    fn sweep(&self) {
        if let Some(step) = self.journal.progress.step() {
            shim::sweep(&step.id, &step.cgroups);
        }
    }

    /// Whether a step with this policy must stop. Records the requests in the journal first, because the result of a
    /// stopped step does not contain the cause.
    fn must_stop(&mut self, stop_policy: StopPolicy) -> io::Result<bool> {
        let stop_requests = self.job.control.stop_requests();
        let must_stop = stop_requests.stops_job() || stop_policy.stops(&stop_requests);
        if must_stop && self.journal.progress.stop_requests != stop_requests {
            self.journal.progress.stop_requests = stop_requests;
            self.journal.save()?;
        }
        Ok(must_stop)
    }

    /// Records the start of a step, and runs it.
    fn begin(
        &mut self,
        program: StepProgram,
        deadline: &StepDeadline,
        stop_policy: StopPolicy,
    ) -> io::Result<StepOutcome> {
        // Another server, or another agent on this machine, may have a job with this id.
        let id = format!("{}-{}", self.job.name(), self.journal.progress.steps);
        let executor = &self.job.context.executor;
        let cgroups = match program.rights() {
            Rights::Sandboxed(_) => executor.confined_cgroups(&id),
            Rights::User | Rights::All => executor.cgroups(&id),
        };
        let step = StepRecord { id, shim: None, cgroups, deadline: Some(deadline.at) };
        self.journal.progress.begin_step(step.clone());
        self.journal.save()?;
        self.start(program, &step, stop_policy)
    }

    /// Starts a step, unless a request to stop it has arrived already, and waits for its end.
    fn start(&mut self, program: StepProgram, step: &StepRecord, stop_policy: StopPolicy) -> io::Result<StepOutcome> {
        if self.must_stop(stop_policy)? {
            let not_started = StepStatus::not_started(&step.id, "the job was stopped before this step".to_owned());
            return Ok(StepOutcome::Ended(StepStatus { stopped: Some(Stop::Requested), ..not_started }));
        }
        let spec = StepSpec {
            id: step.id.clone(),
            spool: self.journal.directory.spool(),
            status: self.journal.directory.status(&step.id),
            filters: self.job.settings.filters.clone(),
            user: self.job.context.executor.user().cloned(),
            cgroups: step.cgroups.clone(),
            grace: self.grace(&program),
            deadline: step.deadline,
            // A job of a local run is never resumed.
            stop_with_pid: self.job.context.local.as_ref().map(|_| std::process::id().cast_signed()),
            task: program,
        };
        let running = match RunningShim::start(&spec) {
            Ok(running) => running,
            // The machine has no processes or memory left: the job fails with the error in its log.
            Err(error) => {
                let why = format!("cannot start a process for the script: {error}");
                return Ok(StepOutcome::Ended(StepStatus::not_started(&spec.id, why)));
            }
        };
        self.journal.progress.set_shim(running.identity());
        self.journal.save()?;
        self.wait(running, stop_policy)
    }

    /// The time between SIGTERM and SIGKILL; a child that communicates with a container engine itself waits for the
    /// script's grace period.
    fn grace(&self, program: &StepProgram) -> Duration {
        let grace = self.job.context.runner.kill_grace;
        match program {
            StepProgram::ContainerScript { .. } => grace + ENGINE_GRACE,
            StepProgram::Process { .. } | StepProgram::AgentTask { .. } => grace,
        }
    }

    fn resume_step(
        &mut self,
        program: StepProgram,
        step: &StepRecord,
        stop_policy: StopPolicy,
    ) -> io::Result<StepOutcome> {
        let status = self.journal.directory.status(&step.id);
        if let Some(running) = RunningShim::of_step(&step.id, step.shim, &status) {
            return self.wait(running, stop_policy);
        }
        match StepOutcome::read(&status) {
            StepOutcome::Lost if !shim::started_marker(&status).exists() => self.start(program, step, stop_policy),
            outcome => Ok(outcome),
        }
    }

    /// Waits for the end of a step, and stops it on request.
    fn wait(&mut self, running: RunningShim, stop_policy: StopPolicy) -> io::Result<StepOutcome> {
        loop {
            if self.must_stop(stop_policy)? {
                running.stop();
            }
            let control = &self.job.control;
            match running.wait(Some(control.wake_fd()), None) {
                ShimEvent::Ended => return Ok(running.outcome()),
                ShimEvent::Woken | ShimEvent::TimedOut => control.clear_wake(),
            }
        }
    }
}
