//! The desired capacity of a group that the manager set last. A number that another client sets becomes the new one.

use std::time::Duration;

use super::plan::Note;
use crate::manager::engine::Group;

/// For this long after the manager's call, the engine may still report the previous desired capacity. A different
/// number after this time was set by another client.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(15);

/// For this long after a failed call, the group that the planner sees may be older than the effect of the call: the
/// scaler uses a list for 150 s.
const FAILED_CALL_TIMEOUT: Duration = Duration::from_secs(3 * 60);

/// The desired capacity as far as the manager knows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct DesiredCapacity {
    /// The manager's last call; `None` before the first read of the group.
    last_set: Option<LastSet>,
    /// The time of a later call that failed. It may have had an effect, because the response can be lost.
    failed_call_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct LastSet {
    instances: u32,
    at: Duration,
}

impl DesiredCapacity {
    /// Records that the manager set the desired capacity.
    pub fn set(&mut self, instances: u32, now: Duration) {
        *self = Self { last_set: Some(LastSet { instances, at: now }), failed_call_at: None };
    }

    /// Records that the termination of an instance has decremented the desired capacity.
    pub fn decrement(&mut self, now: Duration) {
        if let Some(last) = self.last_set {
            self.set(last.instances.saturating_sub(1), now);
        }
    }

    /// Records that a call that changes the desired capacity failed.
    pub fn record_failed_call(&mut self, now: Duration) {
        self.failed_call_at = Some(now);
    }

    /// The desired capacity of the group. The engine's response may be older than the manager's last call.
    pub fn current(&self, group: &Group, now: Duration) -> u32 {
        match self.last_set {
            Some(last) if last.is_settling(now) => last.instances,
            _ => group.desired,
        }
    }

    /// Adopts a desired capacity that the manager did not set. Returns a warning if another client set it.
    pub fn adopt(&mut self, group: &Group, now: Duration) -> Option<Note> {
        let mut warning = None;
        match self.last_set {
            Some(last) if last.is_settling(now) => return None,
            Some(last) if last.instances == group.desired => {
                // The failed call would show its effect by now, so it had none.
                self.failed_call_at = self.failed_call_at.filter(|at| now.saturating_sub(*at) < FAILED_CALL_TIMEOUT);
                return None;
            }
            Some(last) if !group.desired_is_counted && self.failed_call_at.is_none() => {
                warning = Some(Note::Warning(format!(
                    "another client changed the desired capacity of {} from {} to {}; the manager adopts it. Let only the \
                     manager set it",
                    group.name, last.instances, group.desired
                )));
            }
            // A call whose response was lost has changed the number. If it is counted, it also changes when an instance
            // ends without a call of the manager.
            Some(_) | None => {}
        }
        self.set(group.desired, now);
        warning
    }
}

impl LastSet {
    fn is_settling(self, now: Duration) -> bool {
        now.saturating_sub(self.at) < SETTLE_TIMEOUT
    }
}
