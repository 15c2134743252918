//! Shows running jobs. On a terminal: the output of all jobs, each line prefixed with the job name, and a status line
//! for each running job. Elsewhere: plain groups of lines, one job after another.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::color::{BOLD, DIM, GREEN, OF_JOBS, RED, RESET, YELLOW};
use super::fit::{self, cut, distinct, pad};
use super::log::{Line, LineKind, plain, styled};
use super::results::{ResultStatus, in_words};

use crate::sync;

/// Display options.
#[derive(Clone, Copy, Debug, Default)]
pub struct DisplayOptions {
    /// Use colours.
    pub color: bool,
    /// The output is a terminal: show status lines, and prefix lines with job names.
    pub live: bool,
    /// Show what the agent does before and after scripts.
    pub verbose: bool,
    /// Show only the result.
    pub quiet: bool,
    /// Show the time before each line.
    pub timestamps: bool,
    /// There is only one job, so lines need no prefix.
    pub alone: bool,
}

/// The screen; shared by all threads.
pub struct Screen {
    look: DisplayOptions,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Vec<Shown>,
    /// The widths of the status lines below the output.
    drawn: Vec<usize>,
    /// The job whose lines were written last.
    owner: Option<usize>,
    /// Why nothing more can be written.
    closed: Option<io::Error>,
    turn: usize,
    /// Names and short names of the jobs that have begun.
    short: Vec<(String, String)>,
}

/// A running job.
struct Shown {
    key: usize,
    name: String,
    stage: String,
    began: Instant,
    /// Output that is buffered until this job may write.
    waiting: String,
}

const TURNS: [&str; 4] = ["-", "\\", "|", "/"];
/// The buffer limit for the output of one job, in bytes.
const WAITING_MOST: usize = 256 * 1024;
/// The longest prefix of a line, in characters.
const LONGEST_NAME: usize = 30;

impl Screen {
    pub fn new(look: DisplayOptions) -> Self {
        Self { look, state: Mutex::default() }
    }

