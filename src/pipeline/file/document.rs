//! Splits the text of a file into header and content.

/// One YAML document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    pub text: &'a str,
    /// The line in the file on which the document begins, from 1.
    pub first_line: u32,
}

/// Splits a text at its `---` lines. An empty first document is dropped.
pub fn split(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut at) = (0, 1, 0);
    for (number, line) in (1_u32..).zip(text.split_inclusive('\n')) {
        if line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            documents.push(Document { text: &text[start..at], first_line });
            start = at + 3;
            first_line = number;
        }
        at += line.len();
    }
    documents.push(Document { text: &text[start..], first_line });
    if documents.len() > 1 && is_blank(documents[0].text) {
        documents.remove(0);
    }
    documents
}

/// Whether the text consists only of comments, directives and white space.
fn is_blank(text: &str) -> bool {
    text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#') || line.starts_with('%'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<(&str, u32)> {
        split(text).into_iter().map(|document| (document.text, document.first_line)).collect()
    }

    #[test]
    fn splits_at_lines_of_dashes() {
        assert_eq!(parts("a: 1\n"), [("a: 1\n", 1)]);
        assert_eq!(parts("spec:\n---\na: 1\n"), [("spec:\n", 1), ("\na: 1\n", 2)]);
        assert_eq!(parts("# note\n%YAML 1.1\n---\na: 1\n"), [("\na: 1\n", 3)]);
        assert_eq!(parts("a: 1\n--- \nb\n---\nc"), [("a: 1\n", 1), (" \nb\n", 2), ("\nc", 4)]);
        assert_eq!(parts("a: |\n  ---\n----\n"), [("a: |\n  ---\n----\n", 1)]);
        assert_eq!(parts("\u{feff}a"), [("a", 1)]);
    }
}
