//! Decides whether output may contain colour codes.

use std::io::{IsTerminal, stdout};

/// True for a terminal that supports colours, unless the user disables them (no-color.org).
pub fn wanted() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    stdout().is_terminal() && !is_dumb && !is_set("NO_COLOR")
}
