//! Shows running jobs. On a terminal: the output of all jobs, each line prefixed with the job name, and a status line
//! for each running job. Elsewhere: plain groups of lines, one job after another.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::color::{BOLD, DIM, GREEN, JOB_COLORS, RED, RESET, YELLOW};
use super::fit::{self, cut, distinct_short_name, pad};
use super::log::{Line, LineKind, plain, styled};
use super::results::{ResultStatus, in_words};
use crate::sync;

/// Which lines are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Only the result of the run.
    Result,
    /// The output of scripts, and the results of jobs.
    #[default]
    Scripts,
    /// Also what the agent does before and after scripts.
    Agent,
}

/// Whether lines need the names of their jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JobNames {
    /// There is only one job.
    Omitted,
    #[default]
    Shown,
}

/// Display options.
#[derive(Clone, Copy, Debug, Default)]
pub struct DisplayOptions {
    /// The output is a terminal that shows colours.
    pub color: bool,
    /// Show the time before each line.
    pub timestamps: bool,
    pub detail: Detail,
    pub job_names: JobNames,
}

impl DisplayOptions {
    /// Whether the screen shows status lines, and the lines of all jobs as they arrive.
    fn is_live(self) -> bool {
        self.color && self.detail != Detail::Result
    }
}

/// The screen; shared by all threads.
pub struct Screen {
    options: DisplayOptions,
    state: Mutex<ScreenState>,
}

#[derive(Default)]
struct ScreenState {
    running: Vec<RunningJob>,
    /// The widths of the status lines that are shown below the output.
    status_lines: Vec<usize>,
    /// The job whose lines were written last.
    last_writer: Option<usize>,
    /// The error that ended the output.
    closed: Option<io::Error>,
    /// The number of refreshes of the status lines.
    refreshes: usize,
    /// Names and short names of the jobs that have begun.
    short_names: Vec<(String, String)>,
}

/// A running job.
struct RunningJob {
    key: usize,
    name: String,
    stage: String,
    began: Instant,
    /// Output that is buffered until this job may write.
    buffered: String,
}

/// The pictures of the spinner at the beginning of status lines.
const SPINNER: [&str; 4] = ["-", "\\", "|", "/"];
/// The buffer limit for the output of one job, in bytes.
const MAX_BUFFERED: usize = 256 * 1024;
/// The longest prefix of a line, in columns.
const MAX_PREFIX: usize = 30;

impl Screen {
    pub fn new(options: DisplayOptions) -> Self {
        Self { options, state: Mutex::default() }
    }

    pub fn options(&self) -> DisplayOptions {
        self.options
    }

    /// Whether the screen has status lines, which need a refresh at intervals.
    pub fn has_status_lines(&self) -> bool {
        self.options.is_live()
    }

    fn is_single_job(&self) -> bool {
        self.options.job_names == JobNames::Omitted
    }

