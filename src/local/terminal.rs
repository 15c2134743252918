//! A job's log on standard output.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use super::log::{Kind, Line, Reader, plain};
use crate::coordinator::{
    Coordinator, JobHandle, JobState, JobStatus, TraceOutcome, TraceReply, TraceSummary, UpdateOutcome, UpdateReply,
};

/// Writes the log of one job to standard output.
pub struct Terminal {
    color: bool,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    /// Bytes of the log that were taken already.
    taken: u64,
    reader: Reader,
}

impl Terminal {
    /// For a job whose log begins; without `color` escape codes are left out.
    pub fn new(color: bool) -> Self {
        Self { color, log: Mutex::default() }
    }

    fn take(&self, start: u64, chunk: &[u8]) -> io::Result<TraceOutcome> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if start != log.taken {
            return Ok(TraceOutcome::Resync(log.taken));
        }
        let mut text = String::new();
        log.reader.push(chunk, &mut |line| self.show(&line, &mut text));
        log.taken += chunk.len() as u64;
        write(&text).map(|()| TraceOutcome::Accepted)
    }

    fn show(&self, line: &Line, text: &mut String) {
        if line.kind == Kind::Preamble {
            return;
        }
        text.push_str(&if self.color { line.text.clone() } else { plain(&line.text) });
        text.push('\n');
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}

impl Coordinator for Terminal {
    fn append_trace(&self, _: &JobHandle, start: u64, chunk: &[u8], _: bool) -> TraceReply {
        // A reader that went away (`mayfly exec | head`) ends the job: nobody would see the rest.
        let (outcome, status) = match self.take(start, chunk) {
            Ok(outcome) => (outcome, JobStatus::Ongoing),
            Err(_) => (TraceOutcome::NotFound, JobStatus::Over),
        };
        TraceReply { outcome, status, interval: None }
    }

    fn update_job(&self, _: &JobHandle, state: &JobState, _: TraceSummary) -> UpdateReply {
        if *state != JobState::Running {
            let mut text = String::new();
            let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            log.reader.finish(&mut |line| self.show(&line, &mut text));
            let _ = write(&text);
        }
        UpdateReply { outcome: UpdateOutcome::Done, status: JobStatus::Ongoing, interval: None }
    }

    fn is_interactive(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Token;

    #[test]
    fn asks_for_the_bytes_it_lacks() {
        let terminal = Terminal::new(false);
        let job = JobHandle { id: 1.into(), token: Token::new("") };
        assert_eq!(terminal.append_trace(&job, 0, b"\n", false).outcome, TraceOutcome::Accepted);
        assert_eq!(terminal.append_trace(&job, 5, b"late\n", false).outcome, TraceOutcome::Resync(1));
    }
}
