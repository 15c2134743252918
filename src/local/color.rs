//! The colours of the terminal, and whether output may contain them.

use std::io::{IsTerminal, stdout};

pub const BOLD: &str = "\x1b[1m";
pub const DIM: &str = "\x1b[2m";
pub const GREEN: &str = "\x1b[32m";
pub const RED: &str = "\x1b[31m";
pub const YELLOW: &str = "\x1b[33m";
pub const RESET: &str = "\x1b[0m";
/// The colours of the prefixes of jobs, which tell the jobs apart.
pub const JOB_COLORS: [&str; 6] = ["\x1b[36m", "\x1b[35m", "\x1b[34m", "\x1b[32m", "\x1b[33m", "\x1b[96m"];

/// Whether standard output is a terminal that supports colours, and the user has not disabled them (no-color.org).
pub fn is_enabled() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    stdout().is_terminal() && !is_dumb && !is_set("NO_COLOR")
}
