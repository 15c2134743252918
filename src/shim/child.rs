//! The child of a shim until it becomes the step: session, control groups, user, directories, descriptors.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, umask};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use nix::unistd::{
    Gid, Pid, Uid, UnlinkatFlags, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchown, mkfifoat, pipe2, setgid,
    setgroups, setsid, setuid, unlinkat,
};

use super::spec::{OutputFifos, Rights, Sandbox, StepProgram, StepSpec, TaskResult, User};
use super::{confine, groups};
use crate::sys;

/// Size of the pipes, if the system allows it: fewer reads for a step with much output.
const PIPE_SIZE: i32 = 1 << 20;

/// A step that was started.
pub struct Started {
    /// The main process.
    pub pid: Pid,
    /// Read end of standard output.
    pub stdout: OwnedFd,
    /// Read end of standard error; `None` if it is merged into standard output.
    pub stderr: Option<OwnedFd>,
    /// Contains the error if the step could not be started; closed without data otherwise.
    pub failure: File,
    /// The report of a file task, complete when the step has ended.
    pub report: File,
    /// The relay process through which a sandboxed task reaches servers.
    pub relay: Option<Pid>,
}

/// Runs a file task. The layer above provides this function.
pub type FileTaskRunner = fn(&str) -> TaskResult;

/// Starts the step. Errors: no pipe, memory file or process can be created.
pub fn start(spec: &StepSpec, work: FileTaskRunner) -> io::Result<Started> {
    // The sandbox is prepared before the pipes are created, because its relay must not inherit the ends of the pipes.
    let confinement = match rights_of(&spec.task) {
        Rights::Sandboxed(sandbox) => confine::prepare(sandbox).map_err(io::Error::other)?,
        Rights::User | Rights::All => None,
    };
    let user = spec.user.as_ref();
    let (output_fifos, merge) = match &spec.task {
        StepProgram::Process { merge_stderr, .. } => (None, *merge_stderr),
        StepProgram::File { output_fifos, .. } => {
            (output_fifos.as_ref(), output_fifos.as_ref().is_some_and(|output_fifos| output_fifos.error.is_none()))
        }
    };
    let (stdout, stdout_writer) =
        output(output_fifos.map(|output_fifos| (output_fifos, output_fifos.output.as_path())), user)?;
    let (stderr, stderr_writer) = if merge {
        (None, stdout_writer.try_clone()?)
    } else {
        let fifo = output_fifos.and_then(|output_fifos| Some((output_fifos, output_fifos.error.as_deref()?)));
        let (reader, writer) = output(fifo, user)?;
        (Some(reader), writer)
    };
    let (failure, failure_writer) = pipe2(OFlag::O_CLOEXEC)?;
    let report = memory_file(&[])?;
    let stdin = match &spec.task {
        StepProgram::Process { stdin, .. } => memory_file(stdin.as_bytes())?,
        StepProgram::File { .. } => File::open("/dev/null")?,
    };
    let (forked, membership) = fork(&spec.cgroups)?;
    if let Some(pid) = forked {
        let relay = confinement.and_then(|confinement| confinement.relay);
        return Ok(Started { pid, stdout, stderr, failure: File::from(failure), report, relay });
    }
    let mut failure_writer = File::from(failure_writer);
    let entered = enter(spec, confinement.as_ref(), membership, &stdin, &stdout_writer, &stderr_writer);
    let outcome = entered.and_then(|()| match &spec.task {
        StepProgram::Process { argv, env, .. } => Err(exec(argv, env, &spec.id)),
        StepProgram::File { task: plan, .. } => Ok(plan),
    });
    match outcome {
        Ok(plan) => {
            // A file task calls no exec, which would close this descriptor, so the child closes it. The shim waits for
            // that.
            drop(failure_writer);
            drop((stdout_writer, stderr_writer));
            if confinement.is_some_and(|confinement| confinement.relay.is_some()) {
                crate::http::connect_through(confine::relay::ADDRESS);
            }
            sys::exit_now(run_file_task(work, plan, report))
        }
        Err(message) => {
            let _ = failure_writer.write_all(message.as_bytes());
            sys::exit_now(127)
        }
    }
}

/// Whether the child was created in its control group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CgroupMembership {
    Created,
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

