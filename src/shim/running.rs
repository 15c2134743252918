//! A running shim as the agent sees it: waited for, stopped, found again after a restart.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::descendants;
use super::spec::{Spec, Status};
use crate::decode;
use crate::sys;

/// What file work needs of the agent's environment to reach servers as the agent does; scripts get their own.
const CARRIED: [&str; 11] = [
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

/// What names a shim across restarts of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its process number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

/// A shim that runs, or has just ended.
pub struct Running {
    identity: Identity,
    pidfd: OwnedFd,
    /// Ours to reap, unless it was started by an agent before us.
    child: Option<Child>,
    status: PathBuf,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The shim is gone.
    Ended,
    /// The other descriptor became readable.
    Woken,
    /// Neither, for as long as was asked.
    TimedOut,
}

/// How a step came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The shim told.
    Ended(Status),
    /// The shim died without a word: killed, or the machine went down.
    Lost,
}

impl Running {
    /// Starts a shim for a step. Errors: no memory file or process can be made.
    pub fn start(spec: &Spec) -> io::Result<Self> {
        let mut input = File::from(memfd_create(c"step", MFdFlags::MFD_CLOEXEC)?);
        input.write_all(&serde_json::to_vec(spec)?)?;
        input.rewind()?;
        let child = Command::new("/proc/self/exe")
            .args(["shim", &spec.id])
            .env_clear()
            .envs(CARRIED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .stdin(input)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let pid = child.id().cast_signed();
        let pidfd = sys::pidfd_open(pid)?;
        let start_time = sys::start_time(pid).unwrap_or_default();
        let identity = Identity { pid, start_time };
        Ok(Self { identity, pidfd, child: Some(child), status: spec.status.clone() })
    }

    /// Finds a shim again that an agent before us started; `None` when it is gone.
    pub fn adopt(identity: Identity, status: &Path) -> Option<Self> {
        let pidfd = sys::pidfd_open(identity.pid).ok()?;
        // Looked at after the descriptor was opened, so that it is this very process.
        let same = sys::start_time(identity.pid) == Some(identity.start_time);
        same.then(|| Self { identity, pidfd, child: None, status: status.to_owned() })
    }

    /// Finds the shim of a step of which only the name is known: the agent died before it could note the process.
    pub fn find(step: &str, status: &Path) -> Option<Self> {
        descendants::all().find_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let ours = matches!(arguments[..], [_, b"shim", id, ..] if id == step.as_bytes());
            let start_time = sys::start_time(pid).filter(|_| ours)?;
            Self::adopt(Identity { pid, start_time }, status)
        })
    }

    /// What to write into the journal.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Waits until the shim ends, `wake` becomes readable, or `patience` is over.
    pub fn wait(&self, wake: BorrowedFd<'_>, patience: Option<Duration>) -> Event {
        let until = patience.map(|patience| Instant::now() + patience);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            });
            let mut polled = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(wake, PollFlags::POLLIN)];
            match poll(&mut polled, timeout) {
                Ok(0) => return Event::TimedOut,
                Err(Errno::EINTR) => {}
                // A descriptor of ours that cannot be polled: let the caller look for itself.
                Err(_) => return Event::Woken,
                Ok(_) if polled[0].any() == Some(true) => return Event::Ended,
                Ok(_) => return Event::Woken,
            }
        }
    }

    /// Asks the shim to stop its step: TERM, the grace, KILL.
    pub fn stop(&self) {
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), Signal::SIGTERM as i32);
    }

    /// The outcome of a shim that has ended.
    pub fn outcome(mut self) -> Outcome {
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
        Outcome::read(&self.status)
    }
}

/// The file that says that a step has begun.
pub fn begun_mark(status: &Path) -> PathBuf {
    status.with_extension("begun")
}

impl Outcome {
    /// What a shim that is gone has left at `path`.
    pub fn read(path: &Path) -> Self {
        let status = fs::read(path).ok().and_then(|text| decode::json(&text).ok());
        status.map_or(Self::Lost, Self::Ended)
    }
}

/// Ends what a shim that died (or a machine's earlier boot) left of a step: by its control groups and by the marker
/// that its processes carry.
pub fn sweep(step: &str, cgroups: &[PathBuf]) {
    for _ in 0..50 {
        let marked = descendants::marked(step);
        let grouped: Vec<i32> = cgroups.iter().flat_map(|group| descendants::in_group(group)).collect();
        if marked.is_empty() && grouped.is_empty() {
            break;
        }
        for group in cgroups {
            descendants::kill_group(group);
        }
        descendants::signal_all(&marked, Signal::SIGKILL);
        std::thread::sleep(Duration::from_millis(20));
    }
    descendants::remove_groups(cgroups);
}
