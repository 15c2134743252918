//! The agent's own lines in a job's log, in gitlab-runner's colours, and the section markers.

use std::io;
use std::path::Path;

use super::colours::{CLEAR, CYAN, GREEN, RED, RESET, YELLOW};
use super::filter::Filter;
use super::spool::{Spool, TextKind};
use super::stamp::Output;
use super::{FilterSpec, Masks};
use crate::sys;

/// The stream numbers that GitLab uses.
const AGENT: u8 = 0;
const SERVICES: u8 = 0x0f;

/// Whether the agent writes the markers of sections, which GitLab's log viewer collapses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionMarkers {
    Written,
    /// GitLab does not support them (`features.trace_sections`), or this writer has no sections.
    Omitted,
}

/// The last line of a log, which shows the result of the job.
#[derive(Debug)]
pub enum ResultLine {
    Success(String),
    Failure(String),
}

/// Writes the agent's lines into the log of one job.
pub struct Trace {
    spool: Spool,
    spec: FilterSpec,
    masks: Masks,
    sections: SectionMarkers,
}

impl Trace {
    /// Opens the spool of a job.
    pub fn open(path: &Path, spec: &FilterSpec, sections: SectionMarkers) -> io::Result<Self> {
        let spool = Spool::open(path, spec.limit)?;
        Ok(Self { spool, masks: spec.patterns(), spec: spec.clone(), sections })
    }

    /// A yellow line: something is not as the job requested, but the job continues.
    pub fn warning(&self, text: &str) {
        self.write(&format!("{YELLOW}WARNING: {text}{RESET}\n"), TextKind::Result);
    }

    /// A line of output of a service.
    pub fn service(&self, text: &str) {
        self.write_as(SERVICES, &format!("{text}\n"), TextKind::Output);
    }

    /// Ends the previous section, and starts a section with its heading and first lines. The whole text is one atomic
    /// append: the next agent can tell from the log whether it was written.
    pub fn begin_section(&self, before: Option<&str>, section: &str, heading: &str, lines: &[String]) {
        let end = before.map(|name| self.marker("section_end", name)).unwrap_or_default();
        let start = self.marker("section_start", section);
        let lines: String = lines.iter().map(|line| format!("{CLEAR}{line}{RESET}\n")).collect();
        self.write(&format!("{end}{start}{CLEAR}{CYAN}{heading}{RESET}{RESET}\n{lines}"), TextKind::Output);
    }

    /// Ends the last section and writes the result of the job, as one atomic append that is never dropped.
    pub fn write_result(&self, section: Option<&str>, result: &ResultLine) {
        let end = section.map(|name| self.marker("section_end", name)).unwrap_or_default();
        let dropped = match self.spool.dropped() {
            0 => String::new(),
            bytes => {
                format!("{YELLOW}WARNING: {bytes} bytes of output exceeded the limit of the log and are lost{RESET}\n")
            }
        };
        let line = match result {
            ResultLine::Success(text) => format!("{GREEN}{text}{RESET}\n"),
            ResultLine::Failure(text) => format!("{RED}ERROR: {text}{RESET}\n"),
        };
        self.write(&format!("{end}{dropped}{line}"), TextKind::Result);
    }

    /// Several plain lines, followed by warnings, as one atomic append.
    pub fn header(&self, lines: &[String], warnings: &[String]) {
        let lines = lines.iter().map(|line| format!("{CLEAR}{line}{RESET}\n"));
        let warnings = warnings.iter().map(|text| format!("{YELLOW}WARNING: {text}{RESET}\n"));
        self.write(&lines.chain(warnings).collect::<String>(), TextKind::Output);
    }

    /// The number of bytes in the log.
    pub fn size(&self) -> u64 {
        self.spool.size()
    }

    fn marker(&self, word: &str, name: &str) -> String {
        if self.sections == SectionMarkers::Omitted {
            return String::new();
        }
        let now = sys::unix_now();
        format!("{word}:{now}:{name}\r{CLEAR}")
    }

    fn write(&self, text: &str, kind: TextKind) {
        self.write_as(AGENT, text, kind);
    }

    fn write_as(&self, stream: u8, text: &str, kind: TextKind) {
        let mut filter = Filter::new(&self.masks, &self.spec, stream, Output::Out);
        let mut out = Vec::new();
        filter.push(text.as_bytes(), &mut out);
        filter.finish(&mut out);
        if let Err(error) = self.spool.append(&out, kind) {
            log::error!("cannot write a line of a job's log error={error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_lines_and_sections() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        let spec = FilterSpec { masks: vec!["hunter22".into()], limit: 1 << 20, ..FilterSpec::default() };
        let trace = Trace::open(&path, &spec, SectionMarkers::Written).expect("open the file");
        trace.begin_section(None, "get_sources", "Getting source", &[]);
        trace.warning("the value is hunter22");
        trace.write_result(Some("get_sources"), &ResultLine::Success("Job succeeded".to_owned()));
        let text = std::fs::read_to_string(&path).expect("read the file");
        let lines: Vec<&str> = text.split('\n').collect();
        assert!(
            lines[0].starts_with("section_start:")
                && lines[0].contains(":get_sources\r\x1b[0K\x1b[0K\x1b[36;1mGetting")
        );
        assert_eq!(lines[1], "\x1b[0;33mWARNING: the value is [MASKED]\x1b[0;m");
        assert!(lines[2].starts_with("section_end:"));
    }

    #[test]
    fn the_last_line_tells_how_much_the_limit_dropped() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        let spec = FilterSpec { limit: 8, ..FilterSpec::default() };
        let trace = Trace::open(&path, &spec, SectionMarkers::Omitted).expect("open the file");
        Spool::open(&path, 8).expect("open the file").append(b"1234567890", TextKind::Output).expect("write all bytes");
        trace.write_result(None, &ResultLine::Failure("Job failed".to_owned()));
        let text = std::fs::read_to_string(&path).expect("read the file");
        let expected = "WARNING: 2 bytes of output exceeded the limit of the log and are lost\x1b[0;m\n\x1b[31;1mERROR: Job failed";
        assert!(text.contains(expected), "{text}");
    }
}
