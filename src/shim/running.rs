//! A running shim as the agent sees it: waits for it, stops it, and finds it again after a restart.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{Pid, Uid};
use serde::{Deserialize, Serialize};

use super::descendants;
use super::spec::{StepSpec, StepStatus};
use crate::decode;
use crate::sync;
use crate::sys;

/// The variables of its environment that the agent passes to file tasks and credential helpers of a job, so that they
/// find programs and reach servers. Scripts get another environment.
pub const PASSED_VARIABLES: [&str; 11] = [
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "PATH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Identifies a shim across restarts of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimIdentity {
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// Device and inode of the program; they change with an upgrade.
    #[serde(default)]
    pub program: Option<(u64, u64)>,
}

impl ShimIdentity {
    /// The identity of a running process.
    fn of_process(pid: i32) -> Option<Self> {
        Some(Self { pid, start_time: sys::start_time(pid)?, program: program_of(pid).ok() })
    }

    /// Whether the process is a shim of this agent's user. A job may start a process with the same arguments, also from
    /// a set-user-id program, but the real user of that process is the job's.
    fn is_shim(self) -> bool {
        let agent = Uid::effective().as_raw();
        let is_ours = sys::users_of(self.pid).is_some_and(|users| users == [agent; 4]);
        let is_program = match program_of(self.pid) {
            Ok(program) => self.program.map_or_else(|| is_own_program(self.pid), |recorded| recorded == program),
            // A shim is not dumpable, so its program is hidden without CAP_SYS_PTRACE.
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
        };
        is_ours && is_program && sys::start_time(self.pid) == Some(self.start_time)
    }
}

/// Device and inode of the program of a process.
fn program_of(pid: i32) -> io::Result<(u64, u64)> {
    let program = fs::metadata(format!("/proc/{pid}/exe"))?;
    Ok((program.dev(), program.ino()))
}

/// Whether the process runs the agent's program, or one that an upgrade has replaced.
fn is_own_program(pid: i32) -> bool {
    let path = |process: &str| fs::read_link(format!("/proc/{process}/exe")).unwrap_or_default().into_os_string();
    let (mut own, theirs) = (path("self"), path(&pid.to_string()));
    let same = program_of(pid).ok().zip(program_of(Pid::this().as_raw()).ok());
    own.push(" (deleted)");
    same.is_some_and(|(one, other)| one == other) || theirs == own
}

/// A shim that runs or has just ended.
pub struct RunningShim {
    identity: ShimIdentity,
    pidfd: OwnedFd,
    /// The child to reap; `None` if an earlier agent started the shim.
    child: Option<Child>,
    status: PathBuf,
}

/// The event that ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShimEvent {
    /// The shim has ended.
    Ended,
    /// The other descriptor became readable.
    Woken,
    TimedOut,
}

/// The result of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// The status that the shim wrote.
    Ended(StepStatus),
    /// The shim ended without a status: it was killed, or the machine went down.
    Lost,
}

