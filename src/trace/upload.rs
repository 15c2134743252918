//! Uploads the spool to GitLab: parts at the server's interval while the job runs, then the rest and the final state. A
//! part that fills a whole request costs the server the same at any time, so the uploader sends such a part without
//! waiting for the interval.
//!
//! The spool is the only buffer. So memory does not depend on the size of the log or the length of an outage, and any
//! offset can be sent again until the end.

mod ending;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::checksum::Checksum;
use super::spool::settled_size;
use crate::coordinator::{
    Coordinator, JobHandle, JobState, JobStatus, TraceKind, TraceOutcome, UpdateOutcome, UpdateReply,
};
use crate::sync;
use crate::sys;

/// The largest part of the log in one request (GitLab Runner API).
const CHUNK: usize = 1 << 20;
/// After this time without a request, the uploader sends a keepalive for the job.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// After a write to the spool, the uploader waits this long before it reads: one read for many lines.
const GATHER: Duration = Duration::from_millis(50);
/// The spool of a job that ends within this time is not watched: removing an inotify watch takes the kernel longer than
/// some jobs take.
const SHORT: Duration = Duration::from_millis(200);
/// The first delay between attempts to send the final state.
const BACK_OFF: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub struct UploadOptions {
    pub kind: TraceKind,
    /// The offset to start from: 0, or after a restart the acknowledged size.
    pub offset: u64,
    /// The number of attempts to send the final state (`job_status_final_update_retry_limit`); network failures do not
    /// count.
    pub final_report_attempts: u32,
}

/// The result of sending the final state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// GitLab has the state and the log.
    Delivered,
    /// GitLab has no such running job any more.
    Gone,
    /// The uploader could not deliver the state within the time in which GitLab accepts it, or the delivery was
    /// abandoned ([`Uploader::abandoner`]).
    GivenUp,
}

/// The thread that uploads one job's log.
pub struct Uploader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Delivery>>,
}

struct Shared {
    /// The final state, when it is known.
    ending: Mutex<Option<JobState>>,
    abandoned: AtomicBool,
    acknowledged: AtomicU64,
    bell: EventFd,
}

impl Shared {
    fn new(offset: u64) -> io::Result<Self> {
        Ok(Self {
            ending: Mutex::new(None),
            abandoned: AtomicBool::new(false),
            acknowledged: AtomicU64::new(offset),
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }
}

impl Uploader {
    /// Starts to upload the spool at `path`. `on_status` is called for each change of the job's status on the server.
    /// Fails if the spool cannot be opened or the thread cannot be started.
    pub fn start(
        coordinator: Arc<dyn Coordinator>,
        job: JobHandle,
        path: &Path,
        options: UploadOptions,
        on_status: Box<dyn Fn(JobStatus) + Send>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(options.offset)?);
        let upload = Upload::new(coordinator, job, path, options, on_status, Arc::clone(&shared))?;
        let thread = sync::spawn(format!("trace-{}", upload.job.id), 256 * 1024, move || upload.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sends the final state, and waits until GitLab has the state and the whole log.
    pub fn finish(mut self, state: JobState) -> Delivery {
        *sync::lock(&self.shared.ending) = Some(state);
        self.ring();
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(Delivery::GivenUp)
    }

    /// Returns a function with which another thread abandons the delivery.
    pub fn abandoner(&self) -> impl Fn() + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || {
            shared.abandoned.store(true, Ordering::SeqCst);
            let _ = shared.bell.write(1);
        }
    }

    /// Returns a function that returns the number of bytes of the log that GitLab has acknowledged.
    pub fn acknowledged(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.acknowledged.load(Ordering::Relaxed)
    }

    fn ring(&self) {
        // If the counter is full, the event is signalled already.
        let _ = self.shared.bell.write(1);
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shared.abandoned.store(true, Ordering::SeqCst);
            self.ring();
            let _ = thread.join();
        }
    }
}

fn follow(path: &Path) -> io::Result<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(path, AddWatchFlags::IN_MODIFY)?;
    Ok(inotify)
}