    fn lock(&self) -> MutexGuard<'_, ScreenState> {
        sync::lock(&self.state)
    }

    /// Whether the output cannot be written: its reader has closed it, or the disk is full.
    pub fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// The error that ended the output, unless its reader has closed it.
    pub fn write_error(&self) -> Option<String> {
        let state = self.lock();
        let error = state.closed.as_ref().filter(|error| error.kind() != io::ErrorKind::BrokenPipe);
        error.map(ToString::to_string)
    }

    /// Starts the display of a job.
    pub fn begin_job(&self, key: usize, name: &str, stage: &str) {
        let shown =
            RunningJob { key, name: plain(name), stage: plain(stage), began: Instant::now(), buffered: String::new() };
        let mut state = self.lock();
        if self.options.is_live() && !self.is_single_job() {
            let short = distinct_short_name(&shown.name, longest_prefix(), &state.short_names);
            state.short_names.push((shown.name.clone(), short));
        }
        state.running.push(shown);
        self.draw(&mut state, "");
    }

    /// Shows lines of a job.
    pub fn show_lines(&self, key: usize, lines: &[Line]) {
        let mut state = self.lock();
        let prefix = if self.options.is_live() { self.prefix(&state, key) } else { String::new() };
        let mut text = String::new();
        for line in lines.iter().filter(|line| self.is_shown(line)) {
            text.push_str(&prefix);
            text.push_str(&self.format_line(line));
        }
        if text.is_empty() {
            return;
        }
        let is_first = state.running.first().is_some_and(|first| first.key == key);
        let Some(job) = state.running.iter_mut().find(|job| job.key == key) else { return };
        if !self.options.is_live() {
            job.buffered.push_str(&text);
            if !is_first && job.buffered.len() < MAX_BUFFERED {
                return;
            }
            let buffered = std::mem::take(&mut job.buffered);
            text = self.header(&mut state, key) + &buffered;
        }
        self.draw(&mut state, &text);
    }

    fn format_line(&self, line: &Line) -> String {
        let text = if self.options.color { styled(&line.text) } else { plain(&line.text) };
        match self.options.timestamps {
            true => format!("{} {text}\n", jiff::Timestamp::now().strftime("%H:%M:%S%.3fZ")),
            false => format!("{text}\n"),
        }
    }

    fn is_shown(&self, line: &Line) -> bool {
        match self.options.detail {
            Detail::Result => false,
            Detail::Scripts => line.kind != LineKind::Preamble,
            Detail::Agent => true,
        }
    }

    /// Ends the display of a job.
    pub fn end_job(&self, key: usize, status: ResultStatus, duration: Duration, note: &str) {
        let mut state = self.lock();
        let (header, prefix) = match self.options.is_live() {
            true => (String::new(), self.prefix(&state, key)),
            false if self.options.detail == Detail::Result => Default::default(),
            false => (self.header(&mut state, key), String::new()),
        };
        let Some(at) = state.running.iter().position(|job| job.key == key) else { return };
        let job = state.running.remove(at);
        let note = if note.is_empty() { String::new() } else { format!(", {note}") };
        let word = self.paint(color_of(status), status.word());
        let ending = match self.options.is_live() {
            true => format!("{word} in {}{note}", in_words(duration)),
            false => format!("== {}: {word} in {}{note}", job.name, in_words(duration)),
        };
        let is_hidden = self.options.detail == Detail::Result || self.is_single_job();
        let text = if is_hidden { String::new() } else { format!("{header}{}{prefix}{ending}\n", job.buffered) };
        self.draw(&mut state, &text);
    }

    /// Shows a message about the run. The message may contain names and output of jobs.
    pub fn show_message(&self, text: &str) {
        let shown = |line| if self.options.color { styled(line) } else { plain(line) };
        let lines: String = text.split('\n').map(|line| shown(line) + "\n").collect();
        let mut state = self.lock();
        state.last_writer = None;
        self.draw(&mut state, &lines);
    }

    /// Refreshes the status lines.
    pub fn refresh(&self) {
        if self.options.is_live() {
            let mut state = self.lock();
            state.refreshes += 1;
            self.draw(&mut state, "");
        }
    }

    /// Removes the status lines.
    pub fn clear_status_lines(&self) {
        let mut state = self.lock();
        state.running.clear();
        self.draw(&mut state, "");
    }

    /// Adds a colour, if colours are enabled.
    pub fn paint(&self, color: &str, text: &str) -> String {
        if self.options.color && !color.is_empty() { format!("{color}{text}{RESET}") } else { text.to_owned() }
    }

    pub fn bold(&self, text: &str) -> String {
        self.paint(BOLD, text)
    }

    /// A coloured status.
    pub fn status(&self, status: ResultStatus) -> String {
        self.paint(color_of(status), status.word())
    }

    /// The header above the lines of a job, if another job wrote last.
    fn header(&self, state: &mut ScreenState, key: usize) -> String {
        if self.is_single_job() || state.last_writer.replace(key) == Some(key) {
            return String::new();
        }
        let job = state.running.iter().find(|job| job.key == key);
        job.map(|job| format!("{}\n", self.bold(&format!("== {} ({})", job.name, job.stage)))).unwrap_or_default()
    }

    /// The prefix of a line.
    fn prefix(&self, state: &ScreenState, key: usize) -> String {
        if self.is_single_job() {
            return String::new();
        }
        let short = |job: &RunningJob| {
            state.short_names.iter().rfind(|(name, _)| *name == job.name).map_or("", |(_, short)| short)
        };
        let widest = state.running.iter().map(|job| fit::width(short(job))).max().unwrap_or(0);
        let name = state.running.iter().find(|job| job.key == key).map_or("", short);
        // A terminal may have become narrower.
        let name = pad(&cut(name, longest_prefix()), widest.min(longest_prefix()));
        let name = self.paint(JOB_COLORS[key % JOB_COLORS.len()], &name);
        format!("{name} {} ", self.paint(DIM, "|"))
    }

    /// Replaces the status lines by text and new status lines, in one write.
    fn draw(&self, state: &mut ScreenState, text: &str) {
        if state.closed.is_some() {
            return;
        }
        let mut out = String::new();
        if self.options.is_live() {
            let (columns, rows) = size();
            // A terminal that has become narrower has wrapped the lines.
            let shown: usize = state.status_lines.drain(..).map(|width| width.div_ceil(columns.max(1))).sum();
            // Lines are erased one by one: some terminals keep lines that are erased together in their history.
            out.push_str(&"\x1b[A\x1b[2K".repeat(shown));
            out.push_str(text);
            for line in status_lines(state, columns, (rows / 3).max(1)) {
                out.push_str(&format!("{}\n", self.paint(DIM, &line)));
                state.status_lines.push(fit::width(&line));
            }
        } else {
            out.push_str(text);
        }
        let mut output = io::stdout().lock();
        if !out.is_empty() {
            state.closed = output.write_all(out.as_bytes()).and_then(|()| output.flush()).err();
        }
    }
}

/// A line for each running job, up to `max_jobs`, and a line with the number of the other running jobs.
fn status_lines(state: &ScreenState, columns: usize, max_jobs: usize) -> Vec<String> {
    let spinner = SPINNER[state.refreshes / 2 % SPINNER.len()];
    let line_of = |job: &RunningJob| {
        let line = format!("{spinner} {} ({}) {}", job.name, job.stage, in_words(job.began.elapsed()));
        cut(&line, columns.saturating_sub(1))
    };
    let others = state.running.len().saturating_sub(max_jobs);
    let more = (others > 0).then(|| format!("  and {others} more"));
    state.running.iter().take(max_jobs).map(line_of).chain(more).collect()
}

fn color_of(status: ResultStatus) -> &'static str {
    match status {
        ResultStatus::Success => GREEN,
        ResultStatus::Failed | ResultStatus::Canceled => RED,
        ResultStatus::Warning => YELLOW,
        ResultStatus::Skipped | ResultStatus::Manual | ResultStatus::Waiting => DIM,
    }
}

/// The longest prefix of a line on this terminal.
fn longest_prefix() -> usize {
    MAX_PREFIX.min(width() / 4).max(6)
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    terminal_size::terminal_size().map_or((80, 24), |(columns, rows)| (usize::from(columns.0), usize::from(rows.0)))
}

/// Columns of the terminal.
pub fn width() -> usize {
    size().0
}
