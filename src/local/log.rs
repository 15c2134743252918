//! Reduces a job's log to what a developer wants to see: the output of scripts, without the agent's own messages.
//!
//! The job engine writes the log in GitLab's format, with markers at the start and end of each section. The markers
//! separate scripts from the agent's messages.

use super::color::RESET;
use crate::trace::colours::{CLEAR, GREEN, RED, YELLOW};

/// A line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub kind: LineKind,
    /// The text, with the job's escape codes and without the line ending.
    pub text: String,
}

/// The origin of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineKind {
    /// Output of a script.
    Output,
    /// A command of the script, shown before it runs.
    Command,
    /// A command of `after_script`, shown before it runs.
    AfterScriptCommand,
    /// A message of the agent that the developer should see.
    Notice,
    /// A message about the agent's work; hidden by default.
    Preamble,
}

/// The section of the log that contains a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    /// Before the first section or after the last.
    Outside,
    /// Preparation or clean-up.
    Agent,
    /// Fetching sources; hooks of the job also write here.
    Sources,
    Caches,
    Artifacts,
    Script,
    /// The after_script of the job, which cannot fail it.
    AfterScript,
}

/// How a line of the log ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LineEnd {
    Newline,
    /// The log ends without a line feed.
    EndOfLog,
}

/// The colours at the beginning of the agent's own lines.
const AGENT_PREFIXES: [&str; 2] = [CLEAR, GREEN];
/// The longest line that is buffered until its end arrives, in bytes.
const MAX_LINE: usize = 64 * 1024;

/// Splits a log into lines.
pub struct LogReader {
    /// The beginning of a line whose end has not arrived.
    partial_line: Vec<u8>,
    section: Section,
}

impl Default for LogReader {
    fn default() -> Self {
        Self { partial_line: Vec::new(), section: Section::Outside }
    }
}

impl LogReader {
    /// Processes the next chunk of the log, and passes each complete line to `sink`.
    pub fn push(&mut self, chunk: &[u8], sink: &mut dyn FnMut(Line)) {
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.partial_line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            self.process_line(LineEnd::Newline, sink);
        }
        self.partial_line.extend_from_slice(rest);
        if self.partial_line.len() > MAX_LINE {
            self.process_line(LineEnd::Newline, sink);
        }
    }

    /// Processes the end of the log.
    pub fn finish(&mut self, sink: &mut dyn FnMut(Line)) {
        self.process_line(LineEnd::EndOfLog, sink);
    }

    fn process_line(&mut self, end: LineEnd, sink: &mut dyn FnMut(Line)) {
        let bytes = std::mem::take(&mut self.partial_line);
        let text = String::from_utf8_lossy(&bytes);
        let mut rest: &str = &text;
        let mut is_heading = false;
        let mut has_marker = false;
        while let Some(marker) = Marker::find(rest) {
            if marker.at > 0 {
                self.emit(&rest[..marker.at], sink);
            }
            has_marker = true;
            rest = &rest[marker.end..];
            if let Some(section) = section_of(marker.name) {
                self.section = if marker.starts { section } else { Section::Outside };
                is_heading = marker.starts;
            }
        }
        if is_heading {
            sink(Line { kind: LineKind::Preamble, text: rest.replace(CLEAR, "") });
        } else if !rest.is_empty() || !has_marker && end == LineEnd::Newline {
            self.emit(rest, sink);
        }
    }

    /// Passes a line of the current section to `sink`.
    fn emit(&self, text: &str, sink: &mut dyn FnMut(Line)) {
        let text = text.strip_suffix('\r').unwrap_or(text);
        // A carriage return overwrites the line: only the last part is visible.
        let text = text.rsplit('\r').find(|part| !part.is_empty()).unwrap_or_default();
        let starts_with = |colour: &str, start| text.strip_prefix(colour).is_some_and(|text| text.starts_with(start));
        let is_command = starts_with(GREEN, "$ ");
        let is_warning = starts_with(YELLOW, "WARNING: ");
        let is_notice = is_warning || starts_with(RED, "ERROR: ");
        let kind = match self.section {
            Section::Script if is_command => LineKind::Command,
            Section::AfterScript if is_command => LineKind::AfterScriptCommand,
            Section::AfterScript if starts_with(GREEN, "Running after script...") => LineKind::Preamble,
            Section::Script | Section::AfterScript if is_warning => LineKind::Notice,
            Section::Script | Section::AfterScript => LineKind::Output,
            Section::Sources if is_command => LineKind::Command,
            Section::Sources if is_notice => LineKind::Notice,
            Section::Sources if AGENT_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) => LineKind::Preamble,
            Section::Sources => LineKind::Output,
            Section::Artifacts | Section::Agent if is_notice => LineKind::Notice,
            _ => LineKind::Preamble,
        };
        sink(Line { kind, text: text.to_owned() });
    }
}

