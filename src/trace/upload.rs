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
use crate::backoff::Backoff;
use crate::coordinator::{
    Coordinator, JobHandle, JobState, JobStatus, OUTAGE_RETRY, TraceKind, TraceOutcome, UpdateOutcome, UpdateReply,
};
use crate::sync;
use crate::sys;

/// The largest part of the log in one request (GitLab Runner API).
const MAX_PART_SIZE: usize = 1 << 20;
/// After this time without a request, the uploader sends a keepalive for the job.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// After a write to the spool, the uploader waits this long before it reads: one read for many lines.
const GATHER_DELAY: Duration = Duration::from_millis(50);
/// The spool is not watched for this time after the start of a job: removing an inotify watch takes the kernel longer
/// than some jobs take.
const UNWATCHED_TIME: Duration = Duration::from_millis(200);

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

impl Delivery {
    /// The value of `delivery=` in the agent's log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Gone => "gone",
            Self::GivenUp => "given_up",
        }
    }
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
    wake_fd: EventFd,
}

impl Shared {
    fn new(offset: u64) -> io::Result<Self> {
        Ok(Self {
            ending: Mutex::new(None),
            abandoned: AtomicBool::new(false),
            acknowledged: AtomicU64::new(offset),
            wake_fd: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
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
        self.wake();
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(Delivery::GivenUp)
    }

    /// Returns a function with which another thread abandons the delivery.
    pub fn abandoner(&self) -> impl Fn() + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || {
            shared.abandoned.store(true, Ordering::SeqCst);
            let _ = shared.wake_fd.write(1);
        }
    }

    /// Returns a function that returns the number of bytes of the log that GitLab has acknowledged.
    pub fn acknowledged(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.acknowledged.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        // If the counter is full, the event is signalled already.
        let _ = self.shared.wake_fd.write(1);
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shared.abandoned.store(true, Ordering::SeqCst);
            self.wake();
            let _ = thread.join();
        }
    }
}

/// Reports each write to the file at `path`.
fn watch(path: &Path) -> io::Result<Inotify> {
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
    watch: Option<Inotify>,
    /// If the server accepted the last part, the next part is due as soon as the output fills a request.
    last_part_accepted: bool,
    /// The acknowledged offset.
    offset: u64,
    checksum: Checksum,
    /// The first `filled` bytes are a part of the log; the rest is free space.
    buffer: Vec<u8>,
    filled: usize,
    interval: Duration,
    /// The delays between attempts to send the final state.
    final_state_retry: Backoff,
    /// When the server last accepted a request.
    last_accepted: Instant,
}

/// The event that ended a wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WakeReason {
    /// Another thread signalled the event: the final state is known, or the upload was abandoned.
    Requested,
    /// The spool was written to.
    Output,
    Timeout,
}

