//! Lines for the job's log about transfers of artifacts and caches.

use crate::archive::select::SelectionNote;
use crate::trace::colours::{GREEN, RED, RESET, YELLOW};

/// Prints the start or the success of an operation.
pub fn heading(text: impl std::fmt::Display) {
    println!("{GREEN}{text}{RESET}");
}

/// Prints a warning.
pub fn warning(text: impl std::fmt::Display) {
    println!("{YELLOW}WARNING: {text}{RESET}");
}

/// Prints a failure that does not harm the job.
pub fn notice(text: impl std::fmt::Display) {
    println!("{YELLOW}{text}{RESET}");
}

/// Prints an error.
pub fn error(text: impl std::fmt::Display) {
    println!("{RED}ERROR: {text}{RESET}");
}

/// Prints an error that ends the stage; returns the exit status.
pub fn fatal(text: impl std::fmt::Display) -> i32 {
    println!("{RED}FATAL: {text}{RESET}");
    1
}

/// Prints the notes of a file selection.
pub fn notes(notes: &[SelectionNote]) {
    for note in notes {
        match note {
            SelectionNote::Info(text) => println!("{text}"),
            SelectionNote::Warning(text) => warning(text),
        }
    }
}
