//! The mark of leaving: from it on no job is asked for, over restarts too. Each step of the way is marked before it is
//! taken.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::write_whole;
use crate::decode;
use crate::instance::Identity;

/// Why an instance goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
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

impl Reason {
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
pub enum Phase {
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
pub struct Mark {
    identity: Identity,
    /// Why.
    pub reason: Reason,
    /// Its cloud takes it, or was said to: its place must not be given up with it.
    pub taken: bool,
    /// Its group ends it, whoever wanted that.
    pub ended: bool,
    /// How far.
    pub phase: Phase,
    /// When it was taken off its runners, in nanoseconds of `CLOCK_BOOTTIME`.
    pub unregistered: Option<u64>,
}

impl Mark {
    /// An instance that begins to leave.
    pub fn new(identity: &Identity, reason: Reason) -> Self {
        let taken = matches!(reason, Reason::Rebalance | Reason::Interruption);
        let ended = reason == Reason::Terminated;
        Self { identity: identity.clone(), reason, taken, ended, phase: Phase::Draining, unregistered: None }
    }

    /// The mark of this instance, if there is one; that of another one (a used image) is thrown away. In a later boot
    /// the clock of [`Mark::unregistered`] has begun anew.
    pub fn load(state: &Path, identity: &Identity) -> Option<(Self, Boot)> {
        let mut mark: Self = decode::json(&fs::read(path(state)).ok()?).ok()?;
        if mark.identity.instance != identity.instance {
            log::info!("discarding the shutdown state of another machine");
            Self::remove(state);
            return None;
        }
        let boot = if mark.identity.boot == identity.boot { Boot::Same } else { Boot::Later };
        if boot == Boot::Later {
            mark.unregistered = None;
            mark.identity = identity.clone();
        }
        Some((mark, boot))
    }

    /// Brings it to the disk, for a loss of power too. A disk that is full or broken must not keep the instance alive:
    /// that is only said.
    pub fn save(&self, state: &Path) {
        if let Err(error) = self.try_save(state) {
            log::error!("cannot write the shutdown state; shutting down without it error={error}");
        }
    }

    fn try_save(&self, state: &Path) -> io::Result<()> {
        write_whole(&path(state), &serde_json::to_vec(self)?)?;
        File::open(path(state))?.sync_all()?;
        File::open(state)?.sync_all()
    }

    /// Takes it away: the instance works.
    pub fn remove(state: &Path) {
        match fs::remove_file(path(state)) {
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
pub fn path(state: &Path) -> PathBuf {
    state.join("leaving.json")
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
        let state = directory.path();
        assert_eq!(Mark::load(state, &identity("i-1", "b-1")), None);
        let mut mark = Mark::new(&identity("i-1", "b-1"), Reason::Idle);
        mark.unregistered = Some(7);
        mark.save(state);
        assert_eq!(Mark::load(state, &identity("i-1", "b-1")), Some((mark.clone(), Boot::Same)));
        let (later, boot) = Mark::load(state, &identity("i-1", "b-2")).expect("a mark");
        assert_eq!((later.unregistered, later.reason, boot), (None, Reason::Idle, Boot::Later));
        Mark::remove(state);
        assert_eq!(Mark::load(state, &identity("i-1", "b-1")), None);
    }

    #[test]
    fn of_another_instance_is_thrown_away() {
        let directory = tempfile::tempdir().expect("a directory");
        Mark::new(&identity("i-1", "b-1"), Reason::MaxBuilds).save(directory.path());
        assert_eq!(Mark::load(directory.path(), &identity("i-2", "b-1")), None);
        assert!(!path(directory.path()).exists());
    }

    #[test]
    fn what_cannot_be_read_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(path(directory.path()), "{\"reason\":").expect("written");
        assert_eq!(Mark::load(directory.path(), &identity("i-1", "b-1")), None);
    }
}
