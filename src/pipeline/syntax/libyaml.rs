//! Differences between the parser and libyaml, which GitLab uses: libyaml ignores the indentation inside flow
//! collections and quoted scalars, accepts tabs after a colon and a comment directly after a bracket or quote, and adds
//! no line break to a block scalar at the end of a file.

use saphyr_parser::ScanError;

/// The number of spaces that a repair inserts before a line. It must exceed the indentation of the parents, so parents
/// with more indentation are not supported.
const ADDED_INDENTATION: usize = 100;

/// A place that the parser refuses and libyaml accepts. Lines count from 1, columns from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibyamlDifference {
    /// A line inside a flow collection has too little indentation.
    Flow(usize),
    /// The beginning of a quoted scalar with such a line: its line and column.
    Quoted(usize, usize),
    /// The end of tabs after a colon: its line and column.
    Tabs(usize, usize),
    /// A `#` without white space before it: its line and column.
    Comment(usize, usize),
}

/// The place of a syntax error, if libyaml accepts it.
pub fn difference(error: &ScanError) -> Option<LibyamlDifference> {
    let (line, column) = (error.marker().line(), error.marker().col());
    match error.info() {
        "invalid indentation" | "invalid indentation in flow construct" => Some(LibyamlDifference::Flow(line)),
        "invalid indentation in quoted scalar" => Some(LibyamlDifference::Quoted(line, column)),
        "':' must be followed by a valid YAML whitespace" => Some(LibyamlDifference::Tabs(line, column)),
        "comments must be separated from other tokens by whitespace" => Some(LibyamlDifference::Comment(line, column)),
        _ => None,
    }
}

/// Changes a text so that the parser accepts this place, without changing the values. `None`: that is not possible.
pub fn repaired(text: &str, place: LibyamlDifference) -> Option<String> {
    match place {
        LibyamlDifference::Flow(line) => {
            let start = offset(text, line, 0);
            indented(text, start, end_of_flow(text, start))
        }
        LibyamlDifference::Quoted(line, column) => {
            let start = offset(text, line, column);
            let next = text[start..].find('\n').map_or(text.len(), |at| start + at + 1);
            indented(text, next, end_of_quoted(text, start).max(next))
        }
        LibyamlDifference::Tabs(line, column) => {
            let end = offset(text, line, column);
            let before = text[..end].trim_end_matches('\t');
            (before.len() < end).then(|| format!("{before}{}{}", " ".repeat(end - before.len()), &text[end..]))
        }
        LibyamlDifference::Comment(line, column) => {
            let at = offset(text, line, column);
            text[at..].starts_with('#').then(|| format!("{} {}", &text[..at], &text[at..]))
        }
    }
}

/// Indents the lines between two offsets. `None`: there are no lines, or they are already indented.
fn indented(text: &str, from: usize, to: usize) -> Option<String> {
    let padding = " ".repeat(ADDED_INDENTATION);
    let lines = &text[from..to];
    if lines.is_empty() || lines.starts_with(&padding) {
        return None;
    }
    let mut out = String::with_capacity(text.len() + lines.matches('\n').count().saturating_add(1) * ADDED_INDENTATION);
    out.push_str(&text[..from]);
    for line in lines.split_inclusive('\n') {
        out.push_str(&padding);
        out.push_str(line);
    }
    out.push_str(&text[to..]);
    Some(out)
}

/// The offset of a line and column.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    text[start..].char_indices().nth(column).map_or(text.len(), |(at, _)| start + at)
}

/// The end of the innermost flow collection that is open at `start`, the beginning of a line.
fn end_of_flow(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (start, 0_usize);
    // Within a plain scalar, quotes and `#` are text.
    let mut is_plain = false;
    while let Some(byte) = bytes.get(at) {
        let after_space = at == 0 || bytes[at - 1].is_ascii_whitespace();
        match byte {
            b'#' if after_space => {
                at += text[at..].find('\n').unwrap_or(text.len() - at);
                is_plain = false;
                continue;
            }
            b'"' | b'\'' if !is_plain => {
                at = end_of_quoted(text, at);
                continue;
            }
            b'[' | b'{' => {
                depth += 1;
                is_plain = false;
            }
            b']' | b'}' => match depth.checked_sub(1) {
                Some(less) => {
                    depth = less;
                    is_plain = false;
                }
                None => return at + 1,
            },
            b',' => is_plain = false,
            b':' if bytes.get(at + 1).is_none_or(u8::is_ascii_whitespace) => is_plain = false,
            byte if byte.is_ascii_whitespace() => {}
            _ => is_plain = true,
        }
        at += 1;
    }
    text.len()
}

