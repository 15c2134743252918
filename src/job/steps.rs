//! Runs one step under a shim: records it in the journal first, waits for its end, and derives the failure reason.
//!
//! A step of an earlier agent is resumed: the step still runs, or has written its result, or never started.

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::sys::statvfs::statvfs;

use super::context::Job;
use super::deadlines::{DeadlineScope, Deadlines, StepDeadline};
use super::file_task::TaskReport;
use super::job_log::JobLog;
use super::outcome::{StageError, StageResult, abort_error, stop_error};
use crate::executor::docker::prepared::PreparedContainer;
use crate::failure::{FailureReason, JobError};
use crate::journal::stop_requests::StopRequests;
use crate::journal::{ContainerCondition, JobJournal, StepRecord};
use crate::shim::spec::{Rights, StepEnd, StepProgram, StepSpec, StepStatus, Stop};
use crate::shim::{self, RunningShim, ShimEvent, StepOutcome};
use crate::sys::BootTime;

/// A file task fails its stage if its shim is killed this many times.
const RESTARTS_MAX: u32 = 3;

/// How much longer than the script's own grace period the shim waits for a child that communicates with a container
/// engine.
const ENGINE_GRACE: Duration = Duration::from_secs(60);

/// The requests that stop a step, in addition to those that end the whole job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopPolicy {
    /// A user's cancel, and the interruption of the instance.
    CancelOrEviction,
    /// The interruption of the instance.
    EvictionOnly,
    /// No request stops the step.
    Never,
}

impl StopPolicy {
    /// Whether the requests stop a step with this policy.
    pub fn stops(self, stop_requests: &StopRequests) -> bool {
        match self {
            Self::CancelOrEviction => stop_requests.stops_script(),
            Self::EvictionOnly => stop_requests.eviction().is_some(),
            Self::Never => false,
        }
    }
}

/// The kind of a step; decides what happens if it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StepKind {
    /// The job's script, as a process of the machine.
    Script,
    /// The agent's program, which represents a script in a container.
    ContainerScript,
    /// A file task or a preparation by the agent's program, which can be repeated from its start.
    Idempotent,
}

/// The exit status of a task if the kernel killed its program because memory ran out.
const EXIT_KILLED: i32 = 128 + nix::libc::SIGKILL;

impl StepKind {
    fn of(task: &StepProgram) -> Self {
        match task {
            StepProgram::Process { .. } => Self::Script,
            StepProgram::File { output_fifos: Some(_), .. } => Self::ContainerScript,
            StepProgram::File { output_fifos: None, .. } => Self::Idempotent,
        }
    }

    /// Whether the agent's own program, or git below it, was killed, which is not the script's fault. (A killed script
    /// itself ends with a signal.)
    fn was_killed(self, outcome: &StepOutcome) -> bool {
        let StepOutcome::Ended(status) = outcome else { return self != Self::Script };
        let is_own = match status.end {
            StepEnd::Signaled(_) => self != Self::Script,
            StepEnd::Exited(code) => self == Self::Idempotent && code == EXIT_KILLED,
            StepEnd::NotStarted(_) => false,
        };
        is_own && status.stopped.is_none()
    }

    fn killed(self) -> JobError {
        JobError::system(match self {
            Self::Script | Self::ContainerScript => {
                "the agent's process that communicated with the container engine for the script was killed: memory ran \
                 out, or another program killed it"
            }
            Self::Idempotent => {
                "the agent's process for this stage was killed repeatedly: memory ran out, or another program killed it"
            }
        })
    }
}

/// Runs the steps of a job.
pub struct StepRunner<'a> {
    pub job: &'a Job<'a>,
    pub journal: &'a mut JobJournal,
    pub log: &'a JobLog,
}

