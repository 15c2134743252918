use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::coordinator::{TraceKind, TraceReply, TraceSummary};
use crate::token::Token;

/// The failure of one upload request.
#[derive(Clone, Debug)]
enum Fault {
    None,
    /// The request is lost.
    Lost,
    /// The request is accepted, and the response is lost.
    ResponseLost,
    /// The server has lost its log except for this many bytes.
    Forgot(usize),
    NotFound,
}

#[derive(Default)]
struct Server {
    log: Vec<u8>,
    starts: Vec<u64>,
    faults: VecDeque<Fault>,
    /// The responses to final states before the first success.
    finals: VecDeque<UpdateOutcome>,
    states: Vec<(JobState, TraceSummary)>,
    status: Option<JobStatus>,
}

/// A server that follows the rules for offsets, with intervals of zero.
#[derive(Default)]
struct Fake {
    server: Mutex<Server>,
    interval: Duration,
}

impl Fake {
    fn server(&self) -> std::sync::MutexGuard<'_, Server> {
        self.server.lock().expect("no thread may panic")
    }
}

impl Server {
    fn append(&mut self, start: u64, chunk: &[u8]) -> TraceOutcome {
        if self.log.len() as u64 == start {
            self.log.extend_from_slice(chunk);
        }
        match self.log.len() as u64 {
            size if size == start + chunk.len() as u64 => TraceOutcome::Accepted,
            size => TraceOutcome::Resync(size),
        }
    }
}

impl Coordinator for Fake {
    fn append_trace(&self, _: &JobHandle, start: u64, chunk: &[u8], _: TraceKind) -> TraceReply {
        assert!(!chunk.is_empty() && chunk.len() <= MAX_PART_SIZE);
        let mut server = self.server();
        server.starts.push(start);
        let outcome = match server.faults.pop_front().unwrap_or(Fault::None) {
            Fault::None => server.append(start, chunk),
            Fault::Lost => TraceOutcome::Failed,
            Fault::ResponseLost => {
                server.append(start, chunk);
                TraceOutcome::Failed
            }
            Fault::Forgot(keep) => {
                server.log.truncate(keep);
                server.append(start, chunk)
            }
            Fault::NotFound => TraceOutcome::NotFound,
        };
        TraceReply { outcome, status: server.status.unwrap_or(JobStatus::Ongoing), interval: Some(self.interval) }
    }

    fn update_job(&self, _: &JobHandle, state: &JobState, trace: TraceSummary) -> UpdateReply {
        let mut server = self.server();
        server.states.push((state.clone(), trace));
        let ours = TraceSummary { size: server.log.len() as u64, crc32: crc32fast::hash(&server.log) };
        let outcome = match state {
            JobState::Running => UpdateOutcome::Done,
            _ if ours != trace => UpdateOutcome::TraceInvalid,
            _ => server.finals.pop_front().unwrap_or(UpdateOutcome::Done),
        };
        UpdateReply { outcome, status: server.status.unwrap_or(JobStatus::Ongoing), interval: Some(self.interval) }
    }

    fn first_interval(&self) -> Duration {
        if self.interval.is_zero() { Duration::from_secs(3) } else { self.interval }
    }
}

struct Case {
    fake: Arc<Fake>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

const OPTIONS: UploadOptions = UploadOptions { kind: TraceKind::Normal, offset: 0, final_report_attempts: 10 };

impl Case {
    fn new(fake: Fake) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        File::create(&path).expect("a spool");
        Self { fake: Arc::new(fake), path, _directory: directory }
    }

    fn write(&self, text: &[u8]) {
        OpenOptions::new()
            .append(true)
            .open(&self.path)
            .expect("open the file")
            .write_all(text)
            .expect("write all bytes");
    }

    fn job() -> JobHandle {
        JobHandle { id: 1.into(), token: Token::new("t") }
    }

    fn upload(&self, options: UploadOptions, on_status: Box<dyn Fn(JobStatus) + Send>) -> Upload {
        let shared = Arc::new(Shared::new(options.offset).expect("create the shared state"));
        let coordinator: Arc<dyn Coordinator> = self.fake.clone();
        let mut upload =
            Upload::new(coordinator, Self::job(), &self.path, options, on_status, shared).expect("an upload");
        upload.final_state_retry = Backoff::new(Duration::ZERO, Duration::ZERO);
        upload
    }

    fn wait_for_requests(&self, count: usize) {
        let sent = || (self.fake.server().starts.len() >= count).then_some(());
        let seen = crate::sync::try_until(Duration::from_secs(60), Duration::from_millis(5), sent);
        assert!(seen.is_some(), "{count} requests before the interval ends");
    }

    fn uploader(&self) -> Uploader {
        Uploader::start(self.fake.clone(), Self::job(), &self.path, OPTIONS, Box::new(|_| {}))
            .expect("start the thread or process")
    }
}

#[test]
fn a_short_job_needs_one_part_and_one_state() {
    let case = Case::new(Fake::default());
    let uploader = case.uploader();
    case.write("größe\n".as_bytes());
    assert_eq!(uploader.finish(JobState::Success), Delivery::Delivered);
    let server = case.fake.server();
    assert_eq!((server.starts.as_slice(), server.states.len()), ([0].as_slice(), 1));
    assert_eq!(server.log, "größe\n".as_bytes());
}

#[test]
fn retries_the_final_state_after_every_retryable_response() {
    let case = Case::new(Fake::default());
    case.write(b"log\n");
    case.fake.server().finals =
        [UpdateOutcome::Accepted, UpdateOutcome::Failed, UpdateOutcome::TraceInvalid, UpdateOutcome::Accepted].into();
    assert_eq!(case.upload(OPTIONS, Box::new(|_| {})).finish(&JobState::Success), Delivery::Delivered);
    let server = case.fake.server();
    assert_eq!(server.states.len(), 5);
    assert_eq!(server.starts, [0, 0], "sent again from its start, which the server knew already");
}

