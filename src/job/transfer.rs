//! Shared by artifacts and caches: lines for the log, progress, and names with variables.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::archive::root::Root;
use crate::archive::select::Note;
use crate::payload::variables::Variables;
use crate::random;

const GREEN: &str = "\x1b[32;1m";
const YELLOW: &str = "\x1b[0;33m";
const RED: &str = "\x1b[31;1m";
const RESET: &str = "\x1b[0;m";

/// Prints the start or the success of an operation.
pub fn heading(text: impl std::fmt::Display) {
    println!("{GREEN}{text}{RESET}");
}

/// Prints a warning.
pub fn warning(text: impl std::fmt::Display) {
    println!("{YELLOW}WARNING: {text}{RESET}");
}

/// Prints a failure that does not harm the job.
pub fn notice(text: impl std::fmt::Display) {
    println!("{YELLOW}{text}{RESET}");
}

/// Prints an error.
pub fn error(text: impl std::fmt::Display) {
    println!("{RED}ERROR: {text}{RESET}");
}

/// Prints an error that ends the stage; returns the exit status.
pub fn fatal(text: impl std::fmt::Display) -> i32 {
    println!("{RED}FATAL: {text}{RESET}");
    1
}

/// Prints the notes of a file selection.
pub fn notes(notes: &[Note]) {
    for note in notes {
        match note {
            Note::Info(text) => println!("{text}"),
            Note::Warning(text) => warning(text),
        }
    }
}

/// A reader that periodically prints its progress (`TRANSFER_METER_FREQUENCY`).
pub struct Meter<R> {
    reader: R,
    label: &'static str,
    interval: Option<Duration>,
    total: Option<u64>,
    done: u64,
    started: Instant,
    last_report: Instant,
}

impl<R> Meter<R> {
    /// Without `every` it prints nothing.
    pub fn new(reader: R, label: &'static str, every: Option<Duration>, total: Option<u64>) -> Self {
        let now = Instant::now();
        Self { reader, label, interval: every, total, done: 0, started: now, last_report: now }
    }

    /// The number of bytes read.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// The progress line after `elapsed`.
    fn line(&self, elapsed: Duration) -> String {
        let rate = self.done as f64 / elapsed.as_secs_f64().max(0.001);
        let total = self.total.map(|total| format!("/{}", bytes(total as f64))).unwrap_or_default();
        format!("{} {}{total} ({}/s)", self.label, bytes(self.done as f64), bytes(rate))
    }
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.done += length as u64;
        if self.interval.is_some_and(|every| self.last_report.elapsed() >= every) {
            self.last_report = Instant::now();
            println!("\r{}", self.line(self.started.elapsed()));
        }
        Ok(length)
    }
}

/// The interval of progress lines: at least a second; none by default.
pub fn meter_frequency(variables: &Variables) -> Option<Duration> {
    let every = variables.duration("TRANSFER_METER_FREQUENCY")?;
    (!every.is_zero()).then(|| every.max(Duration::from_secs(1)))
}

/// Formats a size in bytes.
pub fn bytes(count: f64) -> String {
    let mut count = count;
    for unit in ["B", "KiB", "MiB"] {
        if count < 1024.0 {
            return if unit == "B" { format!("{count:.0} B") } else { format!("{count:.1} {unit}") };
        }
        count /= 1024.0;
    }
    format!("{count:.1} GiB")
}

/// Waits before a retry; if the job is cancelled meanwhile, the shim ends this process.
pub fn wait_before_retry(wait: Duration) {
    std::thread::sleep(wait);
}

/// The project directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectDir {
    /// `CI_BUILDS_DIR`; below it no link is followed.
    pub builds: PathBuf,
    /// `CI_PROJECT_DIR` on the machine.
    pub directory: PathBuf,
    /// The same as the job sees it, possibly in a container.
    pub seen: PathBuf,
}

impl ProjectDir {
    /// Opens the project directory, below the builds directory; creates it for a job without sources. The error names
    /// the directory that cannot be opened.
    pub fn open(&self) -> Result<Root, String> {
        let opened = match self.directory.strip_prefix(&self.builds) {
            Ok(below) => Root::open(&self.builds).and_then(|builds| builds.descend(below)),
            // The work tree of a user who runs a job by hand.
            Err(_) => Root::open(&self.directory),
        };
        opened.map(|root| root.known_as(&self.seen)).map_err(|why| format!("{}: {why}", self.seen.display()))
    }
}

