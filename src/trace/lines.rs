//! The agent's own lines in a job's log, in the colours that job authors know, and the markers of sections.

use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::filter::Filter;
use super::spool::{Claim, Spool};
use super::stamp::Output;
use super::{FilterSpec, Masks};

const CLEAR: &str = "\x1b[0K";
const RESET: &str = "\x1b[0;m";
const GREEN: &str = "\x1b[32;1m";
const CYAN: &str = "\x1b[36;1m";
const RED: &str = "\x1b[31;1m";
const YELLOW: &str = "\x1b[0;33m";

/// Writes the agent's lines of one job.
pub struct Trace {
    spool: Spool,
    spec: FilterSpec,
    masks: Masks,
    /// The server folds sections (`features.trace_sections`).
    sections: bool,
}

impl Trace {
    /// Opens the spool of a job.
    pub fn open(path: &Path, spec: &FilterSpec, sections: bool) -> io::Result<Self> {
        let spool = Spool::open(path, spec.limit)?;
        Ok(Self { spool, masks: spec.patterns(), spec: spec.clone(), sections })
    }

    /// A plain line.
    pub fn plain(&self, text: &str) {
        self.write(&format!("{CLEAR}{text}{RESET}\n"), Claim::Output);
    }

    /// A green line.
    pub fn info(&self, text: &str) {
        self.write(&format!("{GREEN}{text}{RESET}\n"), Claim::Output);
    }

    /// A yellow line: something is not as the job asked, and it goes on.
    pub fn warning(&self, text: &str) {
        self.write(&format!("{YELLOW}WARNING: {text}{RESET}\n"), Claim::Result);
    }

    /// A red line.
    pub fn error(&self, text: &str) {
        self.write(&format!("{RED}ERROR: {text}{RESET}\n"), Claim::Result);
    }

    /// How a job ended well: never dropped.
    pub fn success(&self, text: &str) {
        self.write(&format!("{GREEN}{text}{RESET}\n"), Claim::Result);
    }

    /// Begins a section with its heading.
    pub fn begin_section(&self, name: &str, heading: &str) {
        let marker = self.marker("section_start", name);
        self.write(&format!("{marker}{CLEAR}{CYAN}{heading}{RESET}{RESET}\n"), Claim::Output);
    }

    /// Ends a section.
    pub fn end_section(&self, name: &str) {
        let marker = self.marker("section_end", name);
        self.write(&marker, Claim::Output);
    }

    fn marker(&self, word: &str, name: &str) -> String {
        if !self.sections {
            return String::new();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        format!("{word}:{now}:{name}\r{CLEAR}")
    }

    fn write(&self, text: &str, claim: Claim) {
        let mut filter = Filter::new(&self.masks, &self.spec, 0, Output::Out);
        let mut out = Vec::new();
        filter.push(text.as_bytes(), &mut out);
        filter.finish(&mut out);
        if let Err(error) = self.spool.append(&out, claim) {
            log::error!("a line of a job's log cannot be kept error={error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_lines_and_sections_masked() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        let spec = FilterSpec { masks: vec!["hunter22".into()], limit: 1 << 20, ..FilterSpec::default() };
        let trace = Trace::open(&path, &spec, true).expect("opened");
        trace.begin_section("get_sources", "Getting source");
        trace.warning("the value is hunter22");
        trace.end_section("get_sources");
        let text = std::fs::read_to_string(&path).expect("text");
        let lines: Vec<&str> = text.split('\n').collect();
        assert!(
            lines[0].starts_with("section_start:")
                && lines[0].contains(":get_sources\r\x1b[0K\x1b[0K\x1b[36;1mGetting")
        );
        assert_eq!(lines[1], "\x1b[0;33mWARNING: the value is [MASKED]\x1b[0;m");
        assert!(lines[2].starts_with("section_end:"));
    }
}