impl RunningShim {
    /// Starts a shim for a step. Errors: no memory file or process can be created.
    pub fn start(spec: &StepSpec) -> io::Result<Self> {
        let mut input = File::from(memfd_create(c"step", MFdFlags::MFD_CLOEXEC)?);
        input.write_all(&serde_json::to_vec(spec)?)?;
        input.rewind()?;
        let mut shim = Command::new("/proc/self/exe");
        shim.args(["shim", &spec.id])
            .env_clear()
            .envs(PASSED_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .stdin(input)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = spawn_with_term_blocked(&mut shim)?;
        let pid = child.id().cast_signed();
        let pidfd = sys::pidfd_open(pid)?;
        let identity = ShimIdentity::of_process(pid).unwrap_or(ShimIdentity { pid, start_time: 0, program: None });
        Ok(Self { identity, pidfd, child: Some(child), status: spec.status.clone() })
    }

    /// Finds the shim that an earlier agent started; `None` if it has ended.
    pub fn adopt(identity: ShimIdentity, status: &Path) -> Option<Self> {
        let pidfd = sys::pidfd_open(identity.pid).ok()?;
        // The check follows the opening of the pidfd, so that it applies to the process of this pidfd.
        identity.is_shim().then(|| Self { identity, pidfd, child: None, status: status.to_owned() })
    }

    /// Finds the shim of a step by the step's name, if the agent died before it recorded the process.
    pub fn find(step: &str, status: &Path) -> Option<Self> {
        descendants::all_pids().find_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let ours = matches!(arguments[..], [_, b"shim", id, ..] if id == step.as_bytes());
            // The program is not recorded: it is this agent's program, or the one before an upgrade.
            let identity = ShimIdentity { program: None, ..ShimIdentity::of_process(pid).filter(|_| ours)? };
            Self::adopt(identity, status)
        })
    }

    /// The shim of a step that an earlier agent began; `None` if it has ended or was not started. `identity` is unknown
    /// if that agent died before it recorded the process.
    pub fn of_step(step: &str, identity: Option<ShimIdentity>, status: &Path) -> Option<Self> {
        match identity {
            Some(identity) => Self::adopt(identity, status),
            None => Self::find(step, status),
        }
    }

    /// The identity for the journal.
    pub fn identity(&self) -> ShimIdentity {
        self.identity
    }

    /// Waits until the shim ends, `wake` becomes readable, or `timeout` has passed.
    pub fn wait(&self, wake: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> ShimEvent {
        match sys::wait([Some(self.pidfd.as_fd()), wake], timeout) {
            Ok([true, _]) => ShimEvent::Ended,
            Ok([false, false]) => ShimEvent::TimedOut,
            // An error counts as a wake-up, so that the caller checks the state.
            Ok([false, true]) | Err(_) => ShimEvent::Woken,
        }
    }

    /// Tells the shim to stop its step: TERM, grace, KILL.
    pub fn stop(&self) {
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), Signal::SIGTERM as i32);
    }

    /// The result of a shim that has ended.
    pub fn outcome(mut self) -> StepOutcome {
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
        StepOutcome::read(&self.status)
    }
}

/// Starts a program with SIGTERM blocked: a stop request may arrive before the shim is ready for it, and stays pending
/// until then. Otherwise the signal would kill the shim, and the result of the step would be lost.
fn spawn_with_term_blocked(program: &mut Command) -> io::Result<Child> {
    // The program inherits the mask of this thread.
    let before = SigSet::from(Signal::SIGTERM).thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let child = program.spawn();
    before.thread_set_mask()?;
    child
}

/// The extension of the file that exists while a step runs.
pub const STARTED: &str = "begun";

/// The file that exists once the step has started.
pub fn started_marker(status: &Path) -> PathBuf {
    status.with_extension(STARTED)
}

impl StepOutcome {
    /// Reads the status that a shim left at `path`.
    pub fn read(path: &Path) -> Self {
        let status = fs::read(path).ok().and_then(|text| decode::json(&text).ok());
        status.map_or(Self::Lost, Self::Ended)
    }
}

/// The time limit for a shim to end after the processes of its step were killed.
const SHIM_END_TIMEOUT: Duration = Duration::from_secs(30);

/// Kills a step, and waits until its shim, if that still runs, has written the rest of the output to the log.
pub fn kill_step(step: &str, shim: Option<ShimIdentity>, status: &Path, cgroups: &[PathBuf]) {
    let shim = RunningShim::of_step(step, shim, status);
    sweep(step, cgroups);
    if let Some(shim) = shim {
        // `sweep` finds processes by the step's variable and control groups. A child that runs a task of the agent's
        // program lacks the variable and may lack a control group.
        descendants::signal_all(&descendants::below(shim.identity.pid), Signal::SIGKILL);
        shim.stop();
        shim.wait(None, Some(SHIM_END_TIMEOUT));
    }
}

