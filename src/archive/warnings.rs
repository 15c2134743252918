//! Warnings about files. A job can cause any number of them, so the log shows only the first ones and a count.

use std::ops::Deref;

/// The number of warnings that are shown.
pub const MAX_LINES: usize = 100;

/// The first warnings, and the number of further ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings {
    lines: Vec<String>,
    more: u64,
}

impl Warnings {
    /// Adds a warning, or counts it if there are too many.
    pub fn push(&mut self, text: String) {
        if self.lines.len() < MAX_LINES {
            return self.lines.push(text);
        }
        self.more += 1;
        self.lines.truncate(MAX_LINES);
        self.lines.push(format!("{} more warnings are not shown", self.more));
    }
}

impl Deref for Warnings {
    type Target = [String];

    fn deref(&self) -> &[String] {
        &self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_first_warnings_and_counts_the_others() {
        let mut warnings = Warnings::default();
        for n in 0..200_000 {
            warnings.push(format!("file {n}"));
        }
        assert_eq!(warnings.len(), MAX_LINES + 1);
        assert_eq!(warnings[MAX_LINES - 1], "file 99");
        assert_eq!(warnings[MAX_LINES], "199900 more warnings are not shown");
    }
}
