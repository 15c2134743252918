//! Shows where a file is wrong: the number of the line, and the line itself if it cannot contain a secret.
//!
//! A line of a broken file may be the middle of a token or of a script, whatever it looks like. So a message shows only
//! a line that is a statement by itself, and that sets no key with a confidential value.

use std::ops::Range;

use toml_edit::{Document, Item, TableLike, Value};

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

/// The message of the parser or of a decoder of `text`, with the line. It does not show the value of a confidential
/// key.
pub fn show_error(text: &str, span: Option<Range<usize>>, message: &str) -> String {
    let offset = span.map_or(text.len(), |span| span.start);
    // Messages about the syntax quote only what the parser expects. Messages about a value may quote the value.
    let document = Document::parse(text).ok();
    let key = document.as_ref().and_then(|document| secret_key(document.as_table(), Some(offset)));
    match key.filter(|_| message.contains(['`', '"'])) {
        Some(key) => {
            let why = format!("the value of `{key}` is invalid; it is not shown, because it may be confidential");
            show(text, offset, &why)
        }
        None => show(text, offset, message),
    }
}

/// The message of the parser of `text`, with the number of the line. For a file in which any value may be confidential:
/// the message does not show the line.
pub fn show_error_without_line(text: &str, span: Option<Range<usize>>, message: &str) -> String {
    let offset = span.map_or(text.len(), |span| span.start);
    format!("line {}: {}", error_line_number(text, offset), message.trim_end())
}

/// The line number (from 1) of an offset.
pub fn line_number(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn show(text: &str, offset: usize, why: &str) -> String {
    let number = error_line_number(text, offset);
    let why = why.trim_end();
    match harmless_line(text, number) {
        None => format!("line {number}: {why}"),
        Some(line) => format!("line {number}: {why}\n  {number} | {line}"),
    }
}

/// The line number (from 1) of the offset of an error. An error at the end of the file has an offset after the last
/// line.
fn error_line_number(text: &str, offset: usize) -> usize {
    line_number(text, offset).min(text.lines().count().max(1))
}

/// The line with this number (from 1), without its comment, if it is a statement that sets no confidential key.
fn harmless_line(text: &str, number: usize) -> Option<&str> {
    let before: usize = text.split_inclusive('\n').take(number - 1).map(str::len).sum();
    // If the lines before are incomplete, this line continues a text or a list that began there.
    Document::parse(&text[..before]).ok()?;
    let line = text[before..].lines().next()?;
    let is_statement = |end: &usize| Document::parse(&line[..*end]).is_ok();
    let comment = line.match_indices('#').map(|(at, _)| at).find(is_statement);
    let line = line[..comment.unwrap_or(line.len())].trim_end();
    let statement = Document::parse(line).ok()?;
    (!line.is_empty() && secret_key(statement.as_table(), None).is_none()).then_some(line)
}

/// The confidential key whose value contains the offset; without an offset, any confidential key.
fn secret_key(table: &dyn TableLike, offset: Option<usize>) -> Option<&str> {
    let contains = |item: &Item| match offset {
        Some(offset) => item.span().is_some_and(|span| span.contains(&offset)),
        None => true,
    };
    table.iter().find_map(|(name, item)| match is_secret(name) && contains(item) {
        true => Some(name),
        false => tables_in(item).into_iter().find_map(|table| secret_key(table, offset)),
    })
}

fn tables_in(item: &Item) -> Vec<&dyn TableLike> {
    match item {
        Item::None => Vec::new(),
        Item::Table(table) => vec![table],
        Item::ArrayOfTables(tables) => tables.iter().map(|table| table as _).collect(),
        Item::Value(value) => inline_tables_in(value),
    }
}

fn inline_tables_in(value: &Value) -> Vec<&dyn TableLike> {
    match value {
        Value::InlineTable(table) => vec![table],
        Value::Array(values) => values.iter().flat_map(inline_tables_in).collect(),
        _ => Vec::new(),
    }
}

/// Whether the value of a key may be confidential. A URL may contain a password.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["token", "secret", "password", "key", "environment", "script", "dsn", "url"].iter().any(|word| key.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, number: usize) -> Option<&str> {
        harmless_line(text, number)
    }

    #[test]
    fn shows_only_a_statement_of_harmless_keys_without_its_comment() {
        for (line, expected) in [
            ("limit = \"two\"  # not glrt-a", Some("limit = \"two\"")),
            ("name = \"a#b\"", Some("name = \"a#b\"")),
            ("[runners.docker]", Some("[runners.docker]")),
            ("aws = { region = 5 }", Some("aws = { region = 5 }")),
            ("token = \"glrt-a\"", None),
            ("url = \"https://ci:glrt-a@h\"", None),
            ("cache.s3.SecretKey = 5", None),
            ("runners = [{ name = \"a\", token = \"glrt-a\" }]", None),
            ("nested = [[{ token = \"glrt-a\" }]]", None),
            ("# glrt-a", None),
            ("limit = 1 token = \"glrt-a\"", None),
            ("glrt-a=b=", None),
            ("glrt-a", None),
        ] {
            assert_eq!(shown(line, 1), expected, "{line}");
        }
    }

    #[test]
    fn does_not_show_a_line_inside_a_value() {
        for begin in ["pre_build_script = \"\"\"", "token = '''", "environment = ["] {
            assert_eq!(shown(&format!("{begin}\nlimit = 5\n"), 2), None, "{begin}");
        }
        assert_eq!(shown("token = \"glrt-a\"\nlimit = 5\n", 2), Some("limit = 5"));
    }
}
