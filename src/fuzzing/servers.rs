//! Targets for responses of servers: GitLab's responses to all requests about jobs, and those of a container engine.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::config::ExecutorKind;
use crate::coordinator::gitlab::{GitLab, RunnerManagerInfo};
use crate::coordinator::source::{JobRequest, PollMode, PollOutcome};
use crate::coordinator::{Coordinator, JobHandle, JobId, JobState, TraceKind, TraceSummary};
use crate::executor::docker::engine::DockerEngine;
use crate::executor::docker::engine::attached::FrameReader;
use crate::http::Address;
use crate::payload;
use crate::sync;
use crate::token::Token;

/// The maximum size of a response. Larger ones only take longer.
const MAX_INPUT_SIZE: usize = 64 << 10;
/// The number of progress lines to read.
const LINES: usize = 1000;

/// The next response of the server.
static ANSWER: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Sends the input as the bytes of a connection, then closes the connection.
pub fn http(answer: &[u8]) {
    if answer.len() > MAX_INPUT_SIZE {
        return;
    }
    answer.clone_into(&mut sync::lock(&ANSWER));
    call_gitlab(server());
    call_engine(server());
    let _ = FrameReader::default().push(answer, &mut |_, bytes| assert!(!bytes.is_empty()));
}

fn call_gitlab(port: u16) {
    let info = RunnerManagerInfo::new(ExecutorKind::Shell, "bash", &std::collections::BTreeMap::new());
    let url = format!("http://127.0.0.1:{port}");
    let gitlab = GitLab::new(&url, &Default::default(), info, Duration::ZERO).expect("a client");
    // Without this, the client would wait before each retry.
    gitlab.stop_waiting();
    let token = Token::new("glrt-token");
    let polled = gitlab.request_job(&JobRequest { token: &token, system_id: "s_1", mode: PollMode::Long });
    if let PollOutcome::Job { payload, .. } = polled.outcome {
        let _ = payload::decode(&payload);
    }
    let job = JobHandle { id: JobId::from(1), token: Token::new("job-token") };
    let _ = gitlab.append_trace(&job, 5, b"a line\n", TraceKind::Normal);
    let _ = gitlab.update_job(&job, &JobState::Running, TraceSummary { size: 5, crc32: 1 });
    let _ = gitlab.verify(&token, "s_1");
}

fn call_engine(port: u16) {
    let address = Address::Tcp(format!("127.0.0.1:{port}"), None);
    let Ok(engine) = DockerEngine::connect(&address) else { return };
    let _ = engine.info();
    let _ = engine.image("busybox", None);
    let _ = engine.container("one");
    let _ = engine.containers(&[("label", "value")]);
    let _ = engine.logs("one", 1 << 20);
    let _ = engine.was_signalled("one", SystemTime::UNIX_EPOCH);
    if let Ok(mut pull) = engine.pull("busybox:latest", None, None) {
        for _ in 0..LINES {
            match pull.next_progress() {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }
    if let Ok(mut attached) = engine.attach("one") {
        let mut block = [0; 4096];
        let mut frames = FrameReader::default();
        while let Ok(crate::http::upgraded::ReadEvent::Bytes(length)) =
            attached.read(&mut block, None, Some(Duration::from_secs(1)))
        {
            if frames.push(&block[..length], &mut |_, _| {}).is_err() {
                break;
            }
        }
    }
}

/// Returns the port of a server that reads requests and answers each with [`ANSWER`].
fn server() -> u16 {
    static PORT: OnceLock<u16> = OnceLock::new();
    *PORT.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // An error means that the client has closed the connection.
                let _ = answered(BufReader::new(stream));
            }
        });
        port
    })
}

/// Reads the whole request first: closing a connection with unread data would discard the response.
fn answered(mut stream: BufReader<std::net::TcpStream>) -> io::Result<()> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            match line.trim() {
                "" => break,
                _ => continue,
            }
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    io::copy(&mut stream.by_ref().take(length), &mut io::sink())?;
    let answer = sync::lock(&ANSWER).clone();
    stream.get_mut().write_all(&answer)
}