/// The result of sending a part of the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PartResult {
    Accepted,
    NothingToSend,
    Failed,
    /// The server answered 404.
    NotFound,
    /// The job has ended on the server.
    JobEnded,
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
            watch: None,
            last_part_accepted: true,
            offset: options.offset,
            checksum: Checksum::default(),
            buffer: Vec::new(),
            filled: 0,
            final_state_retry: OUTAGE_RETRY,
            last_accepted: Instant::now(),
        })
    }

    fn run(mut self) -> Delivery {
        loop {
            if self.ending().is_none() {
                self.wait_for_update();
            }
            if self.is_abandoned() {
                return Delivery::GivenUp;
            }
            match self.ending() {
                Some(state) => return self.finish(&state),
                None => self.send_update(),
            }
        }
    }

    fn ending(&self) -> Option<JobState> {
        sync::lock(&self.shared.ending).clone()
    }

    fn is_abandoned(&self) -> bool {
        self.shared.abandoned.load(Ordering::SeqCst)
    }

    /// Waits until the next update is due: the interval has passed, the event is signalled, or the output fills a
    /// request.
    fn wait_for_update(&mut self) {
        let until = Instant::now() + self.interval;
        // A short wait needs no inotify watch.
        if self.watch.is_none() {
            if self.wait(self.interval.min(UNWATCHED_TIME), None) == WakeReason::Requested
                || self.interval <= UNWATCHED_TIME
            {
                return;
            }
            self.watch = watch(&self.path).ok();
            if self.last_part_accepted && self.has_full_part() {
                return;
            }
        }
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let watch = self.watch.as_ref().filter(|_| self.last_part_accepted);
            let is_due = match self.wait(left, watch) {
                // Gather more output, so that the uploader does not wake for every line; the event ends this wait.
                WakeReason::Output => {
                    self.wait(left.min(GATHER_DELAY), None) == WakeReason::Requested || self.has_full_part()
                }
                WakeReason::Requested | WakeReason::Timeout => true,
            };
            if is_due {
                return;
            }
        }
    }

    /// Waits for `duration`, for the event, or for output that `watch` reports.
    fn wait(&self, duration: Duration, watch: Option<&Inotify>) -> WakeReason {
        let _ = sys::wait([Some(self.shared.wake_fd.as_fd()), watch.map(Inotify::as_fd)], Some(duration));
        let written = watch.is_some_and(|inotify| inotify.read_events().is_ok());
        match self.shared.wake_fd.read() {
            Ok(_) => WakeReason::Requested,
            Err(_) if written => WakeReason::Output,
            Err(_) => WakeReason::Timeout,
        }
    }

    /// Sends a part of the log, and all further parts that fill whole requests; or a keepalive. Sends nothing for a job
    /// that has ended.
    fn send_update(&mut self) {
        if self.last_status == JobStatus::Finished {
            return;
        }
        let mut sent = self.send_part();
        while sent == PartResult::Accepted && !self.is_abandoned() && self.has_full_part() {
            sent = self.send_part();
        }
        self.last_part_accepted = matches!(sent, PartResult::Accepted | PartResult::NothingToSend);
        let quiet = self.last_part_accepted && self.last_accepted.elapsed() >= KEEP_ALIVE_INTERVAL;
        if let Some(reply) = quiet.then(|| self.send_state(&JobState::Running)).flatten() {
            self.apply_reply(&reply);
        }
    }

    /// Whether the unsent output fills a request.
    fn has_full_part(&self) -> bool {
        let size = self.spool.metadata().map_or(0, |metadata| metadata.len());
        size.saturating_sub(self.offset) >= MAX_PART_SIZE as u64
    }

    /// Sends the next part of the log.
    fn send_part(&mut self) -> PartResult {
        let start = self.offset;
        if let Err(error) = self.read_part(start) {
            log::error!("cannot read the log of the job job={} error={error}", self.job.id);
            return PartResult::Failed;
        }
        let part = &self.buffer[..self.filled];
        if part.is_empty() {
            return PartResult::NothingToSend;
        }
        let reply = self.coordinator.append_trace(&self.job, start, part, self.options.kind);
        self.interval = reply.interval.unwrap_or(self.interval);
        self.report_status(reply.status);
        if reply.status == JobStatus::Finished {
            return PartResult::JobEnded;
        }
        match reply.outcome {
            TraceOutcome::Accepted => {
                self.offset = start + self.filled as u64;
                self.shared.acknowledged.store(self.offset, Ordering::Relaxed);
                self.last_accepted = Instant::now();
                PartResult::Accepted
            }
            TraceOutcome::Resync(size) => {
                self.offset = size;
                PartResult::Failed
            }
            TraceOutcome::NotFound => PartResult::NotFound,
            TraceOutcome::Failed => PartResult::Failed,
        }
    }

    /// Reads up to one part from `start`, ending between characters if possible.
    fn read_part(&mut self, start: u64) -> io::Result<()> {
        let size = settled_size(&self.spool)?;
        let length = usize::try_from(size.saturating_sub(start)).unwrap_or(MAX_PART_SIZE).min(MAX_PART_SIZE);
        self.filled = 0;
        if self.buffer.len() < length {
            self.buffer.resize(length, 0);
        }
        let part = &mut self.buffer[..length];
        self.spool.read_exact_at(part, start)?;
        let more = start + (length as u64) < size;
        let boundary = (length.saturating_sub(4)..length).rev().find(|at| part[*at] & 0xc0 != 0x80);
        self.filled = boundary.filter(|at| more && *at > 0).unwrap_or(length);
        self.checksum.take(start, &part[..self.filled]);
        Ok(())
    }

    /// Sends a state with size and checksum of the log; `None` if the log cannot be read.
    fn send_state(&mut self, state: &JobState) -> Option<UpdateReply> {
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

    /// Applies the server's reply to a state: its interval and the job's status.
    fn apply_reply(&mut self, reply: &UpdateReply) {
        self.interval = reply.interval.unwrap_or(self.interval);
        if reply.outcome == UpdateOutcome::Done {
            self.last_accepted = Instant::now();
        }
        self.report_status(reply.status);
    }

    /// Reports a change of the job's status on the server.
    fn report_status(&mut self, status: JobStatus) {
        let is_new = status != self.last_status && status != JobStatus::Ongoing;
        // No status follows the end of the job.
        if is_new && self.last_status != JobStatus::Finished {
            self.last_status = status;
            (self.on_status)(status);
        }
    }
}