    pub fn look(&self) -> DisplayOptions {
        self.look
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
    pub fn begin(&self, key: usize, name: &str, stage: &str) {
        let shown =
            Shown { key, name: plain(name), stage: plain(stage), began: Instant::now(), waiting: String::new() };
        let mut state = self.lock();
        if self.look.live && !self.look.alone {
            let short = distinct(&shown.name, longest_prefix(), &state.short);
            state.short.push((shown.name.clone(), short));
        }
        state.running.push(shown);
        self.draw(&mut state, "");
    }

    /// Shows lines of a job.
    pub fn lines(&self, key: usize, lines: &[Line]) {
        let mut state = self.lock();
        let prefix = if self.look.live { self.prefix(&state, key) } else { String::new() };
        let mut text = String::new();
        for line in lines.iter().filter(|line| self.is_shown(line)) {
            text.push_str(&prefix);
            if self.look.timestamps {
                text.push_str(&jiff::Timestamp::now().strftime("%H:%M:%S%.3fZ ").to_string());
            }
            text.push_str(&if self.look.color { styled(&line.text) } else { plain(&line.text) });
            text.push('\n');
        }
        if text.is_empty() {
            return;
        }
        let is_first = state.running.first().is_some_and(|first| first.key == key);
        let Some(job) = state.running.iter_mut().find(|job| job.key == key) else { return };
        if !self.look.live {
            job.waiting.push_str(&text);
            if !is_first && job.waiting.len() < WAITING_MOST {
                return;
            }
            let waiting = std::mem::take(&mut job.waiting);
            text = self.header(&mut state, key) + &waiting;
        }
        self.draw(&mut state, &text);
    }

    fn is_shown(&self, line: &Line) -> bool {
        !self.look.quiet && (line.kind != LineKind::Preamble || self.look.verbose)
    }

    /// Ends the display of a job.
    pub fn end(&self, key: usize, status: ResultStatus, duration: Duration, note: &str) {
        let mut state = self.lock();
        let header = if self.look.live || self.look.quiet { String::new() } else { self.header(&mut state, key) };
        let prefix = if self.look.live { self.prefix(&state, key) } else { String::new() };
        let Some(at) = state.running.iter().position(|job| job.key == key) else { return };
        let job = state.running.remove(at);
        let note = if note.is_empty() { String::new() } else { format!(", {note}") };
        let word = self.paint(color_of(status), status.word());
        let ending = match self.look.live {
            true => format!("{word} in {}{note}", in_words(duration)),
            false => format!("== {}: {word} in {}{note}", job.name, in_words(duration)),
        };
        let text = match () {
            () if self.look.quiet || self.look.alone => String::new(),
            () => format!("{header}{}{prefix}{ending}\n", job.waiting),
        };
        self.draw(&mut state, &text);
    }

    /// Shows a message of the run itself. It may contain names and output of jobs.
    pub fn say(&self, text: &str) {
        let shown = |line| if self.look.color { styled(line) } else { plain(line) };
        let lines: String = text.split('\n').map(|line| shown(line) + "\n").collect();
        let mut state = self.lock();
        state.owner = None;
        self.draw(&mut state, &lines);
    }

    /// Refreshes the status lines.
    pub fn tick(&self) {
        if self.look.live {
            let mut state = self.lock();
            state.turn += 1;
            self.draw(&mut state, "");
        }
    }

    /// Removes the status lines.
    pub fn finish(&self) {
        let mut state = self.lock();
        state.running.clear();
        self.draw(&mut state, "");
    }

    /// Adds a colour, if colours are enabled.
    pub fn paint(&self, color: &str, text: &str) -> String {
        if self.look.color && !color.is_empty() { format!("{color}{text}{RESET}") } else { text.to_owned() }
    }

    pub fn strong(&self, text: &str) -> String {
        self.paint(BOLD, text)
    }

    /// A coloured status.
    pub fn status(&self, status: ResultStatus) -> String {
        self.paint(color_of(status), status.word())
    }

    /// The header above the lines of a job, if another job wrote last.
    fn header(&self, state: &mut State, key: usize) -> String {
        if self.look.alone || state.owner.replace(key) == Some(key) {
            return String::new();
        }
        let job = state.running.iter().find(|job| job.key == key);
        job.map(|job| format!("{}\n", self.strong(&format!("== {} ({})", job.name, job.stage)))).unwrap_or_default()
    }

    /// The prefix of a line.
    fn prefix(&self, state: &State, key: usize) -> String {
        if self.look.alone {
            return String::new();
        }
        let short =
            |job: &Shown| state.short.iter().rfind(|(name, _)| *name == job.name).map_or("", |(_, short)| short);
        let widest = state.running.iter().map(|job| fit::width(short(job))).max().unwrap_or(0);
        let name = state.running.iter().find(|job| job.key == key).map_or("", short);
        // A terminal may have become narrower.
        let name = pad(&cut(name, longest_prefix()), widest.min(longest_prefix()));
        let name = self.paint(OF_JOBS[key % OF_JOBS.len()], &name);
        format!("{name} {} ", self.paint(DIM, "|"))
    }

    /// Replaces the status lines by text and new status lines, in one write.
    fn draw(&self, state: &mut State, text: &str) {
        if state.closed.is_some() {
            return;
        }
        let mut out = String::new();
        let (columns, rows) = if self.look.live { size() } else { (0, 0) };
        // A terminal that has become narrower has wrapped the lines.
        let drawn: usize = state.drawn.drain(..).map(|width| width.div_ceil(columns.max(1))).sum();
        // Erased one by one: some terminals keep what is erased together in their history.
        out.push_str(&"\x1b[A\x1b[2K".repeat(drawn));
        out.push_str(text);
        if self.look.live {
            let most = (rows / 3).max(1);
            let turn = TURNS[state.turn / 2 % TURNS.len()];
            for job in state.running.iter().take(most) {
                let line = format!("{turn} {} ({}) {}", job.name, job.stage, in_words(job.began.elapsed()));
                let line = cut(&line, columns.saturating_sub(1));
                out.push_str(&format!("{}\n", self.paint(DIM, &line)));
                state.drawn.push(fit::width(&line));
            }
            if state.running.len() > most {
                let line = format!("  and {} more", state.running.len() - most);
                out.push_str(&format!("{}\n", self.paint(DIM, &line)));
                state.drawn.push(line.len());
            }
        }
        let mut output = io::stdout().lock();
        if !out.is_empty() {
            state.closed = output.write_all(out.as_bytes()).and_then(|()| output.flush()).err();
        }
    }
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
    LONGEST_NAME.min(width() / 4).max(6)
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    terminal_size::terminal_size().map_or((80, 24), |(columns, rows)| (usize::from(columns.0), usize::from(rows.0)))
}

/// Columns of the terminal.
pub fn width() -> usize {
    size().0
}

/// The narrowest first column of a table.
const NARROWEST: usize = 12;

/// The part of the last column that a table keeps free for it.
const LAST: usize = 16;

/// Aligns cells in columns, each as wide as its widest cell; trailing empty cells are dropped. On a terminal, the first
/// column leaves room for the others.
pub fn columns<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(fit::width(cell));
        }
    }
    if io::stdout().is_terminal() {
        let others: usize = widths[1..]
            .iter()
            .enumerate()
            .map(|(at, width)| {
                let is_last = at + 2 == COLUMNS;
                2 + if is_last { LAST.min(*width) } else { *width }
            })
            .sum();
        widths[0] = widths[0].min(width().saturating_sub(others).max(NARROWEST));
    }
    let mut text = String::new();
    let is_long = |row: &&[String; COLUMNS]| fit::width(&row[0]) > widths[0];
    let mut short: Vec<(String, String)> =
        rows.iter().filter(is_long).map(|row| (row[0].clone(), fit::shorten(&row[0], widths[0]))).collect();
    let mut shortened = 0;
    for row in rows {
        let mut first = row[0].clone();
        if is_long(&row) {
            first = distinct(&row[0], widths[0], &short);
            short[shortened].1.clone_from(&first);
            shortened += 1;
        }
        let cells = [&first].into_iter().chain(&row[1..]).zip(widths).map(|(cell, width)| pad(cell, width));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
