//! Brings the spool to the server: pieces at the server's pace while the job runs, then everything and the final state.
//!
//! The spool is the only buffer, so memory stays flat however large the log or long the outage, and any offset can be
//! asked for again until the end.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::coordinator::{
    Coordinator, JobHandle, JobState, JobStatus, TraceOutcome, TraceSummary, UpdateOutcome, UpdateReply,
};

/// Bytes of log in one request (GitLab Runner API).
const CHUNK: usize = 1 << 20;
/// Between two updates, until the server says otherwise.
const INTERVAL: Duration = Duration::from_secs(3);
/// A job of which nothing was heard for this long is told to be alive.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// GitLab takes a running job for lost after an hour without a sign of life: until then a final state is worth sending.
const GIVE_UP_AFTER: Duration = Duration::from_secs(65 * 60);
/// Longest wait between two tries of the final state.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// How a log is uploaded.
#[derive(Clone, Copy, Debug)]
pub struct UploadOptions {
    /// The log may hold secrets on purpose (`CI_DEBUG_TRACE`).
    pub debug_trace: bool,
    /// Where to begin: 0, or after a restart what the server had acknowledged.
    pub offset: u64,
    /// Tries of the final state (`job_status_final_update_retry_limit`); network outages do not use them up.
    pub final_tries: u32,
}

/// What became of the final state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The server has the state and the log.
    Delivered,
    /// The server has no (such) running job any more.
    Gone,
    /// It could not be delivered in all the time the server would have taken it, or the agent was told to stop.
    GivenUp,
}

/// The thread that uploads one job's log.
pub struct Uploader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Delivery>>,
}

struct Shared {
    /// The final state, once it is known.
    ending: Mutex<Option<JobState>>,
    abandoned: AtomicBool,
    acknowledged: AtomicU64,
    bell: EventFd,
}

impl Uploader {
    /// Starts to upload the spool at `path`. `on_status` hears each change of what the server says of the job.
    /// Errors: the spool cannot be opened, or no thread started.
    pub fn start(
        coordinator: Arc<dyn Coordinator>,
        job: JobHandle,
        path: &Path,
        options: UploadOptions,
        on_status: Box<dyn Fn(JobStatus) + Send>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            ending: Mutex::new(None),
            abandoned: AtomicBool::new(false),
            acknowledged: AtomicU64::new(options.offset),
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        let follow = if coordinator.is_interactive() { Some(follow(path)?) } else { None };
        let upload = Upload {
            name: job.id,
            coordinator,
            job,
            spool: File::open(path)?,
            options,
            on_status,
            last_status: JobStatus::Ongoing,
            shared: Arc::clone(&shared),
            follow,
            offset: options.offset,
            hasher: crc32fast::Hasher::new(),
            hashed: 0,
            buffer: Vec::new(),
            interval: INTERVAL,
            heard: Instant::now(),
        };
        let thread = thread::Builder::new()
            .name(format!("trace-{}", upload.name))
            .stack_size(256 * 1024)
            .spawn(move || upload.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Tells the final state, and waits until the server has it and the whole log.
    pub fn finish(mut self, state: JobState) -> Delivery {
        *self.shared.ending.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
        self.ring();
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(Delivery::GivenUp)
    }

    /// A way to end a hopeless delivery from another thread.
    pub fn abandoner(&self) -> impl Fn() + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || {
            shared.abandoned.store(true, Ordering::SeqCst);
            let _ = shared.bell.write(1);
        }
    }

    /// How much of the log the server has for certain.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    fn ring(&self) {
        // A full counter has rung already.
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
    name: i64,
    coordinator: Arc<dyn Coordinator>,
    job: JobHandle,
    spool: File,
    options: UploadOptions,
    on_status: Box<dyn Fn(JobStatus) + Send>,
    last_status: JobStatus,
    shared: Arc<Shared>,
    follow: Option<Inotify>,
    /// Everything before it is on the server.
    offset: u64,
    /// Over the first `hashed` bytes.
    hasher: crc32fast::Hasher,
    hashed: u64,
    buffer: Vec<u8>,
    interval: Duration,
    /// When the server last took something.
    heard: Instant,
}

/// What a piece of the log came to.
enum Piece {
    Sent,
    /// There was nothing to send.
    Empty,
    Failed,
    NotFound,
    Over,
}

impl Upload {
    fn run(mut self) -> Delivery {
        while let Some(state) = self.next_tick() {
            match state {
                None => self.tick(),
                Some(ending) => return self.finish(&ending),
            }
        }
        Delivery::GivenUp
    }

    /// Waits for the next tick; the inner option is the final state, the outer is empty when nobody wants the log.
    fn next_tick(&mut self) -> Option<Option<JobState>> {
        let ending = self.ending();
        if ending.is_none() {
            self.wait(self.interval);
        }
        if self.is_abandoned() {
            return None;
        }
        Some(ending.or_else(|| self.ending()))
    }

