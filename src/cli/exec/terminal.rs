//! The terminal of `mayfly exec`, outside of the run of jobs.

use std::io::{IsTerminal, Write, stderr, stdin, stdout};

use crate::cli::output;

/// Whether the user can answer questions: standard input and standard output are terminals.
pub fn is_interactive() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// Writes to standard output. If that fails, the process exits, and the guard process of a run cleans up.
pub fn print(text: &str) {
    output::write(format_args!("{text}"));
}

/// Writes to standard error; errors are ignored.
pub fn print_error(text: &str) {
    let _ = stderr().lock().write_all(text.as_bytes());
}
