//! Finds the line of a key, for messages that show it. Lines that may contain a secret are not shown.

use toml_edit::{Document, Item, TableLike};

/// A key with an invalid value, or a missing key.
pub struct KeyLocation {
    /// The index of the `[[runners]]`, from 0; `None` for the top level.
    pub runner: Option<usize>,
    /// The key, with the names of nested tables before it (`docker.user`).
    pub key: &'static str,
}

impl KeyLocation {
    /// The message with the line of the key; if the key is missing, with the line of its table.
    pub fn show(&self, text: &str, why: &str) -> String {
        match self.offset(text) {
            Some(offset) => show(text, offset, why),
            None => why.to_owned(),
        }
    }

    /// The number of the line of the key or of its table, from 1.
    pub fn line(&self, text: &str) -> Option<usize> {
        self.offset(text).map(|offset| line_number(text, offset))
    }

    fn offset(&self, text: &str) -> Option<usize> {
        let document = Document::parse(text).ok()?;
        let Some(index) = self.runner else { return offset_of(document.as_table(), self.key) };
        let runners = document.get("runners")?;
        if let Some(table) = runners.as_array_of_tables().and_then(|tables| tables.get(index)) {
            return offset_of(table, self.key).or_else(|| Some(table.span()?.start));
        }
        let inline = runners.as_array()?.get(index)?;
        inline.as_inline_table().and_then(|table| offset_of(table, self.key)).or_else(|| Some(inline.span()?.start))
    }
}

fn offset_of(table: &dyn TableLike, key: &str) -> Option<usize> {
    if let Some((within, key)) = key.split_once('.') {
        return offset_of(table.get(within)?.as_table_like()?, key);
    }
    let item = table.get(key)?;
    Some(table.key(key).and_then(toml_edit::Key::span).or_else(|| Item::span(item))?.start)
}

/// The parser's message with the line.
pub fn of_error(text: &str, error: &toml::de::Error) -> String {
    let offset = error.span().map_or(text.len(), |span| span.start);
    let line = line_at(text, offset);
    match is_secret(line.1) {
        // The parser's message may contain the value.
        true => show(
            text,
            offset,
            &format!("{}is invalid; it is not shown, because it may be confidential", value_of(line.1)),
        ),
        false => show(text, offset, error.message()),
    }
}

/// The line number (from 1) of an offset.
pub fn line_number(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn show(text: &str, offset: usize, why: &str) -> String {
    let (number, line) = line_at(text, offset);
    let why = why.trim_end();
    match is_secret(line) {
        true => format!("line {number}: {why}"),
        false => format!("line {number}: {why}\n  {number} | {}", line.trim_end()),
    }
}

fn line_at(text: &str, offset: usize) -> (usize, &str) {
    // An error at the end of the file has an offset after the last line.
    let number = line_number(text, offset).min(text.lines().count().max(1));
    (number, text.lines().nth(number - 1).unwrap_or_default())
}

/// Names the value of a line by its key, if the line has one.
fn value_of(line: &str) -> String {
    let key = line.split_once('=').map(|(key, _)| key.trim());
    let is_bare = |key: &&str| key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    match key.filter(is_bare) {
        Some(key) if !key.is_empty() => format!("the value of `{key}` "),
        _ => "the value ".to_owned(),
    }
}

/// Whether the line's key names a secret, or the line may belong to a multi-line value.
fn is_secret(line: &str) -> bool {
    let Some((key, _)) = line.split_once('=') else { return !line.trim_start().starts_with('[') };
    let key = key.to_ascii_lowercase();
    ["token", "secret", "password", "key", "environment", "script", "dsn"].iter().any(|word| key.contains(word))
}
