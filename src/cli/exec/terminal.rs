//! The terminal of `mayfly exec`. A run continues although the reader has closed the pipe, so errors of writing are
//! ignored; other commands print with [`crate::cli::output`].

use std::io::{IsTerminal, Write, stderr, stdin, stdout};

/// Whether the user can answer questions: standard input and standard output are terminals.
pub fn is_interactive() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// Writes to standard output.
pub fn print(text: &str) {
    let mut output = stdout().lock();
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}

/// Writes to standard error.
pub fn print_error(text: &str) {
    let _ = stderr().lock().write_all(text.as_bytes());
}
