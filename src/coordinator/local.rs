//! A job's log on the terminal: the coordinator of `mayfly exec`.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use super::{
    Coordinator, JobHandle, JobState, JobStatus, TraceOutcome, TraceReply, TraceSummary, UpdateOutcome, UpdateReply,
};

/// Writes the log of one job at a time to standard output.
#[derive(Default)]
pub struct Terminal {
    /// Bytes of the log that were written already.
    written: Mutex<u64>,
}

impl Terminal {
    fn write(&self, start: u64, chunk: &[u8]) -> io::Result<TraceOutcome> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if start != *written {
            return Ok(TraceOutcome::Resync(*written));
        }
        let mut output = io::stdout().lock();
        output.write_all(chunk)?;
        output.flush()?;
        *written += chunk.len() as u64;
        Ok(TraceOutcome::Accepted)
    }
}

impl Coordinator for Terminal {
    fn append_trace(&self, _: &JobHandle, start: u64, chunk: &[u8], _: bool) -> TraceReply {
        // A reader that went away (`mayfly exec | head`) ends the job: nobody would see the rest.
        let (outcome, status) = match self.write(start, chunk) {
            Ok(outcome) => (outcome, JobStatus::Ongoing),
            Err(_) => (TraceOutcome::NotFound, JobStatus::Over),
        };
        TraceReply { outcome, status, interval: None }
    }

    fn update_job(&self, _: &JobHandle, _: &JobState, _: TraceSummary) -> UpdateReply {
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
        let terminal = Terminal::default();
        let job = JobHandle { id: 1, token: Token::new("") };
        assert_eq!(terminal.append_trace(&job, 0, b"\n", false).outcome, TraceOutcome::Accepted);
        assert_eq!(terminal.append_trace(&job, 5, b"late\n", false).outcome, TraceOutcome::Resync(1));
    }
}
