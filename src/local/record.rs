//! Extracts data from a job's log while the job runs: lines for the screen and the report, the last lines, the last
//! command, the coverage.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::log::{Line, LineKind, LogReader, plain};
use super::results::TAIL;
use super::screen::Screen;
use crate::coordinator::{
    Coordinator, JobHandle, JobState, JobStatus, TraceKind, TraceOutcome, TraceReply, TraceSummary, UpdateOutcome,
    UpdateReply,
};
use crate::sync;

/// How often the user sees new output.
const INTERVAL: Duration = Duration::from_millis(100);
/// The longest line that is searched for coverage, as on GitLab.
const LONGEST_LINE: usize = 64 * 1024;

/// Finds the coverage in a line: the last match of a pattern.
pub type Coverage = Box<dyn Fn(&str) -> Option<String> + Send>;

/// Follows the log of one attempt of a job.
pub struct Recorder {
    screen: Arc<Screen>,
    key: usize,
    state: Mutex<State>,
}

/// The data extracted from the log of an attempt.
#[derive(Clone, Debug, Default)]
pub struct Extracted {
    /// The last lines of the output.
    pub tail: VecDeque<String>,
    /// The command that ran last.
    pub command: Option<String>,
    /// The coverage, as text.
    pub coverage: Option<String>,
    /// The agent's message about the failure.
    pub message: Option<String>,
}

struct State {
    /// The number of log bytes that are already processed.
    size: u64,
    reader: LogReader,
    taken: Extracted,
    /// The file for the output.
    file: Option<(PathBuf, BufWriter<File>)>,
    /// The file that could not be written, and why.
    lost: Option<(PathBuf, io::Error)>,
    coverage: Option<Coverage>,
}

impl Recorder {
    /// Creates a recorder. The plain text of the log is written to `path`, if given; a failure to write is a warning.
    pub fn new(screen: Arc<Screen>, key: usize, path: Option<&Path>, coverage: Option<Coverage>) -> Self {
        let mut state = State {
            size: 0,
            reader: LogReader::default(),
            taken: Extracted::default(),
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

    pub fn taken(&self) -> Extracted {
        sync::lock(&self.state).taken.clone()
    }

    /// Shows a message of the run itself between the lines of the job.
    pub fn notice(&self, text: String) {
        self.take(&mut sync::lock(&self.state), &[Line { kind: LineKind::Notice, text }]);
    }

    fn take(&self, state: &mut State, lines: &[Line]) {
        lines.iter().for_each(|line| state.take(line));
        self.screen.lines(self.key, lines);
    }
}

impl State {
    /// Writes to the file. A full disk does not stop the job.
    fn save(&mut self, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        let Some((_, file)) = &mut self.file else { return };
        if let Err(error) = write(file) {
            self.lost = self.file.take().map(|(path, file)| {
                // Its buffer must not be written when it is dropped.
                drop(file.into_parts());
                (path, error)
            });
        }
    }

    fn take(&mut self, line: &Line) {
        let text = plain(&line.text);
        if line.kind == LineKind::Preamble {
            let reason =
                text.strip_prefix("ERROR: Job failed").map(|rest| rest.trim_start_matches(" (system failure)"));
            if let Some(reason) = reason.and_then(|rest| rest.strip_prefix(": ")) {
                self.taken.message = Some(reason.to_owned());
            }
            return;
        }
        self.save(|file| writeln!(file, "{text}"));
        if line.kind == LineKind::Command {
            self.taken.command = Some(text.trim_start_matches("$ ").to_owned());
        }
        if line.kind == LineKind::Output
            && let Some(found) =
                self.coverage.as_ref().filter(|_| text.len() < LONGEST_LINE).and_then(|find| find(&text))
        {
            self.taken.coverage = Some(found);
        }
        if self.taken.tail.len() == TAIL {
            self.taken.tail.pop_front();
        }
        self.taken.tail.push_back(text);
    }
}

impl Coordinator for Recorder {
    fn append_trace(&self, _: &JobHandle, start: u64, chunk: &[u8], _: TraceKind) -> TraceReply {
        let mut state = sync::lock(&self.state);
        if start != state.size {
            let outcome = TraceOutcome::Resync(state.size);
            return TraceReply { outcome, status: JobStatus::Ongoing, interval: Some(INTERVAL) };
        }
        let mut lines = Vec::new();
        state.reader.push(chunk, &mut |line| lines.push(line));
        state.size += chunk.len() as u64;
        self.take(&mut state, &lines);
        // If the reader has closed the pipe (`mayfly exec | head`), the job is stopped.
        let status = if self.screen.is_closed() { JobStatus::Finished } else { JobStatus::Ongoing };
        TraceReply { outcome: TraceOutcome::Accepted, status, interval: Some(INTERVAL) }
    }

    fn update_job(&self, _: &JobHandle, job: &JobState, _: TraceSummary) -> UpdateReply {
        if *job != JobState::Running {
            let mut state = sync::lock(&self.state);
            let mut lines = Vec::new();
            state.reader.finish(&mut |line| lines.push(line));
            self.take(&mut state, &lines);
            state.save(|file| file.flush());
            if let Some((path, error)) = state.lost.take() {
                self.screen
                    .say(&format!("warning: the output of the job is incomplete in {}: {error}", path.display()));
            }
        }
        UpdateReply { outcome: UpdateOutcome::Done, status: JobStatus::Ongoing, interval: Some(INTERVAL) }
    }

    fn first_interval(&self) -> Duration {
        INTERVAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::screen::DisplayOptions;

    #[test]
    fn the_user_sees_output_while_the_job_runs() {
        let screen = Arc::new(Screen::new(DisplayOptions::default()));
        assert_eq!(Recorder::new(screen, 0, None, None).first_interval(), INTERVAL);
    }
}
