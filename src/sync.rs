//! Locks, condition variables, threads, and repeated attempts.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// Locks a mutex, even if a thread panicked while it held the lock: the panic ends one job, and the others continue.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `changed` is notified. Ignores a poisoned lock, as [`lock`] does.
pub fn wait<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// As [`wait`], for at most `timeout`.
pub fn wait_timeout<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>, timeout: Duration) -> MutexGuard<'a, T> {
    changed.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
}

/// As [`wait_timeout`], while the condition holds.
pub fn wait_while<'a, T>(
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
    condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    changed.wait_timeout_while(guard, timeout, condition).unwrap_or_else(PoisonError::into_inner).0
}

/// Tells threads to stop, and wakes those that wait for it.
#[derive(Debug, Default)]
pub struct StopSignal {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl StopSignal {
    /// Tells the threads to stop.
    pub fn stop(&self) {
        *lock(&self.is_set) = true;
        self.changed.notify_all();
    }

    /// Whether the threads must stop.
    pub fn is_set(&self) -> bool {
        *lock(&self.is_set)
    }

    /// Waits for the signal, for at most `timeout`. Returns whether the threads must stop.
    pub fn wait(&self, timeout: Duration) -> bool {
        *wait_while(&self.changed, lock(&self.is_set), timeout, |is_set| !*is_set)
    }
}

/// Starts a thread with a stack of `stack` bytes. The kernel shows the first 15 bytes of `name`. Errors: the kernel
/// refuses another thread.
pub fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    stack: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name.into()).stack_size(stack).spawn(work)
}

/// As [`spawn`], for a thread that ends with `scope`.
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: impl Into<String>,
    stack: usize,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    thread::Builder::new().name(name.into()).stack_size(stack).spawn_scoped(scope, work)
}

/// Repeats `attempt` every `interval` until it returns a value, for as long as the process runs.
pub fn try_forever<T>(interval: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        thread::sleep(interval);
    }
}

/// Repeats `attempt` every `interval` until it returns a value: for a state that no event announces. `None` if the next
/// attempt would begin after `timeout`.
pub fn try_until<T>(timeout: Duration, interval: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + timeout;
    loop {
        if let Some(value) = attempt() {
            return Some(value);
        }
        if Instant::now() + interval >= until {
            return None;
        }
        thread::sleep(interval);
    }
}
