//! Parses the first file ahead of planning, while the caller still collects the facts for its request.

use super::file::document;
use super::syntax::{self, Budget, MAX_FILE_SIZE, Node, Origin};

/// A parsed file. Planning uses it in place of a file with the same text.
pub struct ParsedAhead {
    text: String,
    /// The line in the file on which the text begins.
    first_line: u32,
    /// The content, with origins in the first file.
    pub root: Node,
    /// For each duplicate key: its position and a message.
    pub duplicates: Vec<(Origin, String)>,
    /// The remaining size limit after this file was parsed.
    pub budget: Budget,
}

impl ParsedAhead {
    /// Parses a file without a header. `None`: the file has a header or a problem, and planning must parse it.
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        let text = String::from_utf8(bytes).ok().filter(|text| text.len() <= MAX_FILE_SIZE)?;
        let documents = document::split(&text);
        let [only] = documents.as_slice() else { return None };
        let (first_line, mut budget) = (only.first_line, Budget::default());
        let document = syntax::parse(only.text, 0, &|line| line + first_line - 1, &mut budget).ok()?;
        let text = only.text.to_owned();
        Some(Self { text, first_line, root: document.root, duplicates: document.duplicates, budget })
    }

    /// Whether this file was parsed from the text of `document`, beginning at the same line.
    pub(super) fn is_parsed_from(&self, document: &document::Document<'_>) -> bool {
        self.first_line == document.first_line && self.text == document.text
    }
}
