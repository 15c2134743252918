//! A running program, which reads and writes one line at a time.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::sync;
use crate::sys;
use crate::timed_child;

/// The maximum size of a response.
const MAX_RESPONSE_BYTES: usize = 1 << 20;
/// The maximum length of a logged line of standard error.
const MAX_LOGGED_CHARS: usize = 500;
/// The time for a program to end after it has closed its output.
const END_TIMEOUT: Duration = Duration::from_secs(1);
const STACK: usize = 128 * 1024;

/// A program and the pipes to it. Dropping the conversation kills the program with its process group.
pub struct Conversation {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    /// The bytes received after the last response.
    received: Vec<u8>,
}

/// Why the program sent no response.
pub enum NoResponse {
    /// The timeout has passed.
    Timeout,
    /// The program ended, with this status.
    Ended(String),
    /// The program closed its output, and still runs.
    OutputClosed,
    /// The response is longer than the maximum.
    TooLong,
    /// Reading or writing the pipe failed.
    Io(String),
}

impl Conversation {
    /// Starts the program. Errors: why it does not start.
    pub fn start(program: &str, args: &[String]) -> Result<Self, String> {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".to_owned());
        };
        if let Some(errors) = child.stderr.take() {
            let name = program.to_owned();
            if let Err(error) = sync::spawn("engine-errors", STACK, move || log_standard_error(&name, errors)) {
                log::warn!("cannot read the standard error of the engine program program={program} error={error}");
            }
        }
        Ok(Self { child, input, output, received: Vec::new() })
    }

    /// The process id of the program.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// True while the program runs. If its state cannot be read, the program counts as ended.
    pub fn is_alive(conversation: &Self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", conversation.child.id()))
            .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
    }

    /// Sends a line, and waits for the line of the response.
    pub fn request(&mut self, line: &str, timeout: Duration) -> Result<String, NoResponse> {
        let until = Instant::now() + timeout;
        let sent = self.input.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.input.flush());
        if sent.is_err() {
            return Err(self.closed_pipe());
        }
        let mut buffer = vec![0; 16 * 1024];
        let mut searched = 0;
        loop {
            if let Some(end) = self.received[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=searched + end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            searched = self.received.len();
            if searched >= MAX_RESPONSE_BYTES {
                return Err(NoResponse::TooLong);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NoResponse::Timeout);
            }
            match sys::wait([Some(self.output.as_fd())], Some(left)) {
                Ok([true]) => {}
                Ok([false]) => return Err(NoResponse::Timeout),
                Err(error) => return Err(NoResponse::Io(error.to_string())),
            }
            match self.output.read(&mut buffer) {
                Ok(0) => return Err(self.closed_pipe()),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NoResponse::Io(error.to_string())),
            }
        }
    }

    /// Why the program has closed its pipe. It has ended, or will end soon.
    fn closed_pipe(&mut self) -> NoResponse {
        let pidfd = sys::pidfd_open(self.child.id().cast_signed());
        let _ = pidfd.and_then(|pidfd| sys::wait([Some(pidfd.as_fd())], Some(END_TIMEOUT)));
        match self.child.try_wait() {
            Ok(Some(status)) => NoResponse::Ended(status.to_string()),
            Ok(None) => NoResponse::OutputClosed,
            Err(error) => NoResponse::Io(error.to_string()),
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        // Processes that the program has detached from its process group keep running.
        let _ = timed_child::wait_for_group(&mut self.child, Duration::ZERO);
    }
}

fn log_standard_error(program: &str, errors: impl Read) {
    use std::io::BufRead;
    let mut reader = std::io::BufReader::new(errors);
    let mut line = Vec::new();
    // A long line is cut off, to limit memory.
    while let Ok(1..) = (&mut reader).take(MAX_RESPONSE_BYTES as u64).read_until(b'\n', &mut line) {
        // Control characters could move the cursor of a terminal, or look like another line of the log.
        let text: String = String::from_utf8_lossy(&line).trim_end().chars().take(MAX_LOGGED_CHARS).collect();
        let text = text.replace(char::is_control, "\u{fffd}");
        log::warn!("message of the engine program program={program} message={text}");
        line.clear();
    }
}
