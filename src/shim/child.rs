//! The child of a shim until it becomes the step: session, control groups, user, directories, descriptors.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use nix::unistd::{
    Gid, Pid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, pipe2, setgid, setgroups, setsid, setuid,
};

use super::spec::{Rights, Sandbox, StepProgram, StepSpec, TaskResult, User};
use super::streams::{ChildEnds, StepStreams, memory_file};
use super::{confine, groups};
use crate::sys;

/// The exit status of a child that could not start the step.
const NOT_STARTED_EXIT_CODE: i32 = 127;
/// The exit status of a task of the agent's program that panicked, as of a Rust program.
const PANIC_EXIT_CODE: i32 = 101;

/// A step that was started.
pub struct StartedStep {
    /// The main process.
    pub pid: Pid,
    /// Read end of standard output.
    pub stdout: OwnedFd,
    /// Read end of standard error; `None` if it is merged into standard output.
    pub stderr: Option<OwnedFd>,
    /// Contains the error if the step could not be started; closed without data otherwise.
    pub failure: File,
    /// The report of a task of the agent's program, complete when the step has ended.
    pub report: File,
    /// The relay process through which a sandboxed task reaches servers.
    pub relay: Option<Pid>,
}

/// Runs a task of the agent's program. The layer above provides this function.
pub type TaskRunner = fn(&str) -> TaskResult;

/// Starts the step. Errors: no pipe, memory file or process can be created.
pub fn start(spec: &StepSpec, work: TaskRunner) -> io::Result<StartedStep> {
    // The sandbox is prepared before the pipes are created, because its relay must not inherit the ends of the pipes.
    let sandbox = match spec.task.rights() {
        Rights::Sandboxed(sandbox) => confine::prepare(sandbox).map_err(io::Error::other)?,
        Rights::User | Rights::All => None,
    };
    let (streams, ends) = StepStreams::open(&spec.task, spec.user.as_ref())?;
    let (failure, failure_writer) = pipe2(OFlag::O_CLOEXEC)?;
    let report = memory_file(&[])?;
    let (forked, membership) = fork(&spec.cgroups)?;
    match forked {
        Some(pid) => Ok(StartedStep {
            pid,
            stdout: streams.stdout,
            stderr: streams.stderr,
            failure: File::from(failure),
            report,
            relay: sandbox.and_then(|sandbox| sandbox.relay),
        }),
        None => {
            let child = StepChild { spec, sandbox, membership, ends, report };
            child.run(work, File::from(failure_writer))
        }
    }
}

/// The child of the shim after the fork.
struct StepChild<'a> {
    spec: &'a StepSpec,
    sandbox: Option<confine::PreparedSandbox>,
    membership: CgroupMembership,
    ends: ChildEnds,
    report: File,
}

impl StepChild<'_> {
    /// Becomes the step. Writes the error to `failure` if the step cannot be started.
    fn run(self, work: TaskRunner, mut failure: File) -> ! {
        let outcome = self.enter().and_then(|()| match &self.spec.task {
            StepProgram::Process { argv, env, .. } => Err(exec(argv, env, &self.spec.id)),
            StepProgram::AgentTask { task, .. } | StepProgram::ContainerScript { task, .. } => Ok(task),
        });
        match outcome {
            Ok(task) => {
                // A task of the agent's program does not call exec, so no exec closes these descriptors. The child
                // closes them, because the shim waits until the failure pipe is closed.
                drop(failure);
                drop(self.ends);
                if self.sandbox.is_some_and(|sandbox| sandbox.relay.is_some()) {
                    crate::http::connect_through(confine::relay::ADDRESS);
                }
                sys::exit_now(run_agent_task(work, task, self.report))
            }
            Err(message) => {
                let _ = failure.write_all(message.as_bytes());
                sys::exit_now(NOT_STARTED_EXIT_CODE)
            }
        }
    }

    /// The set-up between fork and exec. Errors: the message for the user.
    fn enter(&self) -> Result<(), String> {
        let describe = |what: &str, error: Errno| format!("{what}: {}", error.desc());
        setsid().map_err(|error| describe("cannot create a session", error))?;
        let (spec, rights) = (self.spec, self.spec.task.rights());
        for group in spec.cgroups.iter().filter(|_| self.membership == CgroupMembership::ToEnter) {
            // A control group without limits only helps to find processes, and the subreaper finds them too, so a
            // failure to enter it is no error.
            let entered = groups::enter(group);
            if matches!(rights, Rights::Sandboxed(_)) {
                entered.map_err(|error| format!("cannot enter the control group {}: {error}", group.display()))?;
            }
        }
        reset_oom_score();
        if matches!(rights, Rights::Sandboxed(_)) {
            // The first process of a PID namespace ignores a signal without a handler. A stop request may be pending
            // already, so the handler must exist before the signal is unblocked.
            sys::exit_on_term().map_err(|error| describe("cannot set the action of SIGTERM", error))?;
        }
        restore_signals().map_err(|error| describe("cannot restore the default actions of signals", error))?;
        let is_world_writable = matches!(rights, Rights::Sandboxed(Sandbox { world_writable: true, .. }));
        umask(Mode::from_bits_truncate(if is_world_writable { 0 } else { 0o022 }));
        dup2_stdin(&self.ends.stdin).map_err(|error| describe("cannot set up standard input", error))?;
        dup2_stdout(&self.ends.stdout).map_err(|error| describe("cannot set up standard output", error))?;
        dup2_stderr(&self.ends.stderr).map_err(|error| describe("cannot set up standard error", error))?;
        if let Some(user) = &spec.user {
            become_user(user).map_err(|error| describe(&format!("cannot become user {}", user.name), error))?;
        }
        if let Rights::Sandboxed(sandbox) = rights {
            confine::confine(sandbox, self.sandbox.as_ref())?;
        }
        match &spec.task {
            StepProgram::Process { cwd, .. } => {
                chdir(cwd).map_err(|error| describe(&format!("cannot enter {}", cwd.display()), error))
            }
            StepProgram::AgentTask { .. } | StepProgram::ContainerScript { .. } => {
                // If the shim is killed, the agent repeats the task, so the kernel must kill this process together with
                // the shim.
                let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
                Ok(())
            }
        }
    }
}

