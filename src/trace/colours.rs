//! Escape sequences in the job's log: those that gitlab-runner writes.

/// Clears the rest of the line; GitLab's section markers need it.
pub const CLEAR: &str = "\x1b[0K";
pub const CYAN: &str = "\x1b[36;1m";
pub const GREEN: &str = "\x1b[32;1m";
pub const GREY: &str = "\x1b[0;37m";
pub const RED: &str = "\x1b[31;1m";
pub const RESET: &str = "\x1b[0;m";
pub const YELLOW: &str = "\x1b[0;33m";
pub const BOLD_YELLOW: &str = "\x1b[33;1m";
