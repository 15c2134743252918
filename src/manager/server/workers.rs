//! The threads that serve connections: their number follows the work, up to a limit.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::connection::Connection;
use super::request::ServerResponse;
use super::{Shared, Ticket};
use crate::sync;

/// The maximum number of threads: a slow client occupies one for a few seconds.
const THREADS: usize = 64;
/// The time after which an idle thread ends.
const IDLE: Duration = Duration::from_secs(10);
/// Enough for a TLS handshake.
const STACK: usize = 256 * 1024;

/// A task for a worker thread.
pub enum ConnectionTask {
    /// The connection has bytes to read.
    Serve { shared: Arc<Shared>, number: u64, connection: Connection },
    /// The response that the connection waits for is ready.
    Respond { shared: Arc<Shared>, ticket: Ticket, connection: Connection, response: ServerResponse },
}

impl ConnectionTask {
    fn run(self) {
        match self {
            Self::Serve { shared, number, connection } => shared.serve(number, connection),
            Self::Respond { shared, ticket, connection, response } => shared.send(ticket, connection, &response),
        }
    }
}

/// The worker threads and their queue.
#[derive(Default)]
pub struct Workers {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    /// There is a task, or the threads must end.
    work: Condvar,
    /// A thread has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<ConnectionTask>,
    threads: usize,
    idle: usize,
    stopped: bool,
}

impl Workers {
    /// Queues a task.
    pub fn put(&self, task: ConnectionTask) {
        let mut state = self.inner.lock();
        if state.stopped {
            return;
        }
        state.tasks.push_back(task);
        if state.tasks.len() <= state.idle || state.threads >= THREADS {
            self.inner.work.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let inner = Arc::clone(&self.inner);
        if let Err(error) = sync::spawn("agent-request", STACK, move || inner.work()) {
            log::error!("cannot start a thread for agents error={error}");
            self.inner.lock().threads -= 1;
        }
    }

    /// Drops the queued tasks, and waits until the threads have finished their current ones, at most for `timeout`.
    pub fn stop(&self, timeout: Duration) {
        let mut state = self.inner.lock();
        state.stopped = true;
        let tasks = std::mem::take(&mut state.tasks);
        drop(state);
        drop(tasks);
        self.inner.work.notify_all();
        drop(sync::wait_while(&self.inner.ended, self.inner.lock(), timeout, |state| state.threads > 0));
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }

    fn work(&self) {
        while let Some(task) = self.next() {
            // A panic in one request must not end the others.
            let _ = catch_unwind(AssertUnwindSafe(|| task.run()));
        }
    }

    fn next(&self) -> Option<ConnectionTask> {
        let mut state = self.lock();
        state.idle += 1;
        let is_idle = |state: &mut State| state.tasks.is_empty() && !state.stopped;
        let mut state = sync::wait_while(&self.work, state, IDLE, is_idle);
        state.idle -= 1;
        let task = state.tasks.pop_front();
        if task.is_none() {
            state.threads -= 1;
            self.ended.notify_all();
        }
        task
    }
}
