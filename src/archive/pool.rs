//! Threads that compress, each with its own compressor, while one archive is written.

use std::io;
use std::sync::{Mutex, mpsc};
use std::thread;

use super::compress::{BLOCK, Codec, Compressor};
use crate::sync;

/// More threads would use more memory, but disk or network would not be faster.
const MAX_WORKERS: usize = 8;

/// A unit of work.
type Task<'a> = Box<dyn FnOnce(&mut Compressor) + Send + 'a>;

pub struct WorkerPool<'a> {
    tasks: mpsc::Sender<Task<'a>>,
    workers: usize,
}

/// A pending result.
pub struct PendingResult<T>(mpsc::Receiver<T>);

impl<'a> WorkerPool<'a> {
    /// Submits work to a thread. The caller limits the amount of work in progress.
    pub fn submit<T: Send + 'a>(&self, work: impl FnOnce(&mut Compressor) -> T + Send + 'a) -> PendingResult<T> {
        let (done, pending) = mpsc::sync_channel(1);
        let task: Task<'a> = Box::new(move |compressor| {
            // The receiver is gone if the caller abandoned the archive.
            let _ = done.send(work(compressor));
        });
        // Sending fails only if all threads have ended. Then `wait` returns an error.
        let _ = self.tasks.send(task);
        PendingResult(pending)
    }

    /// How many units of work to keep in progress so that no thread is idle; fewer if they are large, to limit memory.
    pub fn max_in_progress(&self, unit_size: usize) -> usize {
        if unit_size > BLOCK { self.workers + 1 } else { 2 * self.workers + 2 }
    }
}

impl<T> PendingResult<T> {
    /// Waits for the result.
    pub fn wait(self) -> io::Result<T> {
        self.0.recv().map_err(|_| io::Error::other("a compression thread has ended"))
    }
}

/// The stack of a thread that compresses, in bytes.
const STACK_BYTES: usize = 1 << 20;

/// Runs `body` with one thread per core.
pub fn with_pool<'a, R>(method: Codec, body: impl FnOnce(&WorkerPool<'a>) -> io::Result<R>) -> io::Result<R> {
    let workers = thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_WORKERS));
    let (tasks, queue) = mpsc::channel::<Task<'a>>();
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        for n in 0..workers {
            let (queue, mut compressor) = (&queue, Compressor::new(method)?);
            sync::spawn_scoped(scope, format!("compress-{n}"), STACK_BYTES, move || {
                while let Some(task) = next_task(queue) {
                    task(&mut compressor);
                }
            })?;
        }
        // Dropping the pool ends the threads.
        let pool = WorkerPool { tasks, workers };
        body(&pool)
    })
}

fn next_task<'a>(queue: &Mutex<mpsc::Receiver<Task<'a>>>) -> Option<Task<'a>> {
    queue.lock().ok()?.recv().ok()
}
