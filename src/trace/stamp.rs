//! Time stamps of log lines (`FF_TIMESTAMPS`): each physical line begins with the time, its stream, and a flag if it
//! continues the previous line. GitLab's log viewer parses them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An incomplete line of this many bytes is written out and continued in the next line.
const MAX_PARTIAL_LENGTH: usize = 8 * 1024;

/// The output that a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Out,
    /// Standard error.
    Error,
}

/// The header of a line, such as `2000-01-01T00:00:00.000000Z 01O `: time, stream, output, and a `+` if the line
/// continues the previous one.
const HEADER: [u8; 32] = *b"2000-01-01T00:00:00.000000Z 00O ";
/// Positions in the header: seconds, microseconds, stream, output, `+`.
const SECONDS: std::ops::Range<usize> = 0..19;
const MICROS: std::ops::Range<usize> = 20..26;
const STREAM: std::ops::Range<usize> = 28..30;
const OUTPUT: usize = 30;
const MARK: usize = 31;

/// How a written line ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LineEnd {
    Complete,
    /// The next line continues this one.
    Continued,
}

/// Puts time stamps before the lines of one stream.
pub struct Stamper {
    /// Lines that were read together share their header.
    header: [u8; HEADER.len()],
    /// The time in the header, since the epoch.
    stamped: Option<Duration>,
    /// The incomplete line.
    line: String,
    /// When the line began, since the epoch; `None` if it is empty.
    began: Option<Duration>,
    /// How the last written line ended.
    last_end: LineEnd,
}

impl Stamper {
    /// `stream` is 0 for the agent's own lines and 1 for the output of a step.
    pub fn new(stream: u8, output: Output) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut header = HEADER;
        header[STREAM].copy_from_slice(&[HEX[usize::from(stream >> 4)], HEX[usize::from(stream & 15)]]);
        header[OUTPUT] = if output == Output::Out { b'O' } else { b'E' };
        Self { header, stamped: None, line: String::new(), began: None, last_end: LineEnd::Complete }
    }

    /// Processes text, and appends complete lines to `out`. An incomplete line that contains a carriage return is
    /// written at once: progress bars and section markers must not wait for the end of their line.
    pub fn push(&mut self, text: &str, out: &mut Vec<u8>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut rest = text;
        while let Some((line, behind)) = rest.split_once('\n') {
            self.write_line(line, now, LineEnd::Complete, out);
            rest = behind;
        }
        if self.line.len() + rest.len() >= MAX_PARTIAL_LENGTH || rest.contains('\r') {
            self.write_line(rest, now, LineEnd::Continued, out);
        } else if !rest.is_empty() {
            self.began.get_or_insert(now);
            self.line.push_str(rest);
        }
    }

    /// Writes an incomplete line; the next line continues it.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if let Some(began) = self.began {
            self.write_line("", began, LineEnd::Continued, out);
        }
    }

    /// Writes the current line, followed by `more`.
    fn write_line(&mut self, more: &str, now: Duration, end: LineEnd, out: &mut Vec<u8>) {
        let time = self.began.take().unwrap_or(now);
        if self.stamped != Some(time) {
            self.stamp(time);
        }
        self.header[MARK] = if self.last_end == LineEnd::Continued { b'+' } else { b' ' };
        out.extend_from_slice(&self.header);
        if !self.line.is_empty() {
            out.extend_from_slice(self.line.as_bytes());
            self.line.clear();
        }
        out.extend_from_slice(more.as_bytes());
        out.push(b'\n');
        self.last_end = end;
    }

    /// Writes a time since the epoch into the header.
    fn stamp(&mut self, time: Duration) {
        if self.stamped.is_none_or(|stamped| stamped.as_secs() != time.as_secs()) {
            let text = jiff::Timestamp::from_second(time.as_secs().cast_signed()).unwrap_or_default().to_string();
            self.header[SECONDS].copy_from_slice(&text.as_bytes()[SECONDS]);
        }
        let mut micros = time.subsec_micros();
        for digit in self.header[MICROS].iter_mut().rev() {
            *digit = b'0' + (micros % 10) as u8;
            micros /= 10;
        }
        self.stamped = Some(time);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The lines without their times.
    fn lines(out: &[u8]) -> Vec<&str> {
        std::str::from_utf8(out)
            .expect("the text must be UTF-8")
            .lines()
            .map(|line| &line["2000-01-01T00:00:00.000000Z".len()..])
            .collect()
    }

    #[test]
    fn stamps_each_line_with_its_stream() {
        let mut stamper = Stamper::new(1, Output::Error);
        let mut out = Vec::new();
        stamper.push("one\ntwo", &mut out);
        stamper.push(" more\n\n", &mut out);
        assert_eq!(lines(&out), [" 01E one", " 01E two more", " 01E "]);
        let text = std::str::from_utf8(&out).expect("the text must be UTF-8");
        let stamp: jiff::Timestamp = text[..27].parse().expect("a time");
        assert!(jiff::Timestamp::now().duration_since(stamp).as_secs() < 60);
    }

    #[test]
    fn a_line_with_a_carriage_return_is_written_at_once_and_continued() {
        let mut stamper = Stamper::new(0, Output::Out);
        let mut out = Vec::new();
        stamper.push("section_start:1:x\r\x1b[0K", &mut out);
        stamper.push("heading\n", &mut out);
        stamper.push("next\n", &mut out);
        assert_eq!(lines(&out), [" 00O section_start:1:x\r\x1b[0K", " 00O+heading", " 00O next"]);
    }

    #[test]
    fn a_long_or_flushed_line_is_continued_in_the_next() {
        let mut stamper = Stamper::new(1, Output::Out);
        let mut out = Vec::new();
        stamper.push(&"x".repeat(MAX_PARTIAL_LENGTH), &mut out);
        stamper.push("y", &mut out);
        stamper.flush(&mut out);
        stamper.flush(&mut out);
        stamper.push("\n", &mut out);
        let lines = lines(&out);
        assert_eq!(lines.len(), 3);
        assert_eq!(&lines[1..], [" 01O+y", " 01O+"]);
    }

    proptest! {
        #[test]
        fn parsing_the_lines_gives_the_original_text(
            text in "[ab\\r\\n]{0,80}",
            cuts in proptest::collection::vec((0..80_usize, any::<bool>()), 0..6),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|(at, flush)| (at.min(text.len()), flush)).collect();
            cuts.sort_unstable();
            let mut stamper = Stamper::new(15, Output::Out);
            let mut out = Vec::new();
            let mut from = 0;
            for (at, flush) in cuts.into_iter().chain([(text.len(), true)]) {
                stamper.push(&text[from..at], &mut out);
                from = at;
                if flush {
                    stamper.flush(&mut out);
                }
            }
            let mut back = String::new();
            for (index, line) in std::str::from_utf8(&out).expect("the text must be UTF-8").split_terminator('\n').enumerate() {
                let (header, content) = line.split_at(32);
                prop_assert!(header[27..].starts_with(" 0fO"), "{}", header);
                match &header[31..] {
                    " " if index > 0 => back.push('\n'),
                    " " | "+" => {}
                    other => prop_assert!(false, "{}", other),
                }
                back.push_str(content);
            }
            // Only the next line shows whether the last one was complete.
            prop_assert_eq!(back.as_str(), text.strip_suffix('\n').unwrap_or(&text));
        }
    }
}
