//! The mark of leaving while it is in use: written by the thread that leaves and by the main loop, which hears what is
//! coming in the meantime.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::instance::CapacityChange;
use crate::journal::shutdown::{ShutdownPhase, ShutdownReason, ShutdownState};

/// The mark of this instance.
pub struct ShutdownTracker {
    state_dir: PathBuf,
    state: Mutex<ShutdownState>,
    changed: Condvar,
}

impl ShutdownTracker {
    /// Writes the mark.
    pub fn begin(state_dir: &Path, state: ShutdownState) -> Self {
        state.save(state_dir);
        Self { state_dir: state_dir.to_owned(), state: Mutex::new(state), changed: Condvar::new() }
    }

    /// What it says now.
    pub fn state(&self) -> ShutdownState {
        self.lock().clone()
    }

    /// A step is going to be taken: that is written first.
    pub fn enter_phase(&self, phase: ShutdownPhase) {
        self.update(|state| state.phase = phase);
    }

    /// The instance was taken off its runners, at this time of `CLOCK_BOOTTIME`.
    pub fn set_unregistered(&self, at: u64) {
        self.update(|state| {
            state.unregistered_at.get_or_insert(at);
        });
    }

    /// Something more has come over the instance.
    pub fn add_reason(&self, reason: ShutdownReason) {
        self.update(|state| match reason {
            ShutdownReason::Rebalance => state.interrupted = true,
            ShutdownReason::Interruption | ShutdownReason::Stop => {
                state.interrupted = true;
                // Its own reasons count no more, unless something came of them already.
                if state.phase < ShutdownPhase::Ending {
                    state.reason = reason;
                }
            }
            ShutdownReason::Terminated => state.terminated = true,
            ShutdownReason::Idle
            | ShutdownReason::MaxBuilds
            | ShutdownReason::MaxAge
            | ShutdownReason::Unfit
            | ShutdownReason::NoRunner => {}
        });
    }

    /// What becomes of the group's size: only an instance that nobody missed gives its place up.
    pub fn capacity_change(&self) -> CapacityChange {
        let state = self.lock();
        match state.reason {
            ShutdownReason::Idle if !state.interrupted => CapacityChange::Decrement,
            _ => CapacityChange::Keep,
        }
    }

    /// Whether an instance that its group does not let go works on: not when something else takes it.
    pub fn may_resume_work(&self) -> bool {
        let state = self.state();
        state.reason == ShutdownReason::Idle && !state.interrupted && !state.terminated
    }

    /// Waits until the group ends the instance; false when it did not for that long.
    pub fn wait_for_termination(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut state = self.lock();
        while !state.terminated {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
