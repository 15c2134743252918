//! Scale-in protection: on while there is work, off while there is none; the latest word counts.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::group::Group;
use super::wire::jittered;
use crate::instance::{Refusal, Work};

const STACK: usize = 256 * 1024;

/// What the group is to be told; a thread tells it.
pub struct Protection {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    wanted: Option<Work>,
    /// What the group was told last, as far as that is known.
    told: Option<Work>,
    /// It was said that it cannot be done.
    has_complained: bool,
}

impl Protection {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Condvar::new() })
    }

    /// Starts the thread, which finds out at once what the first call will need: it must be quick then.
    pub fn start(self: &Arc<Self>, group: &Arc<Group>) {
        let (protection, group) = (Arc::clone(self), Arc::clone(group));
        let thread = thread::Builder::new().name("protection".to_owned()).stack_size(STACK);
        let spawned = thread.spawn(move || {
            if let Err(refusal) = group.prepare() {
                log::debug!("the Auto Scaling group is not known yet; retrying {refusal}");
            }
            protection.tell(&group);
        });
        if let Err(error) = spawned {
            log::error!("cannot start the thread for scale-in protection error={error}");
        }
    }

    /// Notes what is wanted and returns at once.
    pub fn want(&self, work: Work) {
        self.lock().wanted = Some(work);
        self.changed.notify_all();
    }

    fn tell(&self, group: &Group) {
        let mut tries = 0;
        loop {
            let work = self.next();
            let outcome = group.protect(work);
            let mut state = self.lock();
            let Err(refusal) = outcome else {
                log::debug!("scale-in protection set work={work:?}");
                *state = State { told: Some(work), has_complained: false, ..*state };
                tries = 0;
                continue;
            };
            state.complain(work, &refusal);
            if !refusal.may_pass() {
                // Another word is another try.
                state.told = Some(work);
                continue;
            }
            // It may have come through all the same.
            state.told = None;
            let same = |state: &mut State| state.wanted == Some(work);
            drop(self.changed.wait_timeout_while(state, jittered(tries), same));
            tries += 1;
        }
    }

    /// Waits for something that the group does not know yet.
    fn next(&self) -> Work {
        let is_told = |state: &mut State| state.wanted.is_none() || state.wanted == state.told;
        let state = self.changed.wait_while(self.lock(), is_told).unwrap_or_else(PoisonError::into_inner);
        state.wanted.unwrap_or(Work::Idle)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Says once that it cannot be done; that an instance on its way out has no protection to lose is no news.
    fn complain(&mut self, work: Work, refusal: &Refusal) {
        let is_leaving = matches!(refusal, Refusal::Denied { code, .. } if code == "ValidationError");
        if work == Work::Idle && is_leaving {
            log::debug!("cannot end scale-in protection {refusal}");
        } else if !std::mem::replace(&mut self.has_complained, true) {
            log::warn!("cannot set scale-in protection; the group may terminate this instance during a job {refusal}");
        }
    }
}
