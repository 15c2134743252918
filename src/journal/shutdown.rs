//! The shutdown state on disk: while it exists, no agent polls. Each step is recorded before it runs.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::decode;
use crate::instance::Identity;
use crate::sys::{self, BootTime};

/// Why an instance shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownReason {
    /// The idle timeout has passed.
    Idle,
    /// The agent took `MaxBuilds` jobs.
    MaxBuilds,
    /// The agent has reached its maximum age.
    MaxAge,
    /// The machine was unfit for too long.
    Unfit,
    /// The agent had no usable runner for too long.
    NoRunner,
    /// A manager requested the shutdown, and terminates the instance.
    #[serde(alias = "dismissed")]
    ManagerRequest,
    /// The managers have not answered for too long.
    #[serde(alias = "orphaned")]
    NoManager,
    /// The cloud sent a rebalance recommendation.
    Rebalance,
    /// The cloud interrupts the spot instance.
    Interruption,
    /// The cloud stops the spot instance, and may start it again.
    #[serde(rename = "stop")]
    CloudStop,
    /// The Auto Scaling group terminates the instance.
    Terminated,
}

impl ShutdownReason {
    /// Whether an agent with `leave = "exit"` may start on this machine again after the shutdown: neither the cloud nor
    /// a manager ends the instance.
    pub fn allows_new_start(self) -> bool {
        match self {
            Self::Idle | Self::MaxBuilds | Self::MaxAge | Self::Unfit | Self::NoRunner | Self::Rebalance => true,
            Self::ManagerRequest | Self::NoManager | Self::Interruption | Self::CloudStop | Self::Terminated => false,
        }
    }

    /// The reason, as a word for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle_timeout",
            Self::MaxBuilds => "max_builds",
            Self::MaxAge => "max_age",
            Self::Unfit => "unfit",
            Self::NoRunner => "no_runner",
            Self::ManagerRequest => "manager_request",
            Self::NoManager => "no_manager",
            Self::Rebalance => "rebalance_recommendation",
            Self::Interruption => "spot_interruption",
            Self::CloudStop => "stop",
            Self::Terminated => "terminated",
        }
    }
}

/// The phase of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownPhase {
    /// The agent does not poll, and waits for its jobs.
    Draining,
    /// The agent unregisters its runner managers.
    Unregistering,
    /// The agent runs the action of `leave`.
    #[serde(alias = "ending")]
    Terminating,
    /// The agent powers the machine off.
    PoweringOff,
    /// The shutdown is complete.
    #[serde(alias = "left")]
    ShutDown,
    /// The machine could not be powered off; no step is left.
    #[serde(alias = "stranded")]
    Failed,
}

impl ShutdownPhase {
    /// The name in the log and in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Unregistering => "unregistering",
            Self::Terminating => "terminating",
            Self::PoweringOff => "powering_off",
            Self::ShutDown => "shut_down",
            Self::Failed => "shutdown_failed",
        }
    }
}

/// The cloud's announcement for an instance that shuts down; a later variant replaces an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Announced {
    /// Nothing: the agent shuts the instance down by itself.
    #[default]
    Nothing,
    /// The cloud interrupts the instance, or is likely to: the desired capacity must not be decremented.
    Interruption,
    /// The Auto Scaling group terminates the instance.
    Termination,
}

/// The state of a shutdown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownState {
    identity: Identity,
    pub reason: ShutdownReason,
    /// The cloud's announcement for the instance.
    #[serde(default)]
    pub announced: Announced,
    pub phase: ShutdownPhase,
    /// When the runner managers were unregistered.
    pub unregistered_at: Option<BootTime>,
}

impl ShutdownState {
    /// The state at the beginning of a shutdown.
    pub fn new(identity: &Identity, reason: ShutdownReason) -> Self {
        let announced = match reason {
            ShutdownReason::Rebalance | ShutdownReason::Interruption => Announced::Interruption,
            ShutdownReason::Terminated => Announced::Termination,
            _ => Announced::Nothing,
        };
        Self { identity: identity.clone(), reason, announced, phase: ShutdownPhase::Draining, unregistered_at: None }
    }

    /// Records what the cloud announces.
    pub fn announce(&mut self, announced: Announced) {
        self.announced = self.announced.max(announced);
    }

    /// Whether the Auto Scaling group terminates the instance.
    pub fn is_terminated(&self) -> bool {
        self.announced == Announced::Termination
    }

    /// Loads the state of this instance. The state of another instance, from an image of a used machine, is removed.
    /// After a reboot [`ShutdownState::unregistered_at`] is cleared, because its clock restarts.
    pub fn load(state_dir: &Path, identity: &Identity) -> Option<(Self, Boot)> {
        let mut state: Self = decode::json(&fs::read(path(state_dir)).ok()?).ok()?;
        if state.identity.instance != identity.instance {
            log::info!("discarding the shutdown state of another machine");
            Self::remove(state_dir);
            return None;
        }
        let boot = if state.identity.boot == identity.boot { Boot::Current } else { Boot::Earlier };
        if boot == Boot::Earlier {
            state.unregistered_at = None;
            state.identity = identity.clone();
        }
        Some((state, boot))
    }

    /// Writes the state with fsync, to survive a power loss. A full or broken disk must not keep the instance alive, so
    /// an error is only logged.
    pub fn save(&self, state_dir: &Path) {
        if let Err(error) = self.try_save(state_dir) {
            log::error!("cannot write the shutdown state; shutting down without it error={error}");
        }
    }

    fn try_save(&self, state_dir: &Path) -> io::Result<()> {
        sys::replace_file(&path(state_dir), &serde_json::to_vec(self)?)?;
        File::open(path(state_dir))?.sync_all()?;
        File::open(state_dir)?.sync_all()
    }

    /// Removes the state, so that the agent polls again.
    pub fn remove(state_dir: &Path) {
        match fs::remove_file(path(state_dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::error!("cannot remove the shutdown state error={error}");
            }
            _ => {}
        }
    }
}

/// The boot that wrote a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    Current,
    Earlier,
}

/// Path of the state file.
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
        state.unregistered_at = Some(BootTime::from_nanos(7));
        state.save(state_dir);
        assert_eq!(ShutdownState::load(state_dir, &identity("i-1", "b-1")), Some((state.clone(), Boot::Current)));
        let (later, boot) = ShutdownState::load(state_dir, &identity("i-1", "b-2")).expect("a saved state");
        assert_eq!((later.unregistered_at, later.reason, boot), (None, ShutdownReason::Idle, Boot::Earlier));
        ShutdownState::remove(state_dir);
        assert_eq!(ShutdownState::load(state_dir, &identity("i-1", "b-1")), None);
    }

    #[test]
    fn the_state_of_another_instance_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        ShutdownState::new(&identity("i-1", "b-1"), ShutdownReason::MaxBuilds).save(directory.path());
        assert_eq!(ShutdownState::load(directory.path(), &identity("i-2", "b-1")), None);
        assert!(!path(directory.path()).exists());
    }

    #[test]
    fn an_unreadable_state_is_ignored() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(path(directory.path()), "{\"reason\":").expect("write the file");
        assert_eq!(ShutdownState::load(directory.path(), &identity("i-1", "b-1")), None);
    }
}
