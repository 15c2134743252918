//! The mark of leaving while it is in use: written by the thread that leaves and by the main loop, which hears what is
//! coming in the meantime.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::instance::Capacity;
use crate::journal::leaving::{Mark, Phase, Reason};

/// The mark of this instance.
pub struct Marker {
    state: PathBuf,
    mark: Mutex<Mark>,
    changed: Condvar,
}

impl Marker {
    /// Writes the mark.
    pub fn begin(state: &Path, mark: Mark) -> Self {
        mark.save(state);
        Self { state: state.to_owned(), mark: Mutex::new(mark), changed: Condvar::new() }
    }

    /// What it says now.
    pub fn read(&self) -> Mark {
        self.lock().clone()
    }

    /// A step is going to be taken: that is written first.
    pub fn enter(&self, phase: Phase) {
        self.change(|mark| mark.phase = phase);
    }

    /// The instance was taken off its runners, at this time of `CLOCK_BOOTTIME`.
    pub fn unregistered(&self, at: u64) {
        self.change(|mark| {
            mark.unregistered.get_or_insert(at);
        });
    }

    /// Something more has come over the instance.
    pub fn hear(&self, reason: Reason) {
        self.change(|mark| match reason {
            Reason::Rebalance => mark.taken = true,
            Reason::Interruption | Reason::Stop => {
                mark.taken = true;
                // Its own reasons count no more, unless something came of them already.
                if mark.phase < Phase::Ending {
                    mark.reason = reason;
                }
            }
            Reason::Terminated => mark.ended = true,
            Reason::Idle | Reason::MaxBuilds | Reason::MaxAge | Reason::Unfit | Reason::NoRunner => {}
        });
    }

    /// What becomes of the group's size: only an instance that nobody missed gives its place up.
    pub fn capacity(&self) -> Capacity {
        let mark = self.lock();
        match mark.reason {
            Reason::Idle if !mark.taken => Capacity::Decrement,
            _ => Capacity::Keep,
        }
    }

    /// Whether an instance that its group does not let go works on: not when something else takes it.
    pub fn is_needed(&self) -> bool {
        let mark = self.read();
        mark.reason == Reason::Idle && !mark.taken && !mark.ended
    }

    /// Waits until the group ends the instance; false when it did not for that long.
    pub fn wait_for_the_end(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut mark = self.lock();
        while !mark.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            mark = self.changed.wait_timeout(mark, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn change(&self, change: impl FnOnce(&mut Mark)) {
        let mut mark = self.lock();
        let before = mark.clone();
        change(&mut mark);
        if *mark != before {
            mark.save(&self.state);
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Mark> {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