struct Upload {
    coordinator: Arc<dyn Coordinator>,
    job: JobHandle,
    spool: File,
    options: UploadOptions,
    on_status: Box<dyn Fn(JobStatus) + Send>,
    last_status: JobStatus,
    shared: Arc<Shared>,
    path: PathBuf,
    /// Reports new output; `None` at first, or if the system has no inotify instances left.
    follow: Option<Inotify>,
    /// Whether the server accepted the last part; if so, the next part is due as soon as the output fills a request.
    in_step: bool,
    /// The acknowledged offset.
    offset: u64,
    checksum: Checksum,
    /// The first `filled` bytes are a part of the log; the rest is free space.
    buffer: Vec<u8>,
    filled: usize,
    interval: Duration,
    back_off: Duration,
    /// When the server last accepted a request.
    heard: Instant,
}

/// The event that ended a wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// The event was signalled: the final state is known, or the upload was abandoned.
    Bell,
    /// The spool was written to.
    Output,
    /// The timeout has passed.
    Not,
}

/// The result of sending a part of the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Sent,
    /// There was nothing to send.
    Empty,
    Failed,
    NotFound,
    Over,
}

impl Upload {
    fn new(
        coordinator: Arc<dyn Coordinator>,
        job: JobHandle,
        path: &Path,
        options: UploadOptions,
        on_status: Box<dyn Fn(JobStatus) + Send>,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        Ok(Self {
            interval: coordinator.first_interval(),
            coordinator,
            job,
            spool: File::open(path)?,
            options,
            on_status,
            last_status: JobStatus::Ongoing,
            shared,
            path: path.to_owned(),
            follow: None,
            in_step: true,
            offset: options.offset,
            checksum: Checksum::default(),
            buffer: Vec::new(),
            filled: 0,
            back_off: BACK_OFF,
            heard: Instant::now(),
        })
    }

    fn run(mut self) -> Delivery {
        while let Some(state) = self.next_tick() {
            match state {
                None => self.tick(),
                Some(ending) => return self.finish(&ending),
            }
        }
        Delivery::GivenUp
    }

    /// Waits for the next update. `Some(Some(state))`: the final state is known. `None`: the upload was abandoned.
    fn next_tick(&mut self) -> Option<Option<JobState>> {
        let ending = self.ending();
        if ending.is_none() {
            self.wait_for_tick();
        }
        if self.is_abandoned() {
            return None;
        }
        Some(ending.or_else(|| self.ending()))
    }

    fn ending(&self) -> Option<JobState> {
        sync::lock(&self.shared.ending).clone()
    }

    fn is_abandoned(&self) -> bool {
        self.shared.abandoned.load(Ordering::SeqCst)
    }

