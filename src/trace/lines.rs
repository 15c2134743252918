//! The agent's own lines in a job's log, in the colours that job authors know, and the markers of sections.

use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::filter::Filter;
use super::spool::{Claim, Spool};
use super::stamp::Output;
use super::{FilterSpec, Masks};

/// Streams of the log (GitLab's numbers).
const AGENT: u8 = 0;
const SERVICES: u8 = 0x0f;

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

    /// A yellow line: something is not as the job asked, and it goes on.
    pub fn warning(&self, text: &str) {
        self.write(&format!("{YELLOW}WARNING: {text}{RESET}\n"), Claim::Result);
    }

    /// A line of a service.
    pub fn service(&self, text: &str) {
        self.write_as(SERVICES, &format!("{text}\n"), Claim::Output);
    }

    /// Begins a section with its heading and first lines, and ends the one before it. All of it is one piece: it is in
    /// the log whole or not at all, which is how a later agent knows whether it was said.
    pub fn turn_to(&self, before: Option<&str>, section: &str, heading: &str, lines: &[String]) {
        let end = before.map(|name| self.marker("section_end", name)).unwrap_or_default();
        let start = self.marker("section_start", section);
        let lines: String = lines.iter().map(|line| format!("{CLEAR}{line}{RESET}\n")).collect();
        self.write(&format!("{end}{start}{CLEAR}{CYAN}{heading}{RESET}{RESET}\n{lines}"), Claim::Output);
    }

    /// Ends the last section and says how the job came out; never dropped, and one piece.
    pub fn conclude(&self, section: Option<&str>, well: bool, text: &str) {
        let end = section.map(|name| self.marker("section_end", name)).unwrap_or_default();
        let dropped = match self.spool.dropped() {
            0 => String::new(),
            bytes => {
                format!("{YELLOW}WARNING: {bytes} bytes of output came after the log's limit and are lost{RESET}\n")
            }
        };
        let line = if well { format!("{GREEN}{text}{RESET}\n") } else { format!("{RED}ERROR: {text}{RESET}\n") };
        self.write(&format!("{end}{dropped}{line}"), Claim::Result);
    }

    /// Several plain lines, and warnings below them, in one piece.
    pub fn header(&self, lines: &[String], warnings: &[String]) {
        let lines = lines.iter().map(|line| format!("{CLEAR}{line}{RESET}\n"));
        let warnings = warnings.iter().map(|text| format!("{YELLOW}WARNING: {text}{RESET}\n"));
        self.write(&lines.chain(warnings).collect::<String>(), Claim::Output);
    }

    /// Bytes of log so far.
    pub fn size(&self) -> u64 {
        self.spool.size()
    }

    fn marker(&self, word: &str, name: &str) -> String {
        if !self.sections {
            return String::new();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        format!("{word}:{now}:{name}\r{CLEAR}")
    }

    fn write(&self, text: &str, claim: Claim) {
        self.write_as(AGENT, text, claim);
    }

    fn write_as(&self, stream: u8, text: &str, claim: Claim) {
        let mut filter = Filter::new(&self.masks, &self.spec, stream, Output::Out);
        let mut out = Vec::new();
        filter.push(text.as_bytes(), &mut out);
        filter.finish(&mut out);
        if let Err(error) = self.spool.append(&out, claim) {
            log::error!("cannot write a line of a job's log error={error}");
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
        trace.turn_to(None, "get_sources", "Getting source", &[]);
        trace.warning("the value is hunter22");
        trace.conclude(Some("get_sources"), true, "Job succeeded");
        let text = std::fs::read_to_string(&path).expect("text");
        let lines: Vec<&str> = text.split('\n').collect();
        assert!(
            lines[0].starts_with("section_start:")
                && lines[0].contains(":get_sources\r\x1b[0K\x1b[0K\x1b[36;1mGetting")
        );
        assert_eq!(lines[1], "\x1b[0;33mWARNING: the value is [MASKED]\x1b[0;m");
        assert!(lines[2].starts_with("section_end:"));
    }

    #[test]
    fn the_end_says_how_much_the_limit_kept_out() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        let spec = FilterSpec { limit: 8, ..FilterSpec::default() };
        let trace = Trace::open(&path, &spec, false).expect("opened");
        Spool::open(&path, 8).expect("opened").append(b"1234567890", Claim::Output).expect("appended");
        trace.conclude(None, false, "Job failed");
        let text = std::fs::read_to_string(&path).expect("text");
        let expected =
            "WARNING: 2 bytes of output came after the log's limit and are lost\x1b[0;m\n\x1b[31;1mERROR: Job failed";
        assert!(text.contains(expected), "{text}");
    }
}
