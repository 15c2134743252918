//! `concurrent`: the maximum number of jobs of all pools together.

use std::sync::{Arc, Mutex, Weak};

use super::bell::Bell;
use crate::sync;

/// The limit, and the number of jobs that use it.
#[derive(Default)]
pub struct JobLimit {
    usage: Mutex<Usage>,
}

#[derive(Default)]
struct Usage {
    limit: u32,
    /// The number of reserved places.
    reserved: u32,
    /// The bells of the pools.
    bells: Vec<Weak<Bell>>,
}

impl JobLimit {
    /// A limit of this number of jobs.
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { usage: Mutex::new(Usage { limit, ..Usage::default() }) })
    }

    /// Sets another limit (reload).
    pub fn set_limit(&self, limit: u32) {
        self.lock().limit = limit;
        self.ring();
    }

    /// Registers the bell of a pool, which rings when a place becomes free.
    pub fn register(&self, bell: &Arc<Bell>) {
        self.lock().bells.push(Arc::downgrade(bell));
    }

    /// Reserves a place for one more job. Returns false if the limit is reached.
    pub fn try_reserve(&self) -> bool {
        let mut usage = self.lock();
        let has_room = usage.reserved < usage.limit;
        usage.reserved += u32::from(has_room);
        has_room
    }

    /// Reserves places for existing jobs, even above the limit.
    pub fn reserve(&self, jobs: u32) {
        self.lock().reserved += jobs;
    }

    /// Whether there are more pools than free places; then no pool may occupy places with waiting polls.
    pub fn is_contended(&self) -> bool {
        let usage = self.lock();
        (usage.limit.saturating_sub(usage.reserved) as usize) + 1 < usage.bells.len()
    }

    /// Releases the place of a job.
    pub fn release(&self) {
        let was_full = {
            let mut usage = self.lock();
            let was_full = usage.reserved >= usage.limit;
            usage.reserved = usage.reserved.saturating_sub(1);
            was_full
        };
        if was_full {
            self.ring();
        }
    }

    fn ring(&self) {
        let bells: Vec<Arc<Bell>> = {
            let mut usage = self.lock();
            usage.bells.retain(|bell| bell.strong_count() > 0);
            usage.bells.iter().filter_map(Weak::upgrade).collect()
        };
        bells.iter().for_each(|bell| bell.ring());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Usage> {
        sync::lock(&self.usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_share_the_room() {
        let limit = JobLimit::new(2);
        let bell = Arc::new(Bell::default());
        limit.register(&bell);
        assert!(limit.try_reserve() && limit.try_reserve() && !limit.try_reserve());
        let seen = bell.count();
        limit.release();
        assert_ne!(bell.count(), seen, "there is room again");
        assert!(limit.try_reserve());
        limit.reserve(1);
        limit.release();
        assert!(!limit.try_reserve(), "existing jobs count");
    }
}