/// Kills the processes of a step whose shim died. Finds them by the step's control groups and by the step's variable in
/// their environment.
pub fn sweep(step: &str, cgroups: &[PathBuf]) {
    sync::try_until(Duration::from_secs(1), Duration::from_millis(20), || {
        let marked = descendants::with_step_variable(step);
        let grouped: Vec<i32> = cgroups.iter().flat_map(|group| descendants::in_group(group)).collect();
        if marked.is_empty() && grouped.is_empty() {
            return Some(());
        }
        for group in cgroups {
            descendants::kill_group(group);
        }
        descendants::signal_all(&marked, Signal::SIGKILL);
        None
    });
    descendants::remove_groups(cgroups);
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    /// A process that looks like a shim in the process list.
    struct Impostor(Child);

    impl Impostor {
        fn start(user: Option<u32>) -> Self {
            let mut command = Command::new("sleep");
            command.arg0("mayfly").args(["600"]);
            if let Some(user) = user {
                command.uid(user);
            }
            Self(command.spawn().expect("start the process"))
        }

        fn pid(&self) -> i32 {
            self.0.id().cast_signed()
        }
    }

    impl Drop for Impostor {
        fn drop(&mut self) {
            // The shell also has a child process.
            let _ = nix::sys::signal::killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_stop_request_stays_pending_until_the_shim_is_ready_for_it() {
        let mut command = Command::new("sleep");
        let mut program = spawn_with_term_blocked(command.arg("600")).expect("start the process");
        let pid = Pid::from_raw(program.id().cast_signed());
        nix::sys::signal::kill(pid, Signal::SIGTERM).expect("send the signal");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process must run");
        let mask = |name: &str| {
            let bits = status.lines().find_map(|line| line.strip_prefix(name)).expect("a set of signals");
            u64::from_str_radix(bits.trim(), 16).expect("a number")
        };
        let term = 1 << (Signal::SIGTERM as i32 - 1);
        assert_eq!((mask("SigBlk:") & term, mask("ShdPnd:") & term), (term, term));
        let own = SigSet::thread_get_mask().expect("the mask of this thread");
        assert!(!own.contains(Signal::SIGTERM), "this thread still receives the signal");
        program.kill().and_then(|()| program.wait()).expect("end the process");
    }

    #[test]
    fn only_the_program_that_was_started_is_adopted() {
        let impostor = Impostor::start(None);
        let status = Path::new("/nonexistent");
        let identity = ShimIdentity::of_process(impostor.pid()).expect("the process must run");
        // A recorded process is recognized if every field of its record matches.
        assert!(RunningShim::adopt(identity, status).is_some());
        let (device, inode) = identity.program.expect("a program");
        for other in [
            ShimIdentity { start_time: identity.start_time + 1, ..identity },
            ShimIdentity { program: Some((device, inode + 1)), ..identity },
            // A journal of an older version does not name the program.
            ShimIdentity { program: None, ..identity },
        ] {
            assert!(RunningShim::adopt(other, status).is_none(), "{other:?}");
        }
    }

    #[test]
    fn a_process_of_another_user_is_no_shim() {
        if !Uid::effective().is_root() {
            return;
        }
        let impostor = Impostor::start(Some(65_534));
        // Until the process has changed its user, it counts as a process of the agent.
        while sys::users_of(impostor.pid()).is_some_and(|users| users[0] == 0) {
            std::thread::yield_now();
        }
        let identity = ShimIdentity::of_process(impostor.pid()).expect("the process must run");
        assert!(RunningShim::adopt(identity, Path::new("/nonexistent")).is_none());
    }

    #[test]
    fn a_process_with_the_arguments_of_a_shim_is_not_found() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("shim"), "while :; do sleep 60; done\n").expect("write the file");
        let step = format!("step-{}", Pid::this());
        let mut command = Command::new("sh");
        command.args(["shim", &step]).current_dir(&directory).process_group(0);
        let _impostor = Impostor(command.spawn().expect("start the process"));
        let looks_like_it = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == step.as_bytes())
        };
        while descendants::all_pids().find(looks_like_it).is_none() {
            std::thread::yield_now();
        }
        assert!(RunningShim::find(&step, Path::new("/nonexistent")).is_none());
    }

    #[test]
    fn a_journal_of_an_older_version_is_read() {
        let identity: ShimIdentity = decode::json(br#"{"pid":7,"start_time":9}"#).expect("must be JSON");
        assert_eq!(identity, ShimIdentity { pid: 7, start_time: 9, program: None });
    }
}
