//! The lines that the manager writes into the logs of jobs.

use crate::trace::{Output, Stamper};

/// The format of the lines of a job's log. The lines of the manager have the same format as those of the agent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LineFormat {
    /// Each line begins with a time (`FF_TIMESTAMPS`).
    Timestamped,
    Plain,
}

impl LineFormat {
    /// The format for the value of `FF_TIMESTAMPS`.
    pub fn new(has_timestamps: bool) -> Self {
        if has_timestamps { Self::Timestamped } else { Self::Plain }
    }

    /// A line with this text.
    pub fn line(self, text: &str) -> String {
        let text = format!("{text}\n");
        match self {
            Self::Plain => text,
            Self::Timestamped => {
                let mut line = Vec::new();
                Stamper::new(0, Output::Out).push(&text, &mut line);
                String::from_utf8_lossy(&line).into_owned()
            }
        }
    }

    /// The last line of the log of a job that the manager fails.
    pub fn failure_line(self, cause: &str) -> String {
        self.line(&format!("\x1b[31;1mERROR: Job failed (system failure): {cause}\x1b[0;m"))
    }
}
