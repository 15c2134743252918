//! Threads that compress, each with a compressor of its own, for as long as one archive is being written.

use std::io;
use std::sync::{Mutex, mpsc};
use std::thread;

use super::compress::{BLOCK, Compressor, Method};

/// More threads than this bring no speed that a disk or network could use, but memory.
const WORKERS_MAX: usize = 8;

type Job<'a> = Box<dyn FnOnce(&mut Compressor) + Send + 'a>;

/// A handle to the threads.
pub struct Pool<'a> {
    jobs: mpsc::Sender<Job<'a>>,
    workers: usize,
}

/// A result that is on its way.
pub struct Pending<T>(mpsc::Receiver<T>);

impl<'a> Pool<'a> {
    /// Has a thread do some work. Whoever submits bounds how much is under way.
    pub fn submit<T: Send + 'a>(&self, work: impl FnOnce(&mut Compressor) -> T + Send + 'a) -> Pending<T> {
        let (done, pending) = mpsc::sync_channel(1);
        let job: Job<'a> = Box::new(move |compressor| {
            // Nobody waits any more when the archive was given up.
            let _ = done.send(work(compressor));
        });
        // Fails only when every thread is gone; then `wait` says so.
        let _ = self.jobs.send(job);
        Pending(pending)
    }

    /// How many pieces of work to keep under way so that no thread idles; of large pieces fewer, for the sake of memory.
    pub fn depth(&self, size: usize) -> usize {
        if size > BLOCK { self.workers + 1 } else { 2 * self.workers + 2 }
    }
}

impl<T> Pending<T> {
    /// Waits for the result.
    pub fn wait(self) -> io::Result<T> {
        self.0.recv().map_err(|_| io::Error::other("a compressing thread is gone"))
    }
}

/// Runs `body` with one thread for each core.
pub fn with_pool<'a, R>(method: Method, body: impl FnOnce(&Pool<'a>) -> io::Result<R>) -> io::Result<R> {
    let workers = thread::available_parallelism().map_or(1, |cores| cores.get().min(WORKERS_MAX));
    let (jobs, queue) = mpsc::channel::<Job<'a>>();
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        for n in 0..workers {
            let (queue, mut compressor) = (&queue, Compressor::new(method)?);
            thread::Builder::new().name(format!("compress-{n}")).spawn_scoped(scope, move || {
                while let Some(job) = next(queue) {
                    job(&mut compressor);
                }
            })?;
        }
        // Dropping the pool ends the threads.
        let pool = Pool { jobs, workers };
        body(&pool)
    })
}

fn next<'a>(queue: &Mutex<mpsc::Receiver<Job<'a>>>) -> Option<Job<'a>> {
    queue.lock().ok()?.recv().ok()
}
