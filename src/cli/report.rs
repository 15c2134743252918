//! The report of `mayfly check`: one line for each result, and the totals.

use std::process::ExitCode;

use super::output::print_line;

/// Prints and counts the results. The subject of a result is the part that was checked, such as a runner.
#[derive(Default)]
pub struct Report {
    failures: usize,
    warnings: usize,
}

impl Report {
    pub fn ok(&self, subject: &str, text: &str) {
        print_line!("ok       {subject}: {text}");
    }

    pub fn warn(&mut self, subject: &str, text: &str) {
        self.warnings += 1;
        print_line!("warning  {subject}: {text}");
    }

    pub fn fail(&mut self, subject: &str, text: &str) {
        self.failures += 1;
        print_line!("FAIL     {subject}: {text}");
    }

    /// Prints the totals. Failures make the command fail.
    pub fn conclude(&self) -> ExitCode {
        print_line!("{}, {}", plural(self.failures, "failure"), plural(self.warnings, "warning"));
        if self.failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// A number and its word, such as `1 error` or `2 errors`.
pub fn plural(number: usize, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}
