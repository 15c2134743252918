//! Tables for the terminal.

use std::io::{self, IsTerminal};

use super::fit::{self, distinct_short_name, pad};
use super::screen::width;

/// The smallest width of the first column of a table.
const MIN_FIRST_WIDTH: usize = 12;

/// The largest width that the first column leaves free for the last one.
const MAX_RESERVED_FOR_LAST: usize = 16;

/// Aligns cells in columns, each as wide as its widest cell; trailing empty cells are dropped. On a terminal, the first
/// column leaves room for the others.
pub fn format_rows<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(fit::width(cell));
        }
    }
    if io::stdout().is_terminal() {
        widths[0] = widths[0].min(width().saturating_sub(reserved(&widths[1..])).max(MIN_FIRST_WIDTH));
    }
    let mut text = String::new();
    let is_long = |row: &&[String; COLUMNS]| fit::width(&row[0]) > widths[0];
    let mut short: Vec<(String, String)> =
        rows.iter().filter(is_long).map(|row| (row[0].clone(), fit::shorten(&row[0], widths[0]))).collect();
    let mut shortened = 0;
    for row in rows {
        let mut first = row[0].clone();
        if is_long(&row) {
            first = distinct_short_name(&row[0], widths[0], &short);
            short[shortened].1.clone_from(&first);
            shortened += 1;
        }
        let cells = [&first].into_iter().chain(&row[1..]).zip(widths).map(|(cell, width)| pad(cell, width));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// The width that the first column leaves free for the other columns, with the gaps before them.
fn reserved(widths: &[usize]) -> usize {
    let last = widths.len().saturating_sub(1);
    let shown = widths.iter().enumerate().map(|(at, width)| match at == last {
        true => (*width).min(MAX_RESERVED_FOR_LAST),
        false => *width,
    });
    shown.map(|width| width + 2).sum()
}
