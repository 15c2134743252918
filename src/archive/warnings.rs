//! Warnings about files, of which a job can make as many as it likes: a log keeps the first ones and the count.

use std::ops::Deref;

/// Lines that are kept.
pub const LINES_MAX: usize = 100;

/// The first warnings, and at last how many more there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings {
    lines: Vec<String>,
    more: u64,
}

impl Warnings {
    /// Adds a warning, or counts it.
    pub fn push(&mut self, text: String) {
        if self.lines.len() < LINES_MAX {
            return self.lines.push(text);
        }
        self.more += 1;
        self.lines.truncate(LINES_MAX);
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
    fn the_first_are_shown_and_the_others_counted() {
        let mut warnings = Warnings::default();
        for n in 0..200_000 {
            warnings.push(format!("file {n}"));
        }
        assert_eq!(warnings.len(), LINES_MAX + 1);
        assert_eq!(warnings[LINES_MAX - 1], "file 99");
        assert_eq!(warnings[LINES_MAX], "199900 more warnings are not shown");
    }
}