/// The section with this name in the job engine; `None` for a section that a script created.
fn section_of(name: &str) -> Option<Section> {
    match name {
        "prepare_executor" | "prepare_script" | "cleanup_file_variables" => Some(Section::Agent),
        "get_sources" => Some(Section::Sources),
        "restore_cache" | "archive_cache" | "archive_cache_on_failure" => Some(Section::Caches),
        "download_artifacts" | "upload_artifacts_on_success" | "upload_artifacts_on_failure" => {
            Some(Section::Artifacts)
        }
        "after_script" => Some(Section::AfterScript),
        _ if name.starts_with("step_") => Some(Section::Script),
        _ => None,
    }
}

/// `section_start:TIME:NAME[options]\r\e[0K`, or the same with `section_end`.
struct Marker<'a> {
    at: usize,
    end: usize,
    starts: bool,
    name: &'a str,
}

impl<'a> Marker<'a> {
    fn find(text: &'a str) -> Option<Self> {
        let mut from = 0;
        while let Some(found) = text[from..].find("section_") {
            let at = from + found;
            if let Some(marker) = Self::at(text, at) {
                return Some(marker);
            }
            from = at + "section_".len();
        }
        None
    }

    fn at(text: &'a str, at: usize) -> Option<Self> {
        let rest = &text[at + "section_".len()..];
        let (starts, rest) = match rest.strip_prefix("start:") {
            Some(rest) => (true, rest),
            None => (false, rest.strip_prefix("end:")?),
        };
        let (time, rest) = rest.split_once(':')?;
        let end = rest.find('\r')?;
        let (label, after) = (&rest[..end], &rest[end + 1..]);
        let name = label.split('[').next().unwrap_or_default();
        let is_marker = time.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() && !name.contains(' ');
        let after = after.strip_prefix(CLEAR).unwrap_or(after);
        is_marker.then_some(Self { at, end: text.len() - after.len(), starts, name })
    }
}

/// Removes escape codes and other control characters: for files, pipes and reports.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\x1b' => skip_escape(&mut characters),
            '\t' => plain.push('\t'),
            other if other.is_control() => {}
            other => plain.push(other),
        }
    }
    plain
}

/// Keeps colours and removes all other control sequences: a job must not move the cursor on a shared screen.
pub fn styled(text: &str) -> String {
    let mut styled = String::with_capacity(text.len() + 4);
    let mut rest = text;
    let mut has_style = false;
    while let Some(start) = rest.find('\x1b') {
        styled.push_str(&plain(&rest[..start]));
        let length = rest[start..]
            .strip_prefix("\x1b[")
            .and_then(|codes| codes.find(|c: char| !c.is_ascii_digit() && !matches!(c, ';' | ':')))
            .filter(|end| rest.as_bytes()[start + 2 + end] == b'm');
        if let Some(end) = length {
            styled.push_str(&rest[start..=start + 2 + end]);
            has_style = true;
            rest = &rest[start + 3 + end..];
            continue;
        }
        let mut characters = rest[start + 1..].chars().peekable();
        skip_escape(&mut characters);
        let left: usize = characters.map(char::len_utf8).sum();
        rest = &rest[rest.len() - left..];
    }
    styled.push_str(&plain(rest));
    if has_style && !styled.ends_with(RESET) {
        styled.push_str(RESET);
    }
    styled
}

