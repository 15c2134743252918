//! The shutdown state in memory and on disk. The termination thread and the main loop both write it.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::instance::CapacityChange;
use crate::journal::shutdown::{Announced, ShutdownPhase, ShutdownReason, ShutdownState};
use crate::sync;
use crate::sys::BootTime;

/// The shutdown state of this instance.
pub struct ShutdownTracker {
    state_dir: PathBuf,
    state: Mutex<ShutdownState>,
    changed: Condvar,
}

impl ShutdownTracker {
    /// Writes the state to disk.
    pub fn begin(state_dir: &Path, state: ShutdownState) -> Self {
        state.save(state_dir);
        Self { state_dir: state_dir.to_owned(), state: Mutex::new(state), changed: Condvar::new() }
    }

    /// A copy of the current state.
    pub fn state(&self) -> ShutdownState {
        self.lock().clone()
    }

    /// Records a step before it runs.
    pub fn enter_phase(&self, phase: ShutdownPhase) {
        self.update(|state| state.phase = phase);
    }

    /// Records when the runner managers were unregistered.
    pub fn set_unregistered(&self, at: BootTime) {
        self.update(|state| {
            state.unregistered_at.get_or_insert(at);
        });
    }

    /// Records a notice that came during the shutdown.
    pub fn add_reason(&self, reason: ShutdownReason) {
        self.update(|state| match reason {
            ShutdownReason::Rebalance => state.announce(Announced::Interruption),
            ShutdownReason::Interruption | ShutdownReason::Stop => {
                state.announce(Announced::Interruption);
                // The cloud's reason replaces the agent's own until the agent has asked the group to terminate the
                // instance.
                if state.phase < ShutdownPhase::Terminating {
                    state.reason = reason;
                }
            }
            ShutdownReason::Terminated => state.announce(Announced::Termination),
            ShutdownReason::Idle
            | ShutdownReason::MaxBuilds
            | ShutdownReason::MaxAge
            | ShutdownReason::Unfit
            | ShutdownReason::NoRunner
            | ShutdownReason::ManagerRequest
            | ShutdownReason::NoManager => {}
        });
    }

    /// Whether the group replaces the instance: only an idle instance decrements the desired capacity.
    pub fn capacity_change(&self) -> CapacityChange {
        let state = self.lock();
        match state.reason {
            ShutdownReason::Idle if state.announced == Announced::Nothing => CapacityChange::Decrement,
            _ => CapacityChange::Keep,
        }
    }

    /// Whether the agent may resume work when the group refuses to terminate the instance: not if the cloud
    /// interrupts the instance.
    pub fn may_resume_work(&self) -> bool {
        let state = self.state();
        state.reason == ShutdownReason::Idle && state.announced == Announced::Nothing
    }

    /// Waits until the group terminates the instance. Returns false after `timeout`.
    pub fn wait_for_termination(&self, timeout: Duration) -> bool {
        sync::wait_while(&self.changed, self.lock(), timeout, |state| !state.is_terminated()).is_terminated()
    }

    fn update(&self, change: impl FnOnce(&mut ShutdownState)) {
        let mut state = self.lock();
        let before = state.clone();
        change(&mut state);
        if *state != before {
            state.save(&self.state_dir);
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, ShutdownState> {
        sync::lock(&self.state)
    }
}
