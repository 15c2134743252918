//! Before each poll, checks whether this machine can run the jobs of a runner. A machine that fails every job within a
//! second would otherwise drain the queue of a whole fleet.

mod check;
mod status;
mod streaks;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use check::{ENGINE_TIMEOUT, FitnessCheck, Requirements, ScriptRunner, check_git};
pub use status::FitnessStatus;
pub use streaks::FailureStreaks;

/// Interval between two checks of an unfit machine.
pub const RECHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The reason why a machine is unfit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// A file system has too little free space.
    Space { what: &'static str, path: PathBuf, free: u64, wanted: u64 },
    /// A file system has too few free inodes.
    Inodes { what: &'static str, path: PathBuf, free: u64, wanted: u64 },
    /// A file system is mounted read-only, for example after an error of its disk.
    ReadOnly { what: &'static str, path: PathBuf },
    /// The container engine does not answer. The text contains the reason and what to do.
    Engine(String),
    /// The user of the jobs does not exist.
    User(String),
    /// The shell is not installed.
    Shell(String),
    /// git is not installed or does not run.
    Git(String),
    /// Too many jobs in a row failed with `runner_system_failure`.
    Failures { count: u32, pause: Duration },
    /// The readiness commands have not succeeded within their timeout.
    NotReady(String),
}

impl Unfit {
    /// The reason, as a label for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Space { .. } => "disk_space",
            Self::Inodes { .. } => "inodes",
            Self::ReadOnly { .. } => "read_only",
            Self::Engine(_) => "container_engine",
            Self::User(_) => "user",
            Self::Shell(_) => "shell",
            Self::Git(_) => "git",
            Self::Failures { .. } => "system_failures",
            Self::NotReady(_) => "not_ready",
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Space { what, path, free, wanted } => write!(
                f,
                "{what} {} has {free} bytes free, but jobs need {wanted}; free some space, or set `min_free_space` below \
                 [mayfly]",
                path.display()
            ),
            Self::Inodes { what, path, free, wanted } => write!(
                f,
                "{what} {} has {free} inodes free, but jobs need {wanted}; remove files, or set `min_free_inodes` below \
                 [mayfly]",
                path.display()
            ),
            Self::ReadOnly { what, path } => write!(
                f,
                "{what} {} is on a file system that is mounted read-only; look for disk errors (dmesg), or mount it \
                 writable",
                path.display()
            ),
            Self::Engine(why) => f.write_str(why),
            Self::User(why) => write!(f, "{why}; create it, or set `user`"),
            Self::Shell(why) => write!(f, "{why}; install it, or correct `shell` below [[runners]]"),
            Self::Git(why) => write!(f, "{why}; install git, or correct the PATH of the agent"),
            Self::Failures { count, pause } => write!(
                f,
                "{count} jobs in a row failed with runner_system_failure; polling is paused for {} seconds; the logs of those \
                 jobs name the cause",
                pause.as_secs()
            ),
            Self::NotReady(why) => write!(f, "the machine is not ready for jobs: {why}"),
        }
    }
}
