//! Receives a job's log while the job runs: shows its lines, writes them to a file, and extracts the last lines, the
//! last command and the coverage.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::log::{Line, LineKind, LogReader, plain};
use super::results::MAX_TAIL_LINES;
use super::screen::Screen;
use crate::coordinator::{
    Coordinator, JobHandle, JobState, JobStatus, TraceKind, TraceOutcome, TraceReply, TraceSummary, UpdateOutcome,
    UpdateReply,
};
use crate::sync;

/// The time between two updates of the output on the screen.
const UPDATE_INTERVAL: Duration = Duration::from_millis(100);
/// The longest line that is searched for coverage, as on GitLab, in bytes.
const MAX_COVERAGE_LINE: usize = 64 * 1024;

/// Finds the coverage in a line: the last match of a pattern.
pub type CoverageFinder = Box<dyn Fn(&str) -> Option<String> + Send>;

/// Receives the log of one attempt of a job in place of GitLab.
pub struct Recorder {
    screen: Arc<Screen>,
    key: usize,
    state: Mutex<RecorderState>,
}

/// The data extracted from the log of an attempt.
#[derive(Clone, Debug, Default)]
pub struct LogExtract {
    /// The last lines of the output.
    pub tail: VecDeque<String>,
    /// The command that ran last.
    pub command: Option<String>,
    /// The coverage, as text.
    pub coverage: Option<String>,
    /// The agent's message about the failure.
    pub message: Option<String>,
}

struct RecorderState {
    /// The number of log bytes that are already processed.
    size: u64,
    reader: LogReader,
    extracted: LogExtract,
    /// The file for the output.
    file: Option<(PathBuf, BufWriter<File>)>,
    /// The file that could not be written, and why.
    lost: Option<(PathBuf, io::Error)>,
    coverage: Option<CoverageFinder>,
}

impl Recorder {
    /// Creates a recorder. The plain text of the log is written to `path`, if given; a failure to write is a warning.
    pub fn new(screen: Arc<Screen>, key: usize, path: Option<&Path>, coverage: Option<CoverageFinder>) -> Self {
        let mut state = RecorderState {
            size: 0,
            reader: LogReader::default(),
            extracted: LogExtract::default(),
            file: None,
            lost: None,
            coverage,
        };
        if let Some(path) = path {
            match File::options().create(true).append(true).open(path) {
                Ok(file) => state.file = Some((path.to_owned(), BufWriter::new(file))),
                Err(error) => state.lost = Some((path.to_owned(), error)),
            }
        }
        Self { screen, key, state: Mutex::new(state) }
    }

    /// The data extracted so far.
    pub fn extracted(&self) -> LogExtract {
        sync::lock(&self.state).extracted.clone()
    }

    /// Shows a message of the run itself between the lines of the job.
    pub fn notice(&self, text: String) {
        self.record(&mut sync::lock(&self.state), &[Line { kind: LineKind::Notice, text }]);
    }

    fn record(&self, state: &mut RecorderState, lines: &[Line]) {
        lines.iter().for_each(|line| state.record(line));
        self.screen.show_lines(self.key, lines);
    }
}

impl RecorderState {
    /// Writes to the file. If that fails, the job continues without the file.
    fn save(&mut self, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        let Some((_, file)) = &mut self.file else { return };
        if let Err(error) = write(file) {
            self.lost = self.file.take().map(|(path, file)| {
                // Dropping the writer would write its buffer again.
                drop(file.into_parts());
                (path, error)
            });
        }
    }

    fn record(&mut self, line: &Line) {
        let text = plain(&line.text);
        if line.kind == LineKind::Preamble {
            let reason =
                text.strip_prefix("ERROR: Job failed").map(|rest| rest.trim_start_matches(" (system failure)"));
            if let Some(reason) = reason.and_then(|rest| rest.strip_prefix(": ")) {
                self.extracted.message = Some(reason.to_owned());
            }
            return;
        }
        self.save(|file| writeln!(file, "{text}"));
        if line.kind == LineKind::Command {
            self.extracted.command = Some(text.trim_start_matches("$ ").to_owned());
        }
        if line.kind == LineKind::Output
            && let Some(found) =
                self.coverage.as_ref().filter(|_| text.len() < MAX_COVERAGE_LINE).and_then(|find| find(&text))
        {
            self.extracted.coverage = Some(found);
        }
        if self.extracted.tail.len() == MAX_TAIL_LINES {
            self.extracted.tail.pop_front();
        }
        self.extracted.tail.push_back(text);
    }
}

impl Coordinator for Recorder {
    fn append_trace(&self, _: &JobHandle, start: u64, chunk: &[u8], _: TraceKind) -> TraceReply {
        let mut state = sync::lock(&self.state);
        if start != state.size {
            let outcome = TraceOutcome::Resync(state.size);
            return TraceReply { outcome, status: JobStatus::Ongoing, interval: Some(UPDATE_INTERVAL) };
        }
        let mut lines = Vec::new();
        state.reader.push(chunk, &mut |line| lines.push(line));
        state.size += chunk.len() as u64;
        self.record(&mut state, &lines);
        // If the reader has closed the pipe (`mayfly exec | head`), the job is stopped.
        let status = if self.screen.is_closed() { JobStatus::Finished } else { JobStatus::Ongoing };
        TraceReply { outcome: TraceOutcome::Accepted, status, interval: Some(UPDATE_INTERVAL) }
    }

    fn update_job(&self, _: &JobHandle, job: &JobState, _: TraceSummary) -> UpdateReply {
        if *job != JobState::Running {
            let mut state = sync::lock(&self.state);
            let mut lines = Vec::new();
            state.reader.finish(&mut |line| lines.push(line));
            self.record(&mut state, &lines);
            state.save(|file| file.flush());
            if let Some((path, error)) = state.lost.take() {
                self.screen.show_message(&format!(
                    "warning: the output of the job is incomplete in {}: {error}",
                    path.display()
                ));
            }
        }
        UpdateReply { outcome: UpdateOutcome::Done, status: JobStatus::Ongoing, interval: Some(UPDATE_INTERVAL) }
    }

    fn first_interval(&self) -> Duration {
        UPDATE_INTERVAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::screen::DisplayOptions;

    #[test]
    fn the_user_sees_output_while_the_job_runs() {
        let screen = Arc::new(Screen::new(DisplayOptions::default()));
        assert_eq!(Recorder::new(screen, 0, None, None).first_interval(), UPDATE_INTERVAL);
    }
}
