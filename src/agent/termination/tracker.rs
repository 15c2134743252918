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
    tracked: Mutex<Tracked>,
    changed: Condvar,
}

struct Tracked {
    state: ShutdownState,
    /// Whether a signal has stopped this agent; the next agent resumes the shutdown.
    is_stopped: bool,
}

/// The event that ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitEnd {
    /// The group terminates the instance.
    Terminated,
    /// A signal has stopped the agent.
    Stopped,
    TimedOut,
}

impl ShutdownTracker {
    /// Writes the state to disk.
    pub fn begin(state_dir: &Path, state: ShutdownState) -> Self {
        state.save(state_dir);
        let tracked = Mutex::new(Tracked { state, is_stopped: false });
        Self { state_dir: state_dir.to_owned(), tracked, changed: Condvar::new() }
    }

    /// A copy of the current state.
    pub fn state(&self) -> ShutdownState {
        self.lock().state.clone()
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
            ShutdownReason::Interruption | ShutdownReason::CloudStop => {
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
        let state = self.state();
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

    /// Records that a signal has stopped this agent. A step that only waits ends.
    pub fn stop(&self) {
        self.lock().is_stopped = true;
        self.changed.notify_all();
    }

    /// Waits until the group terminates the instance or a signal stops the agent, at most for `timeout`.
    pub fn wait_for_termination(&self, timeout: Duration) -> WaitEnd {
        let waits = |tracked: &mut Tracked| !tracked.state.is_terminated() && !tracked.is_stopped;
        let tracked = sync::wait_while(&self.changed, self.lock(), timeout, waits);
        match (tracked.state.is_terminated(), tracked.is_stopped) {
            (true, _) => WaitEnd::Terminated,
            (false, true) => WaitEnd::Stopped,
            (false, false) => WaitEnd::TimedOut,
        }
    }

    /// Waits until a signal stops the agent. Returns false after `timeout`.
    pub fn wait_for_stop(&self, timeout: Duration) -> bool {
        sync::wait_while(&self.changed, self.lock(), timeout, |tracked| !tracked.is_stopped).is_stopped
    }

    fn update(&self, change: impl FnOnce(&mut ShutdownState)) {
        let mut tracked = self.lock();
        let before = tracked.state.clone();
        change(&mut tracked.state);
        if tracked.state != before {
            tracked.state.save(&self.state_dir);
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Tracked> {
        sync::lock(&self.tracked)
    }
}
