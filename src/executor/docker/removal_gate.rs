//! Separates the removal of unused objects of an engine from the preparation of containers: while a job prepares its
//! containers, no object is removed, and a job that begins to prepare waits for a removal in progress.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::sync;

/// A record of objects, and the jobs and the removal that use these objects.
#[derive(Default)]
pub struct RemovalGate<T> {
    state: Mutex<Gated<T>>,
    changed: Condvar,
}

/// The locked record.
#[derive(Default)]
pub struct Gated<T> {
    record: T,
    /// The number of jobs that prepare their containers.
    preparing: u32,
    /// Whether an object is being removed.
    removing: bool,
}

/// A job that prepares its containers. The agent removes no object until this value is dropped.
pub struct Preparing<T>(Arc<RemovalGate<T>>);

impl<T> RemovalGate<T> {
    pub fn new(record: T) -> Arc<Self> {
        let state = Mutex::new(Gated { record, preparing: 0, removing: false });
        Arc::new(Self { state, changed: Condvar::new() })
    }

    /// The record, locked.
    pub fn lock(&self) -> MutexGuard<'_, Gated<T>> {
        sync::lock(&self.state)
    }

    /// Prevents removals until the result is dropped. Waits for a removal in progress.
    pub fn prepare(self: &Arc<Self>) -> Preparing<T> {
        let mut state = self.lock();
        while state.removing {
            state = sync::wait(&self.changed, state);
        }
        state.preparing += 1;
        Preparing(Arc::clone(self))
    }

    /// Removes an object, unless a job prepares its containers or `is_due` is false. Calls `remove` without the lock,
    /// and `settle` to update the record with the result. Returns false if it did not call `remove`.
    pub fn remove<R>(
        &self,
        is_due: impl FnOnce(&T) -> bool,
        remove: impl FnOnce() -> R,
        settle: impl FnOnce(&mut T, R),
    ) -> bool {
        {
            let mut state = self.lock();
            if state.preparing > 0 || !is_due(&state.record) {
                return false;
            }
            state.removing = true;
        }
        let result = remove();
        let mut state = self.lock();
        state.removing = false;
        settle(&mut state.record, result);
        drop(state);
        self.changed.notify_all();
        true
    }
}

impl<T> Drop for Preparing<T> {
    fn drop(&mut self) {
        self.0.lock().preparing -= 1;
    }
}

impl<T> Deref for Gated<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.record
    }
}

impl<T> DerefMut for Gated<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.record
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn nothing_is_removed_while_a_job_prepares_and_a_job_waits_for_a_removal() {
        let gate = RemovalGate::new(0);
        let preparing = gate.prepare();
        let removed = |gate: &RemovalGate<u32>| gate.remove(|_| true, || 1, |record, result| *record += result);
        assert!(!removed(&gate), "a job prepares its containers");
        drop(preparing);
        assert!(!gate.remove(|_| false, || (), |_, ()| ()), "not due");
        assert!(removed(&gate));
        assert_eq!(**gate.lock(), 1);

        let (begun, has_begun) = mpsc::channel();
        let (finish, may_finish) = mpsc::channel::<()>();
        let removing = Arc::clone(&gate);
        let remover = thread::spawn(move || {
            let wait = || {
                begun.send(()).expect("the receiver must exist");
                may_finish.recv().expect("the test must let the removal end");
            };
            removing.remove(|_| true, wait, |record, ()| *record = 2)
        });
        has_begun.recv().expect("the removal must begin");
        let waiting = Arc::clone(&gate);
        let job = thread::spawn(move || {
            let _preparing = waiting.prepare();
            **waiting.lock()
        });
        finish.send(()).expect("the receiver must exist");
        assert!(remover.join().expect("the thread must not panic"));
        assert_eq!(
            job.join().expect("the thread must not panic"),
            2,
            "the job began to prepare before the removal ended"
        );
    }
}