    /// Waits until the interval has passed, the event is signalled, or the output fills a request.
    fn wait_for_tick(&mut self) {
        let until = Instant::now() + self.interval;
        // A short wait needs no inotify watch.
        if self.follow.is_none() {
            if self.wait(self.interval.min(SHORT), None) == Woken::Bell || self.interval <= SHORT {
                return;
            }
            self.follow = follow(&self.path).ok();
            if self.in_step && self.has_whole_piece() {
                return;
            }
        }
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let follow = self.follow.as_ref().filter(|_| self.in_step);
            let due = match self.wait(left, follow) {
                // Gather more output, so that the uploader does not wake for every line; the event ends this wait.
                Woken::Output => self.wait(left.min(GATHER), None) == Woken::Bell || self.has_whole_piece(),
                Woken::Bell | Woken::Not => true,
            };
            if due {
                return;
            }
        }
    }

    /// Waits for `duration`, for the event, or for output that `follow` reports.
    fn wait(&self, duration: Duration, follow: Option<&Inotify>) -> Woken {
        let _ = sys::wait([Some(self.shared.bell.as_fd()), follow.map(Inotify::as_fd)], Some(duration));
        let written = follow.is_some_and(|inotify| inotify.read_events().is_ok());
        match self.shared.bell.read() {
            Ok(_) => Woken::Bell,
            Err(_) if written => Woken::Output,
            Err(_) => Woken::Not,
        }
    }

    /// Sends a part of the log, and all further parts that fill whole requests; or a keepalive. Sends nothing for a job
    /// that has ended.
    fn tick(&mut self) {
        if self.last_status == JobStatus::Finished {
            return;
        }
        let mut sent = self.send_piece();
        while sent == Piece::Sent && !self.is_abandoned() && self.has_whole_piece() {
            sent = self.send_piece();
        }
        self.in_step = matches!(sent, Piece::Sent | Piece::Empty);
        let quiet = self.in_step && self.heard.elapsed() >= KEEP_ALIVE;
        if let Some(reply) = quiet.then(|| self.tell_state(&JobState::Running)).flatten() {
            self.note(&reply);
        }
    }

    /// Whether the unsent output fills a request.
    fn has_whole_piece(&self) -> bool {
        let size = self.spool.metadata().map_or(0, |metadata| metadata.len());
        size.saturating_sub(self.offset) >= CHUNK as u64
    }

    fn send_piece(&mut self) -> Piece {
        let start = self.offset;
        if let Err(error) = self.read_piece(start) {
            log::error!("cannot read the log of the job job={} error={error}", self.job.id);
            return Piece::Failed;
        }
        let piece = &self.buffer[..self.filled];
        if piece.is_empty() {
            return Piece::Empty;
        }
        let reply = self.coordinator.append_trace(&self.job, start, piece, self.options.kind);
        self.interval = reply.interval.unwrap_or(self.interval);
        self.tell(reply.status);
        if reply.status == JobStatus::Finished {
            return Piece::Over;
        }
        match reply.outcome {
            TraceOutcome::Accepted => {
                self.offset = start + self.filled as u64;
                self.shared.acknowledged.store(self.offset, Ordering::Relaxed);
                self.heard = Instant::now();
                Piece::Sent
            }
            TraceOutcome::Resync(size) => {
                self.offset = size;
                Piece::Failed
            }
            TraceOutcome::NotFound => Piece::NotFound,
            TraceOutcome::Failed => Piece::Failed,
        }
    }

    /// Reads up to one part from `start`, ending between characters if possible.
    fn read_piece(&mut self, start: u64) -> io::Result<()> {
        let size = settled_size(&self.spool)?;
        let length = usize::try_from(size.saturating_sub(start)).unwrap_or(CHUNK).min(CHUNK);
        self.filled = 0;
        if self.buffer.len() < length {
            self.buffer.resize(length, 0);
        }
        let piece = &mut self.buffer[..length];
        self.spool.read_exact_at(piece, start)?;
        let more = start + (length as u64) < size;
        let boundary = (length.saturating_sub(4)..length).rev().find(|at| piece[*at] & 0xc0 != 0x80);
        self.filled = boundary.filter(|at| more && *at > 0).unwrap_or(length);
        self.checksum.take(start, &piece[..self.filled]);
        Ok(())
    }

    /// Sends a state with size and checksum of the log; `None` if the log cannot be read.
    fn tell_state(&mut self, state: &JobState) -> Option<UpdateReply> {
        if self.buffer.is_empty() {
            self.buffer.resize(64 * 1024, 0);
        }
        let size = settled_size(&self.spool);
        match size.and_then(|size| self.checksum.summary(&self.spool, size, &mut self.buffer)) {
            Ok(summary) => Some(self.coordinator.update_job(&self.job, state, summary)),
            Err(error) => {
                log::error!("cannot read the log of the job job={} error={error}", self.job.id);
                None
            }
        }
    }

    fn note(&mut self, reply: &UpdateReply) {
        self.interval = reply.interval.unwrap_or(self.interval);
        if reply.outcome == UpdateOutcome::Done {
            self.heard = Instant::now();
        }
        self.tell(reply.status);
    }

    fn tell(&mut self, status: JobStatus) {
        let news = status != self.last_status && status != JobStatus::Ongoing;
        // No status follows the end of the job.
        if news && self.last_status != JobStatus::Finished {
            self.last_status = status;
            (self.on_status)(status);
        }
    }
}