fn run_file_task(work: FileTaskRunner, plan: &str, mut report: File) -> i32 {
    let worked = std::panic::catch_unwind(|| work(plan)).unwrap_or(TaskResult { code: 101, ..TaskResult::default() });
    let _ = io::stdout().flush();
    let _ = report.write_all(worked.report.as_bytes());
    worked.code
}

/// Opens the pipe for output: the named pipe if one is requested and can be created, otherwise an anonymous pipe.
fn output(fifo: Option<(&OutputFifos, &Path)>, user: Option<&User>) -> io::Result<(OwnedFd, OwnedFd)> {
    match fifo.map(|(output_fifos, path)| open_fifo(&output_fifos.root, path)) {
        Some(Ok(pipe)) => Ok(pipe),
        // The script falls back to the engine's socket if the named pipe does not exist.
        Some(Err(_)) | None => output_pipe(user),
    }
}

/// Creates a named pipe that every user may write to, and replaces an existing file. Fails if the path is unusable, or
/// the file system has no named pipes.
fn open_fifo(root: &Path, path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let root = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let directory = sys::open_beneath(root.as_fd(), parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let _ = unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir);
    mkfifoat(&directory, name, Mode::S_IRUSR | Mode::S_IWUSR)?;
    // A job may already have put a device in place of the named pipe. The shim must not even open a device.
    let found = openat(&directory, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    if fstat(&found)?.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFIFO.bits() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let reader = sys::reopen(found.as_fd(), OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
    let writer = sys::reopen(found.as_fd(), OFlag::O_WRONLY | OFlag::O_NONBLOCK)?;
    fchmod(&reader, Mode::from_bits_truncate(0o666))?;
    let _ = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((reader, writer))
}

/// A pipe that the job's user may open again (`/dev/stdout`).
fn output_pipe(user: Option<&User>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let _ = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    if let Some(user) = user {
        fchown(writer.as_fd(), Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    }
    Ok((reader, writer))
}

fn memory_file(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"script", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// The set-up between fork and exec. Errors: the message for the user.
fn enter(
    spec: &StepSpec,
    confinement: Option<&confine::PreparedSandbox>,
    membership: CgroupMembership,
    stdin: &File,
    stdout: &OwnedFd,
    stderr: &OwnedFd,
) -> Result<(), String> {
    let describe = |what: &str, error: Errno| format!("{what}: {}", error.desc());
    setsid().map_err(|error| describe("no new session", error))?;
    let rights = rights_of(&spec.task);
    for group in spec.cgroups.iter().filter(|_| membership == CgroupMembership::ToEnter) {
        // A control group without limits only helps to find processes, and the subreaper finds them too, so a failure
        // to enter it is no error.
        let entered = groups::enter(group);
        if matches!(rights, Rights::Sandboxed(_)) {
            entered.map_err(|error| format!("the control group {} cannot be entered: {error}", group.display()))?;
        }
    }
    reset_oom_score();
    restore_signals().map_err(|error| describe("signals cannot be restored", error))?;
    let is_open = matches!(rights, Rights::Sandboxed(Sandbox { world_writable: true, .. }));
    umask(Mode::from_bits_truncate(if is_open { 0 } else { 0o022 }));
    dup2_stdin(stdin).map_err(|error| describe("standard input", error))?;
    dup2_stdout(stdout).map_err(|error| describe("standard output", error))?;
    dup2_stderr(stderr).map_err(|error| describe("standard error", error))?;
    if let Some(user) = &spec.user {
        become_user(user).map_err(|error| describe(&format!("cannot become user {}", user.name), error))?;
    }
    if let Rights::Sandboxed(sandbox) = rights {
        sys::exit_on_term().map_err(|error| describe("signals", error))?;
        confine::confine(sandbox, confinement)?;
    }
    if let StepProgram::Process { cwd, .. } = &spec.task {
        chdir(cwd).map_err(|error| describe(&format!("cannot enter {}", cwd.display()), error))?;
    }
    if let StepProgram::File { .. } = &spec.task {
        // If the shim is killed, the agent repeats the task, so the kernel must kill this process together with the
        // shim.
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    }
    Ok(())
}

fn rights_of(task: &StepProgram) -> &Rights {
    match task {
        StepProgram::Process { .. } => &Rights::User,
        StepProgram::File { rights, .. } => rights,
    }
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