#[test]
fn gives_up_on_a_server_that_never_accepts_the_log() {
    let case = Case::new(Fake::default());
    case.write(b"log\n");
    case.fake.server().finals = vec![UpdateOutcome::TraceInvalid; 100].into();
    assert_eq!(case.upload(OPTIONS, Box::new(|_| {})).finish(&JobState::Success), Delivery::GivenUp);
    assert_eq!(case.fake.server().states.len(), 10);
}

#[test]
fn reports_each_status_once_and_sends_nothing_after_the_end() {
    let case = Case::new(Fake::default());
    let (sender, heard) = channel();
    let mut upload =
        case.upload(OPTIONS, Box::new(move |status| sender.send(status).expect("the receiver must exist")));
    for status in [None, Some(JobStatus::Canceling), Some(JobStatus::Finished), Some(JobStatus::Canceling)] {
        case.fake.server().status = status;
        for _ in 0..2 {
            case.write(b"line\n");
            upload.send_update();
        }
    }
    assert_eq!(upload.finish(&JobState::Success), Delivery::Gone);
    drop(upload);
    assert_eq!(heard.iter().collect::<Vec<_>>(), [JobStatus::Canceling, JobStatus::Finished]);
    assert_eq!(case.fake.server().starts.len(), 5);
    assert!(case.fake.server().states.is_empty());
}

#[test]
fn parts_end_between_characters() {
    let case = Case::new(Fake::default());
    let text = format!("x{}", "ü".repeat(MAX_PART_SIZE));
    case.write(text.as_bytes());
    assert_eq!(case.upload(OPTIONS, Box::new(|_| {})).finish(&JobState::Success), Delivery::Delivered);
    let server = case.fake.server();
    assert_eq!(server.log, text.as_bytes());
    assert_eq!(server.starts.len(), 3);
    assert!(
        server
            .starts
            .iter()
            .all(|start| text.is_char_boundary(usize::try_from(*start).expect("the number must be small")))
    );
}

#[test]
fn a_resumed_upload_continues_and_its_checksum_covers_the_whole_log() {
    let case = Case::new(Fake::default());
    case.write(b"sent before\n");
    case.fake.server().log = b"sent before\n".to_vec();
    case.write(b"new\n");
    let options = UploadOptions { offset: 12, ..OPTIONS };
    assert_eq!(case.upload(options, Box::new(|_| {})).finish(&JobState::Success), Delivery::Delivered);
    let server = case.fake.server();
    assert_eq!(server.starts, [12]);
    assert_eq!(server.states[0].1.crc32, crc32fast::hash(b"sent before\nnew\n"));
}

#[test]
fn the_coordinator_chooses_the_first_interval() {
    let interval = Duration::from_secs(7);
    let case = Case::new(Fake { interval, ..Fake::default() });
    assert_eq!(case.upload(OPTIONS, Box::new(|_| {})).interval, interval);
}

#[test]
fn a_log_with_much_output_does_not_wait_for_the_interval() {
    let interval = Duration::from_secs(3600);
    let case = Case::new(Fake { interval, ..Fake::default() });
    let uploader = case.uploader();
    case.write(b"a line\n");
    case.write(&[b'x'; 2 * MAX_PART_SIZE]);
    case.wait_for_requests(2);
    assert_eq!(uploader.finish(JobState::Success), Delivery::Delivered);
    let server = case.fake.server();
    assert_eq!((server.starts.len(), server.log.len()), (3, 7 + 2 * MAX_PART_SIZE));
}

#[test]
fn waits_for_retry_after_of_an_overloaded_server() {
    let interval = Duration::from_secs(3600);
    let case = Case::new(Fake { interval, ..Fake::default() });
    case.fake.server().faults = [Fault::None, Fault::Lost].into();
    let uploader = case.uploader();
    case.write(&[b'x'; 3 * MAX_PART_SIZE]);
    case.wait_for_requests(2);
    case.write(&[b'y'; 2 * MAX_PART_SIZE]);
    // Time passes on purpose: no sign shows that the thread waits.
    thread::sleep(2 * GATHER_DELAY);
    assert_eq!(case.fake.server().starts.len(), 2);
    assert_eq!(uploader.finish(JobState::Success), Delivery::Delivered);
    assert_eq!(case.fake.server().log.len(), 5 * MAX_PART_SIZE);
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::None),
        Just(Fault::Lost),
        Just(Fault::ResponseLost),
        Just(Fault::NotFound),
        (0..1_usize << 21).prop_map(Fault::Forgot),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_server_gets_the_exact_log_for_any_failures(
        writes in proptest::collection::vec((0..700_000_usize, 0..3), 0..6),
        faults in proptest::collection::vec(fault(), 0..12),
        restart in 0..6_usize,
    ) {
        let case = Case::new(Fake::default());
        case.fake.server().faults = faults.into();
        let mut upload = case.upload(OPTIONS, Box::new(|_| {}));
        for (index, (length, ticks)) in writes.into_iter().enumerate() {
            case.write(format!("{index}{}\n", "aü".repeat(length)).as_bytes());
            (0..ticks).for_each(|_| upload.send_update());
            if index == restart {
                let offset = upload.shared.acknowledged.load(Ordering::Relaxed);
                upload = case.upload(UploadOptions { offset, ..OPTIONS }, Box::new(|_| {}));
            }
        }
        prop_assert_eq!(upload.finish(&JobState::Success), Delivery::Delivered);
        prop_assert!(case.fake.server().log == std::fs::read(&case.path).expect("the spool"));
    }
}
