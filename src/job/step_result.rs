//! The result of a step that has ended: the failure reason, and what the step reports.

use std::path::Path;

use nix::libc;
use nix::sys::statvfs::statvfs;

use super::context::Job;
use super::deadlines::{DeadlineScope, StepDeadline};
use super::outcome::{abort_error, stop_error};
use super::stop_policy::StopPolicy;
use super::task_report::TaskReport;
use crate::executor::docker::prepared::PreparedContainer;
use crate::failure::{FailureReason, JobError};
use crate::journal::{ContainerCondition, JobJournal, Progress};
use crate::shim::StepOutcome;
use crate::shim::spec::{StepEnd, StepProgram, StepStatus, Stop};
use crate::sys::BootTime;

/// The exit status of a task if the kernel killed its program because memory ran out.
const EXIT_KILLED: i32 = 128 + libc::SIGKILL;

/// The kind of a step; decides what happens if it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// The job's script, as a process of the machine.
    Script,
    /// The agent's program, which represents a script in a container.
    ContainerScript,
    /// A file task or a preparation by the agent's program, which can be repeated from its start.
    Idempotent,
}

impl StepKind {
    /// The kind of a step that runs this program.
    pub fn new(program: &StepProgram) -> Self {
        match program {
            StepProgram::Process { .. } => Self::Script,
            StepProgram::ContainerScript { .. } => Self::ContainerScript,
            StepProgram::AgentTask { .. } => Self::Idempotent,
        }
    }

    /// Whether the agent's own program, or git below it, was killed, which is not the script's fault. (A killed script
    /// itself ends with a signal.)
    pub fn was_killed(self, outcome: &StepOutcome) -> bool {
        let StepOutcome::Ended(status) = outcome else { return self != Self::Script };
        let is_own = match status.end {
            StepEnd::Signaled(_) => self != Self::Script,
            StepEnd::Exited(code) => self == Self::Idempotent && code == EXIT_KILLED,
            StepEnd::NotStarted(_) => false,
        };
        is_own && status.stopped.is_none()
    }

    fn killed_error(self) -> JobError {
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

/// A step that has ended.
pub struct EndedStep<'a> {
    pub kind: StepKind,
    pub outcome: &'a StepOutcome,
    pub deadline: &'a StepDeadline,
    pub stop_policy: StopPolicy,
}

impl EndedStep<'_> {
    /// The container that the step prepared, if any. Fails if the step failed; aborts the job if no further stage may
    /// run.
    pub fn result(&self, job: &Job<'_>, journal: &mut JobJournal) -> Result<Option<Box<PreparedContainer>>, JobError> {
        let stop_requests = job.control.stop_requests();
        if stop_requests.stops_job() {
            journal.progress.abort();
            return Err(abort_error(&stop_requests));
        }
        let StepOutcome::Ended(status) = self.outcome else {
            journal.progress.abort();
            return Err(lost_error(&journal.directory.spool()));
        };
        let progress = &mut journal.progress;
        if self.kind.was_killed(self.outcome) {
            // If the process that represented a script in a container was killed, the state of the script is unknown.
            if self.kind == StepKind::ContainerScript {
                progress.abort();
            }
            return Err(self.kind.killed_error());
        }
        if status.stopped.is_some()
            && !matches!(status.end, StepEnd::NotStarted(_))
            && let Some(container) = &mut progress.container
        {
            container.condition = ContainerCondition::Interrupted;
        }
        match status.stopped {
            Some(Stop::Deadline) => Err(self.timeout_error(job, progress)),
            Some(Stop::Requested) if self.stop_policy.stops(&stop_requests) => {
                stop_error(&stop_requests).map_or(Ok(None), Err)
            }
            Some(Stop::Requested) | None => reported_result(status, progress),
        }
    }

    /// The error of a step that was stopped at its deadline. Aborts the job if the deadline is that of the job.
    fn timeout_error(&self, job: &Job<'_>, progress: &mut Progress) -> JobError {
        let is_job_over = BootTime::now() >= job.deadlines.job_deadline();
        if is_job_over || self.deadline.scope == DeadlineScope::Job {
            progress.abort();
        }
        if is_job_over { job.deadlines.job_timed_out() } else { self.deadline.error.clone() }
    }
}

/// The result that a step reports, or that its exit status shows.
fn reported_result(status: &StepStatus, progress: &mut Progress) -> Result<Option<Box<PreparedContainer>>, JobError> {
    match TaskReport::parse(&status.report) {
        Some(TaskReport::Failed(error)) => return Err(error),
        Some(TaskReport::Prepared(container)) => return Ok(Some(container)),
        Some(TaskReport::Uploaded(bytes)) => progress.artifact_bytes += bytes,
        None => {}
    }
    end_result(&status.end).map(|()| None)
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

/// The error of a step whose shim ended without a result. `spool`: the log of the job.
fn lost_error(spool: &Path) -> JobError {
    JobError::system(if is_full(spool) {
        "the disk of the state directory is full, so the process that supervises the script could not save its result; \
         free some space"
    } else {
        "the process that supervised the script was killed: by the script, for lack of memory, or because the machine \
         went down"
    })
}

/// Whether the file system of `path` has no free space or inode.
fn is_full(path: &Path) -> bool {
    statvfs(path).is_ok_and(|stat| stat.blocks_available() == 0 || (stat.files() > 0 && stat.files_available() == 0))
}

/// The name of a signal, as shells print it.
fn name_of_signal(number: i32) -> String {
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