/// Whether the child is in its control groups already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CgroupMembership {
    /// The kernel created the child in its only group.
    Created,
    /// The child enters its groups itself.
    ToEnter,
}

/// Forks. If the step has a single control group, of version 2, the child starts in that group.
fn fork(groups: &[PathBuf]) -> io::Result<(Option<Pid>, CgroupMembership)> {
    if let [group] = groups
        && let Ok(group) = File::open(group)
        && fstatfs(&group).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
        && let Ok(forked) = sys::fork_into(group.as_fd())
    {
        return Ok((forked, CgroupMembership::Created));
    }
    Ok((sys::fork_single_threaded()?, CgroupMembership::ToEnter))
}

fn run_agent_task(work: TaskRunner, task: &str, mut report: File) -> i32 {
    let panicked = TaskResult { code: PANIC_EXIT_CODE, ..TaskResult::default() };
    let result = std::panic::catch_unwind(|| work(task)).unwrap_or(panicked);
    let _ = io::stdout().flush();
    let _ = report.write_all(result.report.as_bytes());
    result.code
}

/// The agent's service may have a lower OOM score than other processes; jobs must not inherit that score.
fn reset_oom_score() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let score = fs::read_to_string(SCORE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if score.is_some_and(|score| score < 0) {
        // The write fails if the service manager set a minimum without giving the right to change it. Then the job
        // keeps the score.
        let _ = fs::write(SCORE, "0");
    }
}

fn restore_signals() -> nix::Result<()> {
    for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGPIPE] {
        sys::default_action(number)?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

fn become_user(user: &User) -> nix::Result<()> {
    if Uid::effective().is_root() {
        let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups)?;
        setgid(Gid::from_raw(user.gid))?;
        setuid(Uid::from_raw(user.uid))?;
    } else if Uid::effective().as_raw() != user.uid {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// Executes the program. Returns only on failure, with the message.
fn exec(argv: &[String], env: &[(String, String)], step: &str) -> String {
    let c_string = |text: &str| CString::new(text).map_err(|_| "a zero byte in an argument or variable".to_owned());
    let program = argv.first().map(String::as_str).unwrap_or_default();
    let marker = format!("MAYFLY_STEP={step}");
    let variables = env.iter().map(|(name, value)| format!("{name}={value}")).chain([marker]);
    let arguments: Result<Vec<CString>, String> = argv.iter().map(|text| c_string(text)).collect();
    let variables: Result<Vec<CString>, String> = variables.map(|text| c_string(&text)).collect();
    let (path, arguments, variables) = match (c_string(program), arguments, variables) {
        (Ok(path), Ok(arguments), Ok(variables)) => (path, arguments, variables),
        (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => return why,
    };
    let Err(error) = execve(&path, &arguments, &variables);
    match error {
        Errno::E2BIG => format!("{program}: arguments and variables are too large for the system"),
        other => format!("cannot start {program}: {}", other.desc()),
    }
}
