//! Wakes several waiting threads after a change of the state.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sync;

/// Counts changes.
#[derive(Default)]
pub struct Bell {
    count: Mutex<u64>,
    rung: Condvar,
}

impl Bell {
    /// Counts a change, and wakes the waiting threads.
    pub fn ring(&self) {
        let mut count = sync::lock(&self.count);
        *count = count.wrapping_add(1);
        drop(count);
        self.rung.notify_all();
    }

    /// The number of changes so far. A thread reads it before it reads the state, and then waits for a higher number.
    pub fn count(&self) -> u64 {
        *sync::lock(&self.count)
    }

    /// Waits until there are more changes than `seen`, at most for `timeout`. Returns the number of changes.
    pub fn wait_past(&self, seen: u64, timeout: Duration) -> u64 {
        let until = Instant::now() + timeout;
        let mut count = sync::lock(&self.count);
        while *count == seen {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            count = self.rung.wait_timeout(count, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *count
    }
}
