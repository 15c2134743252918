//! The threads that serve connections: their number follows the work, up to a limit.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::sync;

/// The maximum number of threads: a slow client occupies one for a few seconds.
pub const MAX_THREADS: usize = 64;
/// The time after which an idle thread ends.
const IDLE_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 10_000 });
/// Enough for a TLS handshake.
const STACK: usize = 256 * 1024;

/// A task for a worker thread. A task that is dropped closes its connection.
type Task = Box<dyn FnOnce() + Send>;

/// The worker threads and their queue. One thread always runs, for the tasks for which the system can start no thread.
pub struct Workers {
    queue: Arc<TaskQueue>,
    max_threads: usize,
}

#[derive(Default)]
struct TaskQueue {
    state: Mutex<QueueState>,
    /// There is a task, or the threads must end.
    task_added: Condvar,
    thread_ended: Condvar,
}

#[derive(Default)]
struct QueueState {
    tasks: VecDeque<Task>,
    threads: usize,
    idle_threads: usize,
    stopped: bool,
}

impl Workers {
    /// Starts the first thread. Errors: the system can start no thread.
    pub fn start(max_threads: usize) -> io::Result<Self> {
        let workers = Self { queue: Arc::default(), max_threads };
        workers.queue.lock().threads = 1;
        workers.start_thread()?;
        Ok(workers)
    }

    fn start_thread(&self) -> io::Result<()> {
        let queue = Arc::clone(&self.queue);
        sync::spawn("agent-request", STACK, move || queue.run_tasks()).map(drop)
    }

    /// Queues a task, and starts a thread for it if none is idle.
    pub fn put(&self, task: impl FnOnce() + Send + 'static) {
        let mut state = self.queue.lock();
        if state.stopped {
            return;
        }
        state.tasks.push_back(Box::new(task));
        if state.tasks.len() <= state.idle_threads || state.threads >= self.max_threads {
            self.queue.task_added.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        if let Err(error) = self.start_thread() {
            log::error!("cannot start a thread for agents; their requests wait for another thread error={error}");
            self.queue.lock().threads -= 1;
            self.queue.thread_ended.notify_all();
        }
    }

    /// Drops the queued tasks, and waits until the threads have finished their current ones, at most for `timeout`.
    pub fn stop(&self, timeout: Duration) {
        let mut state = self.queue.lock();
        state.stopped = true;
        let tasks = std::mem::take(&mut state.tasks);
        drop(state);
        drop(tasks);
        self.queue.task_added.notify_all();
        drop(sync::wait_while(&self.queue.thread_ended, self.queue.lock(), timeout, |state| state.threads > 0));
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue.lock().stopped = true;
        self.queue.task_added.notify_all();
    }
}

impl TaskQueue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        sync::lock(&self.state)
    }

    fn run_tasks(&self) {
        while let Some(task) = self.next_task() {
            // A panic in one request must not end the others.
            let _ = catch_unwind(AssertUnwindSafe(task));
        }
    }

    /// The next task; `None` if this thread must end.
    fn next_task(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            state.idle_threads += 1;
            let is_idle = |state: &mut QueueState| state.tasks.is_empty() && !state.stopped;
            state = sync::wait_while(&self.task_added, state, IDLE_TIMEOUT, is_idle);
            state.idle_threads -= 1;
            if let Some(task) = state.tasks.pop_front() {
                return Some(task);
            }
            if state.stopped || state.threads > 1 {
                state.threads -= 1;
                self.thread_ended.notify_all();
                return None;
            }
        }
    }
}