impl StepRunner<'_> {
    /// Runs a step, or resumes one of an earlier agent. Fails if the step failed; see also [`StageError`].
    pub fn run(&mut self, task: StepProgram, limit: &StepDeadline, stop_policy: StopPolicy) -> StageResult {
        self.run_for_container(task, limit, stop_policy).map(drop)
    }

    /// Runs a step that may prepare a container, and returns the container. Fails as [`StepRunner::run`] does.
    pub fn run_for_container(
        &mut self,
        task: StepProgram,
        limit: &StepDeadline,
        stop_policy: StopPolicy,
    ) -> StageResult<Option<Box<PreparedContainer>>> {
        let kind = StepKind::of(&task);
        let again = (kind == StepKind::Idempotent).then(|| task.clone());
        let mut outcome = match self.journal.progress.step().cloned() {
            Some(step) => self.resume_step(task, &step, stop_policy)?,
            None => self.begin(task, limit, stop_policy)?,
        };
        for _ in 0..RESTARTS_MAX {
            let Some(again) = again.clone().filter(|_| kind.was_killed(&outcome)) else { break };
            let stop_requests = self.job.control.stop_requests();
            if stop_requests.stops_job() || stop_policy.stops(&stop_requests) {
                break;
            }
            self.sweep();
            let why =
                "The process for this stage was killed: memory ran out, or another program killed it. Repeating it";
            self.log.warn(self.journal, why.to_owned())?;
            outcome = self.begin(again, limit, stop_policy)?;
        }
        self.result(kind, &outcome, limit, stop_policy).map_err(StageError::Failed)
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
    fn begin(&mut self, task: StepProgram, limit: &StepDeadline, stop_policy: StopPolicy) -> io::Result<StepOutcome> {
        // Another server, or another agent on this machine, may have a job with this id.
        let id = format!("{}-{}", self.job.name(), self.journal.progress.steps);
        let executor = &self.job.context.executor;
        let cgroups = match &task {
            StepProgram::File { rights: Rights::Sandboxed(_), .. } => executor.confined_cgroups(&id),
            _ => executor.cgroups(&id),
        };
        let step = StepRecord { id, shim: None, cgroups, deadline: Some(limit.deadline) };
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

    /// Derives the failure reason from a result.
    fn result(
        &mut self,
        kind: StepKind,
        outcome: &StepOutcome,
        limit: &StepDeadline,
        stop_policy: StopPolicy,
    ) -> Result<Option<Box<PreparedContainer>>, JobError> {
        let stop_requests = self.job.control.stop_requests();
        if stop_requests.stops_job() {
            self.journal.progress.abort();
            return Err(abort_error(&stop_requests));
        }
        let status = match outcome {
            StepOutcome::Ended(status) => status,
            StepOutcome::Lost => {
                self.sweep();
                self.journal.progress.abort();
                return Err(JobError::system(match is_full(&self.journal.directory.spool()) {
                    true => {
                        "the disk of the state directory is full, so the process that supervises the script could not \
                         save its result; free some space"
                    }
                    false => {
                        "the process that supervised the script was killed: by the script, for lack of memory, or \
                         because the machine went down"
                    }
                }));
            }
        };
        if kind.was_killed(outcome) {
            // If the process that represented a script in a container was killed, the state of the script is unknown.
            if kind == StepKind::ContainerScript {
                self.journal.progress.abort();
            }
            return Err(kind.killed());
        }
        let progress = &mut self.journal.progress;
        if status.stopped.is_some()
            && let Some(container) = &mut progress.container
        {
            container.condition = ContainerCondition::Interrupted;
        }
        let deadlines: &Deadlines = &self.job.deadlines;
        match status.stopped {
            Some(Stop::Deadline) if BootTime::now() >= deadlines.job_deadline() => {
                progress.abort();
                Err(deadlines.job_timed_out())
            }
            Some(Stop::Deadline) => {
                if limit.scope == DeadlineScope::Job {
                    progress.abort();
                }
                Err(limit.error.clone())
            }
            Some(Stop::Requested) if stop_policy.stops(&stop_requests) => {
                stop_error(&stop_requests).map_or(Ok(None), Err)
            }
            _ => match TaskReport::parse(&status.report) {
                Some(TaskReport::Failed(error)) => Err(error),
                Some(TaskReport::Prepared(container)) => Ok(Some(container)),
                Some(TaskReport::Uploaded(bytes)) => {
                    progress.artifact_bytes += bytes;
                    end_result(&status.end).map(|()| None)
                }
                None => end_result(&status.end).map(|()| None),
            },
        }
    }
}

fn end_result(end: &StepEnd) -> Result<(), JobError> {
    let failed = |code: i32, message: String| {
        Err(JobError { reason: FailureReason::ScriptFailure, exit_code: Some(code), message })
    };
    match end {
        StepEnd::Exited(0) => Ok(()),
        StepEnd::Exited(code) => failed(*code, format!("exit status {code}")),
        StepEnd::Signaled(number) => failed(-1, format!("signal: {}", name_of_signal(*number))),
        StepEnd::NotStarted(why) => Err(JobError::system(why.clone())),
    }
}

/// The name of a signal, as shells print it.
fn name_of_signal(number: i32) -> String {
    use nix::libc;

    let name = match number {
        libc::SIGABRT => "aborted",
        libc::SIGALRM => "alarm clock",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGHUP => "hangup",
        libc::SIGILL => "illegal instruction",
        libc::SIGINT => "interrupt",
        libc::SIGKILL => "killed",
        libc::SIGPIPE => "broken pipe",
        libc::SIGQUIT => "quit",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGTERM => "terminated",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGXCPU => "CPU time limit exceeded",
        libc::SIGXFSZ => "file size limit exceeded",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// Whether the file system of `path` has no free space or inode.
fn is_full(path: &Path) -> bool {
    statvfs(path).is_ok_and(|stat| stat.blocks_available() == 0 || (stat.files() > 0 && stat.files_available() == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(end: StepEnd, stopped: Option<Stop>) -> StepOutcome {
        StepOutcome::Ended(StepStatus { id: String::new(), end, stopped, killed_processes: 0, report: String::new() })
    }

    #[test]
    fn detects_only_kills_of_the_agents_own_program() {
        let by_signal = ended(StepEnd::Signaled(9), None);
        let git_by_signal = ended(StepEnd::Exited(137), None);
        let stopped = ended(StepEnd::Signaled(9), Some(Stop::Deadline));
        let failed = ended(StepEnd::Exited(1), None);
        for (kind, expected) in [
            (StepKind::Script, [false, false, false, false]),
            (StepKind::ContainerScript, [true, false, false, false]),
            (StepKind::Idempotent, [true, true, false, false]),
        ] {
            let killed = [&by_signal, &git_by_signal, &stopped, &failed].map(|outcome| kind.was_killed(outcome));
            assert_eq!(killed, expected, "{kind:?}");
        }
    }
}
