//! Locks and threads.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Locks a mutex, even if a thread panicked while it held the lock: the panic ends one job, and the others continue.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
