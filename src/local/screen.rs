//! What people see while jobs run: on a terminal the output of all jobs with their names before it, and a line for each
//! job that runs; elsewhere plain groups of lines, one job after another.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::log::{Kind, Line, plain, styled};
use super::results::{Status, in_words};

/// How things are shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// Escape codes for colours.
    pub color: bool,
    /// A terminal: status lines that change, names before lines.
    pub live: bool,
    /// What the agent does around scripts.
    pub verbose: bool,
    /// Only the end.
    pub quiet: bool,
    /// The time before each line.
    pub timestamps: bool,
    /// One job: nothing has to tell lines apart.
    pub alone: bool,
}

/// The screen, for all threads.
pub struct Screen {
    look: Look,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Vec<Shown>,
    /// Status lines below the output.
    drawn: usize,
    /// The job whose lines were written last.
    owner: Option<usize>,
    is_closed: bool,
    turn: usize,
}

/// A job that runs.
struct Shown {
    key: usize,
    name: String,
    stage: String,
    began: Instant,
    /// Lines that wait for their turn.
    waiting: String,
}

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";
/// Colours of job names, by their order.
const NAMES: [&str; 6] = ["\x1b[36m", "\x1b[35m", "\x1b[34m", "\x1b[32m", "\x1b[33m", "\x1b[96m"];
const TURNS: [&str; 4] = ["-", "\\", "|", "/"];
/// Bytes of a job's output that wait for their turn.
const WAITING_MOST: usize = 256 * 1024;
/// A name before a line takes no more than a part of the terminal.
const LONGEST_NAME: usize = 30;

impl Screen {
    /// An empty screen.
    pub fn new(look: Look) -> Self {
        Self { look, state: Mutex::default() }
    }

    /// How things are shown.
    pub fn look(&self) -> Look {
        self.look
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when nobody reads any more.
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// A job begins.
    pub fn begin(&self, key: usize, name: &str, stage: &str) {
        let shown = Shown {
            key,
            name: name.to_owned(),
            stage: stage.to_owned(),
            began: Instant::now(),
            waiting: String::new(),
        };
        let mut state = self.lock();
        state.running.push(shown);
        self.draw(&mut state, "");
    }

    /// Lines of a job.
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
        !self.look.quiet && (line.kind != Kind::Preamble || self.look.verbose)
    }

    /// A job is over.
    pub fn end(&self, key: usize, status: Status, duration: Duration, note: &str) {
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

    /// Text of the run itself.
    pub fn say(&self, text: &str) {
        let mut state = self.lock();
        state.owner = None;
        self.draw(&mut state, &format!("{text}\n"));
    }

    /// Time goes by.
    pub fn tick(&self) {
        if self.look.live {
            let mut state = self.lock();
            state.turn += 1;
            self.draw(&mut state, "");
        }
    }

    /// Nothing changes any more: the status lines go.
    pub fn finish(&self) {
        let mut state = self.lock();
        state.running.clear();
        self.draw(&mut state, "");
    }

    /// Text in a colour, where there are any.
    pub fn paint(&self, color: &str, text: &str) -> String {
        if self.look.color && !color.is_empty() { format!("{color}{text}{RESET}") } else { text.to_owned() }
    }

    /// Bold text.
    pub fn strong(&self, text: &str) -> String {
        self.paint(BOLD, text)
    }

    /// A status in its colour.
    pub fn status(&self, status: Status) -> String {
        self.paint(color_of(status), status.word())
    }

    /// The line above the lines of a job, where another one wrote last.
    fn header(&self, state: &mut State, key: usize) -> String {
        if self.look.alone || state.owner.replace(key) == Some(key) {
            return String::new();
        }
        let job = state.running.iter().find(|job| job.key == key);
        job.map(|job| format!("{}\n", self.strong(&format!("== {} ({})", job.name, job.stage)))).unwrap_or_default()
    }

    /// The name before a line.
    fn prefix(&self, state: &State, key: usize) -> String {
        if self.look.alone {
            return String::new();
        }
        let most = LONGEST_NAME.min(width() / 4).max(6);
        let widest = state.running.iter().map(|job| job.name.chars().count()).max().unwrap_or(0).min(most);
        let name = state.running.iter().find(|job| job.key == key).map_or("", |job| &job.name);
        let name = self.paint(NAMES[key % NAMES.len()], &format!("{:<widest$}", cut(name, most)));
        format!("{name} {} ", self.paint(DIM, "|"))
    }

    /// Replaces the status lines by text and new ones, in one write.
    fn draw(&self, state: &mut State, text: &str) {
        if state.is_closed {
            return;
        }
        let mut out = String::new();
        if state.drawn > 0 {
            out.push_str(&format!("\x1b[{}A\r\x1b[J", state.drawn));
        }
        out.push_str(text);
        state.drawn = 0;
        if self.look.live {
            let (columns, rows) = size();
            let most = (rows / 3).max(1);
            let turn = TURNS[state.turn / 2 % TURNS.len()];
            for job in state.running.iter().take(most) {
                let line = format!("{turn} {} ({}) {}", job.name, job.stage, in_words(job.began.elapsed()));
                out.push_str(&format!("{}\n", self.paint(DIM, &cut(&line, columns.saturating_sub(1)))));
                state.drawn += 1;
            }
            if state.running.len() > most {
                out.push_str(&format!("{}\n", self.paint(DIM, &format!("  and {} more", state.running.len() - most))));
                state.drawn += 1;
            }
        }
        let mut output = io::stdout().lock();
        if !out.is_empty() && output.write_all(out.as_bytes()).and_then(|()| output.flush()).is_err() {
            state.is_closed = true;
        }
    }
}

fn color_of(status: Status) -> &'static str {
    match status {
        Status::Success => GREEN,
        Status::Failed | Status::Canceled => RED,
        Status::Warning => YELLOW,
        Status::Skipped | Status::Manual | Status::Waiting => DIM,
    }
}

/// The start of a text, with a sign that there is more of it.
fn cut(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most.saturating_sub(1)).chain(['~']).collect(),
        false => text.to_owned(),
    }
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    terminal_size::terminal_size().map_or((80, 24), |(columns, rows)| (usize::from(columns.0), usize::from(rows.0)))
}

/// Columns of the terminal.
pub fn width() -> usize {
    size().0
}

/// Rows as columns, each as wide as its widest cell; empty columns at the end are left out.
pub fn columns<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
