//! Whether output may have escape codes.

use std::io::{IsTerminal, stdout};

/// True for a terminal that understands them, unless the user wants none (no-color.org).
pub fn wanted() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    stdout().is_terminal() && !is_dumb && !is_set("NO_COLOR")
}
