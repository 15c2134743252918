//! `concurrent`: the maximum number of jobs of all pools together.

use std::sync::{Arc, Mutex, Weak};

use super::bell::Bell;
use crate::sync;

/// The jobs of all pools.
#[derive(Default)]
pub struct Total {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    most: u32,
    used: u32,
    bells: Vec<Weak<Bell>>,
}

impl Total {
    /// A limit of `most` jobs.
    pub fn new(most: u32) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Inner { most, ..Inner::default() }) })
    }

    /// Sets another limit (reload).
    pub fn set_most(&self, most: u32) {
        self.lock().most = most;
        self.ring();
    }

    /// Registers the bell of a pool, which rings when a place becomes free.
    pub fn join(&self, bell: &Arc<Bell>) {
        self.lock().bells.push(Arc::downgrade(bell));
    }

    /// Reserves a place for one more job. False: the limit is reached.
    pub fn try_take(&self) -> bool {
        let mut inner = self.lock();
        let free = inner.used < inner.most;
        inner.used += u32::from(free);
        free
    }

    /// Reserves places for existing jobs, even above the limit.
    pub fn take(&self, jobs: u32) {
        self.lock().used += jobs;
    }

    /// Whether there are more pools than free places; then no pool may occupy places with waiting polls.
    pub fn is_contended(&self) -> bool {
        let inner = self.lock();
        (inner.most.saturating_sub(inner.used) as usize) + 1 < inner.bells.len()
    }

    /// Releases the place of a job.
    pub fn give(&self) {
        let was_full = {
            let mut inner = self.lock();
            let was_full = inner.used >= inner.most;
            inner.used = inner.used.saturating_sub(1);
            was_full
        };
        if was_full {
            self.ring();
        }
    }

    fn ring(&self) {
        let bells: Vec<Arc<Bell>> = {
            let mut inner = self.lock();
            inner.bells.retain(|bell| bell.strong_count() > 0);
            inner.bells.iter().filter_map(Weak::upgrade).collect()
        };
        bells.iter().for_each(|bell| bell.ring());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        sync::lock(&self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_share_the_room() {
        let total = Total::new(2);
        let bell = Arc::new(Bell::default());
        total.join(&bell);
        assert!(total.try_take() && total.try_take() && !total.try_take());
        let seen = bell.count();
        total.give();
        assert_ne!(bell.count(), seen, "there is room again");
        assert!(total.try_take());
        total.take(1);
        total.give();
        assert!(!total.try_take(), "jobs that were there before count");
    }
}
