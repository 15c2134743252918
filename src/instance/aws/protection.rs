//! Scale-in protection: on while a job runs, off otherwise; the last setting wins.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::group::OwnGroup;
use super::retry::retry_delay;
use crate::instance::{Activity, Refusal};
use crate::sync;

const STACK: usize = 256 * 1024;

/// The wanted protection, which a thread applies.
pub struct Protection {
    state: Mutex<ProtectionState>,
    changed: Condvar,
}

#[derive(Default)]
struct ProtectionState {
    wanted: Option<Activity>,
    /// The last setting that was applied, as far as it is known.
    applied: Option<Activity>,
    /// A failure was logged; further ones are not.
    has_logged_failure: bool,
}

impl Protection {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Condvar::new() })
    }

    /// Starts the thread, which resolves the group and the credentials at once, so that the first call is quick.
    pub fn start(self: &Arc<Self>, group: &Arc<OwnGroup>) {
        let (protection, group) = (Arc::clone(self), Arc::clone(group));
        let spawned = sync::spawn("protection", STACK, move || {
            if let Err(refusal) = group.prepare() {
                log::debug!("cannot find the Auto Scaling group; retrying {refusal}");
            }
            protection.run(&group);
        });
        if let Err(error) = spawned {
            log::error!("cannot start the thread for scale-in protection error={error}");
        }
    }

    /// Sets the wanted protection, without waiting.
    pub fn set_activity(&self, activity: Activity) {
        self.lock().wanted = Some(activity);
        self.changed.notify_all();
    }

    fn run(&self, group: &OwnGroup) {
        let mut tries = 0;
        loop {
            let activity = self.next_activity();
            let outcome = group.protect(activity);
            let mut state = self.lock();
            let Err(refusal) = outcome else {
                log::debug!("scale-in protection set activity={activity:?}");
                *state = ProtectionState { applied: Some(activity), has_logged_failure: false, ..*state };
                tries = 0;
                continue;
            };
            state.log_failure(activity, &refusal);
            if !refusal.is_temporary() {
                // Not retried until the setting changes.
                state.applied = Some(activity);
                continue;
            }
            // The call may have had its effect.
            state.applied = None;
            let same = |state: &mut ProtectionState| state.wanted == Some(activity);
            drop(sync::wait_while(&self.changed, state, retry_delay(tries), same));
            tries += 1;
        }
    }

    /// Waits for a setting that is not applied yet.
    fn next_activity(&self) -> Activity {
        let mut state = self.lock();
        while state.wanted.is_none() || state.wanted == state.applied {
            state = sync::wait(&self.changed, state);
        }
        state.wanted.unwrap_or(Activity::Idle)
    }

    fn lock(&self) -> MutexGuard<'_, ProtectionState> {
        sync::lock(&self.state)
    }
}

impl ProtectionState {
    /// Logs the first failure. A terminating instance cannot lose its protection, so that failure is ignored.
    fn log_failure(&mut self, activity: Activity, refusal: &Refusal) {
        let is_leaving = matches!(refusal, Refusal::Denied { code, .. } if code == "ValidationError");
        if activity == Activity::Idle && is_leaving {
            log::debug!("cannot end scale-in protection {refusal}");
        } else if !std::mem::replace(&mut self.has_logged_failure, true) {
            log::warn!("cannot set scale-in protection; the group may terminate this instance during a job {refusal}");
        }
    }
}
