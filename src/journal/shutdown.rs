//! The mark of leaving: from it on no job is asked for, over restarts too. Each step of the way is marked before it is
//! taken.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::replace_file;
use crate::decode;
use crate::instance::Identity;

/// Why an instance goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownReason {
    /// No job came for the idle time-out.
    Idle,
    /// It took MaxBuilds jobs.
    MaxBuilds,
    /// It is as old as it may become.
    MaxAge,
    /// It has been unfit for jobs for too long.
    Unfit,
    /// It has had no runner for too long.
    NoRunner,
    /// Its cloud is likely to take it soon.
    Rebalance,
    /// Its cloud takes it.
    Interruption,
    /// Its cloud stops it, and may start it again.
    Stop,
    /// Its group ends it.
    Terminated,
}

impl ShutdownReason {
    /// The word for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle_timeout",
            Self::MaxBuilds => "max_builds",
            Self::MaxAge => "max_age",
            Self::Unfit => "unfit",
            Self::NoRunner => "no_runner",
            Self::Rebalance => "rebalance_recommendation",
            Self::Interruption => "spot_interruption",
            Self::Stop => "stop",
            Self::Terminated => "terminated",
        }
    }
}

/// How far an instance is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownPhase {
    /// It takes no more jobs, and those that it has are seen to their end.
    Draining,
    /// It is being taken off its runners.
    Unregistering,
    /// Its end is being arranged.
    Ending,
    /// It is being switched off.
    PoweringOff,
    /// Nothing is left to do.
    Left,
    /// It could not even be switched off: nothing is left that could be done.
    Stranded,
}

/// What is known of an instance that leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownState {
    identity: Identity,
    /// Why.
    pub reason: ShutdownReason,
    /// Its cloud takes it, or was said to: its place must not be given up with it.
    pub interrupted: bool,
    /// Its group ends it, whoever wanted that.
    pub terminated: bool,
    /// How far.
    pub phase: ShutdownPhase,
    /// When it was taken off its runners, in nanoseconds of `CLOCK_BOOTTIME`.
    pub unregistered_at: Option<u64>,
}

impl ShutdownState {
    /// An instance that begins to leave.
    pub fn new(identity: &Identity, reason: ShutdownReason) -> Self {
        let taken = matches!(reason, ShutdownReason::Rebalance | ShutdownReason::Interruption);
        let ended = reason == ShutdownReason::Terminated;
        Self {
            identity: identity.clone(),
            reason,
            interrupted: taken,
            terminated: ended,
            phase: ShutdownPhase::Draining,
            unregistered_at: None,
        }
    }

    /// The mark of this instance, if there is one; that of another one (a used image) is thrown away. In a later boot
    /// the clock of [`ShutdownState::unregistered_at`] has begun anew.
    pub fn load(state_dir: &Path, identity: &Identity) -> Option<(Self, Boot)> {
        let mut state: Self = decode::json(&fs::read(path(state_dir)).ok()?).ok()?;
        if state.identity.instance != identity.instance {
            log::info!("discarding the shutdown state of another machine");
            Self::remove(state_dir);
            return None;
        }
        let boot = if state.identity.boot == identity.boot { Boot::Same } else { Boot::Later };
        if boot == Boot::Later {
            state.unregistered_at = None;
            state.identity = identity.clone();
        }
        Some((state, boot))
    }

    /// Brings it to the disk, for a loss of power too. A disk that is full or broken must not keep the instance alive:
    /// that is only said.
    pub fn save(&self, state_dir: &Path) {
        if let Err(error) = self.try_save(state_dir) {
            log::error!("cannot write the shutdown state; shutting down without it error={error}");
        }
    }

    fn try_save(&self, state_dir: &Path) -> io::Result<()> {
        replace_file(&path(state_dir), &serde_json::to_vec(self)?)?;
        File::open(path(state_dir))?.sync_all()?;
        File::open(state_dir)?.sync_all()
    }

    /// Takes it away: the instance works.
    pub fn remove(state_dir: &Path) {
        match fs::remove_file(path(state_dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::error!("cannot remove the shutdown state error={error}");
            }
            _ => {}
        }
    }
}

/// In which boot a mark was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// In the one that wrote it.
    Same,
    /// The machine went down since.
    Later,
}

/// Where it stands.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("leaving.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(instance: &str, boot: &str) -> Identity {
        Identity { instance: instance.to_owned(), boot: boot.to_owned() }
    }

    #[test]
    fn is_found_by_the_instance_that_wrote_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let state_dir = directory.path();
        assert_eq!(ShutdownState::load(state_dir, &identity("i-1", "b-1")), None);
        let mut state = ShutdownState::new(&identity("i-1", "b-1"), ShutdownReason::Idle);
        state.unregistered_at = Some(7);
        state.save(state_dir);
        assert_eq!(ShutdownState::load(state_dir, &identity("i-1", "b-1")), Some((state.clone(), Boot::Same)));
        let (later, boot) = ShutdownState::load(state_dir, &identity("i-1", "b-2")).expect("a mark");
        assert_eq!((later.unregistered_at, later.reason, boot), (None, ShutdownReason::Idle, Boot::Later));
        ShutdownState::remove(state_dir);
        assert_eq!(ShutdownState::load(state_dir, &identity("i-1", "b-1")), None);
    }

    #[test]
    fn of_another_instance_is_thrown_away() {
        let directory = tempfile::tempdir().expect("a directory");
        ShutdownState::new(&identity("i-1", "b-1"), ShutdownReason::MaxBuilds).save(directory.path());
        assert_eq!(ShutdownState::load(directory.path(), &identity("i-2", "b-1")), None);
        assert!(!path(directory.path()).exists());
    }

    #[test]
    fn what_cannot_be_read_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(path(directory.path()), "{\"reason\":").expect("written");
        assert_eq!(ShutdownState::load(directory.path(), &identity("i-1", "b-1")), None);
    }
}