/// The end of a quoted scalar that begins at `start`.
fn end_of_quoted(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let Some(&quote) = bytes.get(start) else { return text.len() };
    let mut at = start + 1;
    while let Some(&byte) = bytes.get(at) {
        at += match byte {
            b'\\' if quote == b'"' => 2,
            byte if byte == quote && quote == b'\'' && bytes.get(at + 1) == Some(&quote) => 2,
            byte if byte == quote => return at + 1,
            _ => 1,
        };
    }
    text.len()
}

/// The number and the text of the last line of a text, if no line break follows it.
pub fn unfinished_line(text: &str) -> Option<(u32, &str)> {
    let start = text.rfind('\n').map_or(0, |at| at + 1);
    let line = text[start..].trim_start();
    let number = || text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    (!line.is_empty()).then(|| (u32::try_from(number()).unwrap_or(u32::MAX), line))
}

/// A block scalar that ends in the line `end`, without the line break that the parser adds after an unfinished line.
pub fn without_added_line_break<'t>(scalar: &'t str, end: u32, unfinished: Option<(u32, &str)>) -> &'t str {
    match (scalar.strip_suffix('\n'), unfinished) {
        (Some(shorter), Some((number, line))) if end >= number && shorter.ends_with(line) => shorter,
        _ => scalar,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Budget, parse};
    use serde_json::json;

    fn read(text: &str) -> Result<serde_json::Value, u32> {
        let document = parse(text, 0, &|line| line, &mut Budget::default());
        document.map(|document| document.root.to_json()).map_err(|error| error.line)
    }

    #[test]
    fn indentation_does_not_matter_inside_brackets_and_quotes() {
        for (text, expected) in [
            ("a:\n    b: [\n  x,\n  y\n  ]\n    c: 1\n", json!({"a": {"b": ["x", "y"], "c": 1}})),
            (
                "a:\n  - b: [\nx, # ]\n\"]\", 'it''s ]', don't,\n[y,\n{z: 1}\n]\n]\n  - c\n",
                json!({"a": [{"b": ["x", "]", "it's ]", "don't", ["y", {"z": 1}]]}, "c"]}),
            ),
            ("a:\n  b: {\nx: 1,\ny: [\n2]}\nc: [\n3\n]\n", json!({"a": {"b": {"x": 1, "y": [2]}}, "c": [3]})),
            (
                "a:\n  b: \"one\ntwo\\\n  three \\\" x\n\nfour\"\n  c: 'p\nq''\nr'\n",
                json!({"a": {"b": "one twothree \" x\nfour", "c": "p q' r"}}),
            ),
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn tabs_after_a_colon_and_comments_after_brackets_are_accepted() {
        assert_eq!(read("a:\t- b\n"), Err(1));
        let text = "a:\tb\nc:\t\t\"d\"\ne: [f]# g\nh: \"i\"#j\nk: l#m\n";
        assert_eq!(read(text), Ok(json!({"a": "b", "c": "d", "e": ["f"], "h": "i", "k": "l#m"})));
    }

    #[test]
    fn wrong_indentation_elsewhere_is_refused_with_its_line() {
        assert_eq!(read("a:\n    b: 1\n  c: 2\n"), Err(3));
        assert_eq!(read("a:\n  b: [\nx\n"), Err(4));
        assert_eq!(read("a:\n  b: 'x\ny\n"), Err(2));
    }

    #[test]
    fn many_shallow_lines_are_repaired_in_bounded_time() {
        let section = |number: usize| format!("k{number}:\n  l: [\n1\n]\n");
        let few: String = (0..50).map(section).collect();
        assert_eq!(read(&few).map(|value| value.as_object().map_or(0, serde_json::Map::len)), Ok(50));
        let many: String = (0..20_000).map(section).collect();
        assert!(read(&many).is_err());
    }

    #[test]
    fn a_block_scalar_in_an_unfinished_last_line_has_no_line_break() {
        for (text, expected) in [
            ("a: |\n  x\n  y", "x\ny"),
            ("a: |+\n  x", "x"),
            ("a: >\n  x\n  y", "x y"),
            ("a: |\n  x\n  y\n", "x\ny\n"),
            ("a: |\n  x\n  ", "x\n"),
            ("a: |\n  x\n# y", "x\n"),
            ("a: |-\n  x", "x"),
        ] {
            assert_eq!(read(text), Ok(json!({ "a": expected })), "{text:?}");
        }
    }
}