    fn ending(&self) -> Option<JobState> {
        self.shared.ending.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_abandoned(&self) -> bool {
        self.shared.abandoned.load(Ordering::SeqCst)
    }

    /// Waits for `duration`, for the bell, or, with someone watching, for new output.
    fn wait(&self, duration: Duration) {
        let timeout = PollTimeout::try_from(duration).unwrap_or(PollTimeout::MAX);
        let bell = PollFd::new(self.shared.bell.as_fd(), PollFlags::POLLIN);
        let _ = match &self.follow {
            Some(inotify) => {
                let polled = poll(&mut [bell, PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], timeout);
                let _ = inotify.read_events();
                polled
            }
            None => poll(&mut [bell], timeout),
        };
        let _ = self.shared.bell.read();
    }

    /// One piece of log, or a sign of life.
    fn tick(&mut self) {
        let sent = self.send_piece();
        let quiet = matches!(sent, Piece::Sent | Piece::Empty) && self.heard.elapsed() >= KEEP_ALIVE;
        if quiet {
            let summary = self.summary();
            let reply = self.coordinator.update_job(&self.job, &JobState::Running, summary);
            self.note(&reply);
        }
    }

    fn send_piece(&mut self) -> Piece {
        let start = self.offset;
        if let Err(error) = self.read_piece(start) {
            log::error!("the log of a job cannot be read job={} error={error}", self.name);
            return Piece::Failed;
        }
        if self.buffer.is_empty() {
            return Piece::Empty;
        }
        let reply = self.coordinator.append_trace(&self.job, start, &self.buffer, self.options.debug_trace);
        self.interval = reply.interval.unwrap_or(self.interval);
        self.tell(reply.status);
        if reply.status == JobStatus::Over {
            return Piece::Over;
        }
        match reply.outcome {
            TraceOutcome::Accepted => {
                self.offset = start + self.buffer.len() as u64;
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

    /// Reads up to a chunk from `start`, ending between characters where it can.
    fn read_piece(&mut self, start: u64) -> io::Result<()> {
        let size = self.spool.metadata()?.len();
        let length = usize::try_from(size.saturating_sub(start)).unwrap_or(CHUNK).min(CHUNK);
        self.buffer.resize(length, 0);
        self.spool.read_exact_at(&mut self.buffer, start)?;
        if start + (length as u64) < size {
            let boundary = (length.saturating_sub(4)..length).rev().find(|at| self.buffer[*at] & 0xc0 != 0x80);
            self.buffer.truncate(boundary.filter(|at| *at > 0).unwrap_or(length));
        }
        if start == self.hashed {
            self.hasher.update(&self.buffer);
            self.hashed += self.buffer.len() as u64;
        }
        Ok(())
    }

    /// Size and checksum of the log as it stands.
    fn summary(&mut self) -> TraceSummary {
        let size = self.spool.metadata().map_or(self.hashed, |metadata| metadata.len());
        let mut block = vec![0; CHUNK.min(usize::try_from(size - self.hashed.min(size)).unwrap_or(CHUNK))];
        while self.hashed < size {
            let length = usize::try_from(size - self.hashed).unwrap_or(CHUNK).min(block.len());
            if self.spool.read_exact_at(&mut block[..length], self.hashed).is_err() {
                break;
            }
            self.hasher.update(&block[..length]);
            self.hashed += length as u64;
        }
        TraceSummary { size: self.hashed, crc32: self.hasher.clone().finalize() }
    }

    fn note(&mut self, reply: &UpdateReply) {
        self.interval = reply.interval.unwrap_or(self.interval);
        if reply.outcome == UpdateOutcome::Done {
            self.heard = Instant::now();
        }
        self.tell(reply.status);
    }

    fn tell(&mut self, status: JobStatus) {
        if status != self.last_status && status != JobStatus::Ongoing {
            self.last_status = status;
            (self.on_status)(status);
        }
    }

    /// Sends the rest of the log and the final state, for as long as the server would take them.
    fn finish(&mut self, ending: &JobState) -> Delivery {
        self.interval = INTERVAL;
        let began = Instant::now();
        let mut failures = 0;
        let mut back_off = Duration::from_secs(1);
        loop {
            if self.last_status == JobStatus::Over {
                return Delivery::Gone;
            }
            match self.try_to_finish(ending) {
                Ok(delivery) => return delivery,
                Err(Again::AfterInterval) => self.pause(self.interval),
                Err(Again::Failed) => {
                    failures += 1;
                    if failures >= self.options.final_tries && began.elapsed() > GIVE_UP_AFTER {
                        return Delivery::GivenUp;
                    }
                    self.pause(back_off);
                    back_off = (back_off * 2).min(BACK_OFF_MAX);
                }
            }
            if self.is_abandoned() {
                return Delivery::GivenUp;
            }
        }
    }

    /// Waits, though the bell has rung for the end already.
    fn pause(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if self.is_abandoned() {
                return;
            }
            self.wait(left);
        }
    }

    fn try_to_finish(&mut self, ending: &JobState) -> Result<Delivery, Again> {
        let mut resyncs = 0;
        loop {
            let before = self.offset;
            match self.send_piece() {
                Piece::Sent => {}
                Piece::Empty | Piece::NotFound => break,
                Piece::Over => return Ok(Delivery::Gone),
                // The server has another size: go on from there at once, but not for ever.
                Piece::Failed if self.offset != before && resyncs < 3 => resyncs += 1,
                Piece::Failed => return Err(Again::Failed),
            }
        }
        let summary = self.summary();
        let reply = self.coordinator.update_job(&self.job, ending, summary);
        self.note(&reply);
        match reply.outcome {
            UpdateOutcome::Done => Ok(Delivery::Delivered),
            UpdateOutcome::Gone => Ok(Delivery::Gone),
            UpdateOutcome::Accepted => Err(Again::AfterInterval),
            UpdateOutcome::TraceInvalid => {
                self.offset = 0;
                Err(Again::AfterInterval)
            }
            UpdateOutcome::Failed => Err(Again::Failed),
        }
    }
}

/// Why the end must be tried again.
enum Again {
    AfterInterval,
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::{Token, TraceReply};
    use crate::trace::{Claim, Spool};

    /// A server that misbehaves by a script: what it does with each piece of log and each state.
    struct Server {
        stored: Mutex<Vec<u8>>,
        pieces: Mutex<Vec<Whim>>,
        states: Mutex<Vec<UpdateOutcome>>,
        summary: Mutex<TraceSummary>,
    }

    #[derive(Clone, Copy)]
    enum Whim {
        Take,
        Drop,
        TakeAndFail,
        Forget,
    }

    impl Coordinator for Server {
        fn append_trace(&self, _: &JobHandle, start: u64, chunk: &[u8], _: bool) -> TraceReply {
            let whim = self.pieces.lock().expect("no panic").pop().unwrap_or(Whim::Take);
            let mut stored = self.stored.lock().expect("no panic");
            if matches!(whim, Whim::Forget) {
                let half = stored.len() / 2;
                stored.truncate(half);
            }
            let fits = stored.len() as u64 == start;
            if fits && !matches!(whim, Whim::Drop) {
                stored.extend_from_slice(chunk);
            }
            let repeated = stored.len() as u64 == start + chunk.len() as u64;
            let outcome = match whim {
                Whim::Drop | Whim::TakeAndFail => TraceOutcome::Failed,
                _ if repeated => TraceOutcome::Accepted,
                _ => TraceOutcome::Resync(stored.len() as u64),
            };
            TraceReply { outcome, status: JobStatus::Ongoing, interval: Some(Duration::from_millis(5)) }
        }

        fn update_job(&self, _: &JobHandle, state: &JobState, trace: TraceSummary) -> UpdateReply {
            let mut outcome = UpdateOutcome::Done;
            if *state != JobState::Running {
                outcome = self.states.lock().expect("no panic").pop().unwrap_or(UpdateOutcome::Done);
                *self.summary.lock().expect("no panic") = trace;
            }
            if outcome == UpdateOutcome::TraceInvalid {
                self.stored.lock().expect("no panic").clear();
            }
            UpdateReply { outcome, status: JobStatus::Ongoing, interval: Some(Duration::from_millis(5)) }
        }
    }

    fn upload(whims: &[Whim], states: &[UpdateOutcome]) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        let spool = Spool::open(&path, u64::MAX).expect("opened");
        let server = Arc::new(Server {
            stored: Mutex::default(),
            pieces: Mutex::new(whims.to_vec()),
            states: Mutex::new(states.to_vec()),
            summary: Mutex::default(),
        });
        let job = JobHandle { id: 1, token: Token::new("") };
        let options = UploadOptions { debug_trace: false, offset: 0, final_tries: 10 };
        let coordinator = Arc::clone(&server) as Arc<dyn Coordinator>;
        let uploader = Uploader::start(coordinator, job, &path, options, Box::new(|_| {})).expect("started");
        for number in 0..200 {
            let line = format!("line {number} ✓ {}\n", "x".repeat(number * 97));
            spool.append(line.as_bytes(), Claim::Output).expect("appended");
            uploader.ring();
            std::thread::yield_now();
        }
        assert_eq!(uploader.finish(JobState::Success), Delivery::Delivered);
        let log = std::fs::read(&path).expect("the spool");
        assert!(*server.stored.lock().expect("no panic") == log, "the server has another log");
        let summary = *server.summary.lock().expect("no panic");
        assert_eq!(summary, TraceSummary { size: log.len() as u64, crc32: crc32fast::hash(&log) });
    }

    #[test]
    fn whatever_happens_to_pieces_the_server_ends_with_the_same_bytes() {
        upload(&[], &[]);
        upload(&[Whim::Drop, Whim::TakeAndFail, Whim::Forget, Whim::Take].repeat(2), &[]);
        upload(&[Whim::Forget; 3], &[UpdateOutcome::Accepted, UpdateOutcome::TraceInvalid]);
    }
}
