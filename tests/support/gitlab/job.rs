//! A job in the view of the fake GitLab: its state, its log and its artifacts.

use std::time::{Duration, Instant, SystemTime};

/// A job in the server's view.
#[derive(Clone, Debug, Default)]
pub struct Job {
    pub id: i64,
    pub token: String,
    /// `pending`, `running`, `canceling`, or the final state.
    pub state: String,
    pub trace: Vec<u8>,
    pub failure_reason: Option<String>,
    pub exit_code: Option<i64>,
    pub artifacts: Vec<Artifact>,
    /// When the runner got the job.
    pub taken: Option<Instant>,
    /// When the server accepted its final state.
    pub ended: Option<Instant>,
    /// When the server got the last request about the job.
    pub(super) last_request: Option<Instant>,
    /// When the server got the first update with the state `running`.
    #[allow(dead_code, reason = "the bench reads it")]
    pub running: Option<Instant>,
    /// The states in all updates.
    pub updates: Vec<String>,
    pub(super) payload: Vec<u8>,
    /// The text that replaces the id in the paths of its requests.
    pub(super) name_in_paths: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Artifact {
    pub kind: String,
    pub format: String,
    pub expire_in: String,
    pub name: String,
    pub content: Vec<u8>,
    #[allow(dead_code, reason = "the bench reads it")]
    pub at: Option<SystemTime>,
}

impl Job {
    /// Whether the runner may still send a log and states.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.state.as_str(), "running" | "canceling")
    }

    /// Whether the job sent no request for a minute, which breaks the rules.
    pub(super) fn was_silent(&mut self) -> bool {
        self.last_request.replace(Instant::now()).is_some_and(|last| last.elapsed() > Duration::from_secs(60))
    }

    /// The log as text.
    pub fn log(&self) -> String {
        String::from_utf8(self.trace.clone()).expect("the log is UTF-8")
    }

    /// The log without time stamps and colours, line by line.
    pub fn lines(&self) -> Vec<String> {
        self.log().lines().map(plain).collect()
    }

    /// Whether a line of the log contains this part.
    pub fn has(&self, part: &str) -> bool {
        self.lines().iter().any(|line| line.contains(part))
    }
}

/// A line without its time stamp, colours and section markers.
fn plain(line: &str) -> String {
    let line = match line.get(26..27) {
        Some("Z") => &line[32..],
        _ => line,
    };
    let mut text = String::new();
    let mut rest = line.rsplit('\r').next().unwrap_or_default();
    while let Some(at) = rest.find('\x1b') {
        text.push_str(&rest[..at]);
        let end = rest[at..].find(|c: char| c.is_ascii_alphabetic()).map_or(rest.len(), |end| at + end + 1);
        rest = &rest[end..];
    }
    text + rest
}
