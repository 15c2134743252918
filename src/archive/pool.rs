//! Threads that compress, each with its own compressor, while one archive is written.

use std::io;
use std::sync::{Mutex, mpsc};
use std::thread;

use super::compress::{BLOCK, Codec, Compressor};

use crate::sync;

/// More threads would use more memory, but disk or network would not be faster.
const MAX_WORKERS: usize = 8;

type Job<'a> = Box<dyn FnOnce(&mut Compressor) + Send + 'a>;

pub struct WorkerPool<'a> {
    jobs: mpsc::Sender<Job<'a>>,
    workers: usize,
}

/// A pending result.
pub struct PendingResult<T>(mpsc::Receiver<T>);

impl<'a> WorkerPool<'a> {
    /// Submits work to a thread. The caller limits the amount of work in progress.
    pub fn submit<T: Send + 'a>(&self, work: impl FnOnce(&mut Compressor) -> T + Send + 'a) -> PendingResult<T> {
        let (done, pending) = mpsc::sync_channel(1);
        let job: Job<'a> = Box::new(move |compressor| {
            // The receiver is gone if the caller abandoned the archive.
            let _ = done.send(work(compressor));
        });
        // Sending fails only if all threads have ended. Then `wait` returns an error.
        let _ = self.jobs.send(job);
        PendingResult(pending)
    }

    /// How many units of work to keep in progress so that no thread is idle; fewer if they are large, to limit memory.
    pub fn depth(&self, size: usize) -> usize {
        if size > BLOCK { self.workers + 1 } else { 2 * self.workers + 2 }
    }
}

impl<T> PendingResult<T> {
    /// Waits for the result.
    pub fn wait(self) -> io::Result<T> {
        self.0.recv().map_err(|_| io::Error::other("a compression thread has ended"))
    }
}

/// The stack of a thread that compresses.
const STACK: usize = 1 << 20;

/// Runs `body` with one thread per core.
pub fn with_pool<'a, R>(method: Codec, body: impl FnOnce(&WorkerPool<'a>) -> io::Result<R>) -> io::Result<R> {
    let workers = thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_WORKERS));
    let (jobs, queue) = mpsc::channel::<Job<'a>>();
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        for n in 0..workers {
            let (queue, mut compressor) = (&queue, Compressor::new(method)?);
            sync::spawn_scoped(scope, format!("compress-{n}"), STACK, move || {
                while let Some(job) = next(queue) {
                    job(&mut compressor);
                }
            })?;
        }
        // Dropping the pool ends the threads.
        let pool = WorkerPool { jobs, workers };
        body(&pool)
    })
}

fn next<'a>(queue: &Mutex<mpsc::Receiver<Job<'a>>>) -> Option<Job<'a>> {
    queue.lock().ok()?.recv().ok()
}
