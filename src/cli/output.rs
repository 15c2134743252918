//! Standard output of commands that print and end.
//!
//! `println!` panics if the reader of a pipe has closed it (`mayfly status | head -1`) or if the disk is full.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::process;

/// The exit status that shells show for a program terminated by SIGPIPE.
const BROKEN_PIPE: i32 = 128 + nix::libc::SIGPIPE;

/// Prints a line, as `println!` does.
macro_rules! print_line {
    ($($part:tt)*) => { $crate::cli::output::write(format_args!("{}\n", format_args!($($part)*))) };
}
pub(super) use print_line;

/// Prints text. If standard output cannot be written, the process exits, because the command has no other way to report
/// its result.
pub fn write(text: Arguments<'_>) {
    if cfg!(test) {
        // The test harness captures only this.
        return print!("{text}");
    }
    let mut output = io::stdout().lock();
    match output.write_fmt(text).and_then(|()| output.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => process::exit(BROKEN_PIPE),
        Err(error) => {
            eprintln!("mayfly: cannot write to standard output: {error}");
            process::exit(1);
        }
    }
}