/// An unnamed temporary file, for data that must be complete before it is used.
pub fn scratch_file(directory: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let path = directory.join(format!("transfer-{}-{:08x}", std::process::id(), random::number()));
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Expands names and paths of artifacts as a shell does between double quotes: `$NAME`, `${NAME}`, `${NAME:-word}`,
/// `${NAME-word}`, `${NAME:+word}`, `${NAME+word}`, `\$`. Other text is kept.
pub fn expand_like_shell(text: &str, value: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['$', '\\']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("\\$") {
            out.push('$');
            rest = after;
            continue;
        }
        let taken = match rest.strip_prefix("${") {
            Some(inside) => closing_brace(inside).and_then(|end| {
                let replaced = parameter(&inside[..end], value)?;
                Some((replaced, &inside[end + 1..]))
            }),
            None => rest.strip_prefix('$').and_then(|after| {
                let end = name_length(after);
                (end > 0).then(|| (value(&after[..end]).unwrap_or_default(), &after[end..]))
            }),
        };
        match taken {
            Some((replaced, after)) => {
                out.push_str(&replaced);
                rest = after;
            }
            None => {
                out.push_str(&rest[..1]);
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn name_length(text: &str) -> usize {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    if starts { end } else { 0 }
}

fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Expands the text between the braces of `${...}`.
fn parameter(text: &str, value: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let end = name_length(text);
    if end == 0 {
        return None;
    }
    let (name, operation) = text.split_at(end);
    let set = value(name);
    let filled = set.clone().filter(|value| !value.is_empty());
    let word = |word: &str| expand_like_shell(word, value);
    if operation.is_empty() {
        Some(set.unwrap_or_default())
    } else if let Some(default) = operation.strip_prefix(":-") {
        Some(filled.unwrap_or_else(|| word(default)))
    } else if let Some(default) = operation.strip_prefix('-') {
        Some(set.unwrap_or_else(|| word(default)))
    } else if let Some(instead) = operation.strip_prefix(":+") {
        Some(filled.map(|_| word(instead)).unwrap_or_default())
    } else {
        operation.strip_prefix('+').map(|instead| set.map(|_| word(instead)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_as_between_double_quotes() {
        let value = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            "B_2" => Some("two".to_owned()),
            _ => None,
        };
        for (text, expected) in [
            ("$A-${A}", "1-1"),
            ("x$B_2.zip", "xtwo.zip"),
            ("${NONE:-d}${EMPTY:-e}${EMPTY-f}", "de"),
            ("${NONE:-$A}${NONE:-${B_2}}", "1two"),
            ("${A:+yes}${NONE:+no}${EMPTY+set}", "yesset"),
            ("$NONE|", "|"),
            ("$(id) $1 $", "$(id) $1 $"),
            ("\\$A \\x", "$A \\x"),
            ("${A", "${A"),
            ("a/**/*.{x,y}", "a/**/*.{x,y}"),
            ("ü$A", "ü1"),
        ] {
            assert_eq!(expand_like_shell(text, &value), expected, "{text}");
        }
    }

    #[test]
    fn a_meter_prints_amount_and_speed() {
        let mut meter = Meter::new(io::repeat(0).take(3 << 20), "Downloading cache", None, Some(6 << 20));
        io::copy(&mut meter, &mut io::sink()).unwrap();
        let line = meter.line(Duration::from_secs(2));
        assert_eq!(line, "Downloading cache 3.0 MiB/6.0 MiB (1.5 MiB/s)");
        meter.total = None;
        assert_eq!(meter.line(Duration::from_secs(3)), "Downloading cache 3.0 MiB (1.0 MiB/s)");
    }

    #[test]
    fn formats_sizes() {
        assert_eq!(bytes(999.0), "999 B");
        assert_eq!(bytes(1536.0), "1.5 KiB");
        assert_eq!(bytes(3.0 * 1024.0 * 1024.0 * 1024.0), "3.0 GiB");
    }
}