/// Skips an escape sequence (ECMA-48): CSI up to its final byte, OSC up to its terminator, else one character.
fn skip_escape(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match characters.next() {
        Some('[') => drop(characters.find(|character| ('@'..='~').contains(character))),
        Some(']') => {
            while let Some(character) = characters.next() {
                if character == '\x07' || character == '\x1b' && characters.next_if_eq(&'\\').is_some() {
                    break;
                }
            }
        }
        Some('(' | ')') => drop(characters.next()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\x1b[0KRunning with mayfly\x1b[0;m\n\
        section_start:1:prepare_executor\r\x1b[0K\x1b[0K\x1b[36;1mPreparing\x1b[0;m\x1b[0;m\n\
        \x1b[0KUsing Shell (bash) executor...\x1b[0;m\n\
        section_end:1:prepare_executor\r\x1b[0Ksection_start:1:get_sources\r\x1b[0K\x1b[0K\x1b[36;1mGetting\x1b[0;m\n\
        \x1b[32;1mSkipping Git checkout\x1b[0;m\nfrom the hook\n\
        section_end:1:get_sources\r\x1b[0Ksection_start:1:step_script\r\x1b[0K\x1b[0K\x1b[36;1mExecuting\x1b[0;m\n\
        \x1b[32;1m$ make\x1b[0;m\n\
        10%\r50%\r100%\r\n\
        \n\
        section_start:5:mine[collapsed=true]\r\x1b[0KMine\n\
        section_end:5:mine\r\x1b[0K\n\
        \x1b[31mred\x1b[0m\n\
        no end of linesection_end:9:step_script\r\x1b[0Ksection_start:9:archive_cache\r\x1b[0K\x1b[0KSaving\n\
        Created cache\n\
        section_end:9:archive_cache\r\x1b[0K\x1b[32;1mJob succeeded\x1b[0;m\n";

    fn lines(pieces: &[&[u8]]) -> Vec<(LineKind, String)> {
        let mut lines = Vec::new();
        let mut reader = LogReader::default();
        let mut take = |line: Line| lines.push((line.kind, plain(&line.text)));
        pieces.iter().for_each(|piece| reader.push(piece, &mut take));
        reader.finish(&mut take);
        lines
    }

    #[test]
    fn extracts_script_output_from_a_log_in_pieces() {
        let whole = lines(&[LOG.as_bytes()]);
        let shown: Vec<_> = whole.iter().filter(|(kind, _)| *kind != LineKind::Preamble).collect();
        let texts: Vec<&str> = shown.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["from the hook", "$ make", "100%", "", "Mine", "red", "no end of line"]);
        assert_eq!(shown[1].0, LineKind::Command);
        for size in [1, 3, 7] {
            let pieces: Vec<&[u8]> = LOG.as_bytes().chunks(size).collect();
            assert_eq!(lines(&pieces), whole, "{size}");
        }
    }

    #[test]
    fn plain_text_has_no_escape_codes() {
        assert_eq!(
            plain("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x1b\\ \x07\ttab é"),
            "red link \ttab é"
        );
        assert_eq!(plain("cut \x1b[3"), "cut ");
    }

    #[test]
    fn styled_text_has_colours_and_no_other_codes() {
        for (text, expected) in [
            ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
            ("\x1b[2J\x1b[31mopen\x07", "\x1b[31mopen\x1b[0m"),
            ("a\x1b[3Ab é\x1b", "ab é"),
            ("\x1b]0;title\x07x\x1b[38:5:1my", "x\x1b[38:5:1my\x1b[0m"),
        ] {
            assert_eq!(styled(text), expected, "{text:?}");
        }
    }
}
