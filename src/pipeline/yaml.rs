//! YAML as GitLab reads it: a tree of raw scalars with their lines, for YAML 1.1 rules to be applied on top.
//!
//! GitLab parses with Ruby, whose YAML is 1.1: `yes` is true, `010` is 8, the last of two equal keys wins. A parser
//! that decides such things itself decides them wrongly, so the tree keeps the text as it was written.

use std::collections::HashMap;
use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Tag};

/// How many nodes a file may have once its aliases are replaced; a bomb of nested aliases has billions.
const NODE_BUDGET: usize = 200_000;

/// How deep mappings and lists may nest.
const DEPTH_LIMIT: usize = 100;

/// A value and the line it stands on.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Line of the file, from 1.
    pub line: usize,
    /// The application tag, such as `reference` of `!reference`.
    pub tag: Option<String>,
    /// The value itself.
    pub value: Value,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text as written; `plain` when it stands without quotes, so that it may be a number, a boolean or null.
    Scalar { text: String, plain: bool },
    /// A list.
    List(Vec<Node>),
    /// Keys and values in their order, each key once.
    Mapping(Vec<(Node, Node)>),
}

/// Why a text is not a YAML document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Line of the file, from 1.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl From<ScanError> for SyntaxError {
    fn from(error: ScanError) -> Self {
        Self { line: error.marker().line(), message: error.info().to_owned() }
    }
}

/// A document and what is questionable about it.
#[derive(Debug)]
pub struct Document {
    /// The root.
    pub root: Node,
    /// Keys that were given twice: the last one counts.
    pub warnings: Vec<SyntaxError>,
}

/// Parses the last document of `text`. Errors: not YAML, an unknown alias, nesting or aliases beyond all bounds.
pub fn parse(text: &str) -> Result<Document, SyntaxError> {
    let mut builder =
        Builder { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0, warnings: vec![] };
    let mut root = None;
    while let Some(event) = builder.parser.next_event() {
        let (event, span) = event?;
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {}
            content => root = Some(builder.node(content, span.start.line(), 0)?),
        }
    }
    let empty = Node { line: 1, tag: None, value: Value::Scalar { text: String::new(), plain: true } };
    Ok(Document { root: root.unwrap_or(empty), warnings: builder.warnings })
}

struct Builder<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    warnings: Vec<SyntaxError>,
}

impl<'a> Builder<'a> {
    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, SyntaxError> {
        if depth > DEPTH_LIMIT {
            return Err(SyntaxError { line, message: format!("nested deeper than {DEPTH_LIMIT} levels") });
        }
        self.spend(1, line)?;
        let (anchor, tag, value) = match event {
            Event::Alias(anchor) => return self.alias(anchor, line),
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                (anchor, tag, Value::Scalar { text: text.into_owned(), plain })
            }
            Event::SequenceStart(anchor, tag) => (anchor, tag, self.list(depth)?),
            Event::MappingStart(anchor, tag) => (anchor, tag, self.mapping(depth)?),
            other => return Err(SyntaxError { line, message: format!("unexpected {other:?}") }),
        };
        let tag = tag.map(|tag| tag_name(&tag));
        let node = Node { line, tag, value };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, anchor: usize, line: usize) -> Result<Node, SyntaxError> {
        let Some(node) = self.anchors.get(&anchor).cloned() else {
            return Err(SyntaxError { line, message: "an alias inside its own anchor".to_owned() });
        };
        self.spend(node.size(), line)?;
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::List(items));
            }
            items.push(self.node(event, line, depth + 1)?);
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut entries: Vec<(Node, Node)> = Vec::new();
        let mut merged: Vec<(Node, Node)> = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let key = self.node(event, line, depth + 1)?;
            let (event, line) = self.next()?;
            let value = self.node(event, line, depth + 1)?;
            if key.is_plain("<<") {
                merge(&mut merged, value)?;
            } else {
                self.put(&mut entries, key, value);
            }
        }
        for (key, value) in merged {
            if !entries.iter().any(|(present, _)| present.value == key.value) {
                entries.push((key, value));
            }
        }
        Ok(Value::Mapping(entries))
    }

    /// Adds an entry; a key given twice keeps its first place and takes its last value, as in Ruby.
    fn put(&mut self, entries: &mut Vec<(Node, Node)>, key: Node, value: Node) {
        let Some(present) = entries.iter_mut().find(|(present, _)| present.value == key.value) else {
            entries.push((key, value));
            return;
        };
        let name = key.text().unwrap_or("a key").to_owned();
        let message = format!("`{name}` stands here again (first in line {}); this one counts", present.0.line);
        self.warnings.push(SyntaxError { line: key.line, message });
        *present = (key, value);
    }

    fn next(&mut self) -> Result<(Event<'a>, usize), SyntaxError> {
        let last = SyntaxError { line: 0, message: "the document ends in the middle".to_owned() };
        let (event, span) = self.parser.next_event().ok_or(last)??;
        Ok((event, span.start.line()))
    }

    fn spend(&mut self, nodes: usize, line: usize) -> Result<(), SyntaxError> {
        self.nodes += nodes;
        if self.nodes > NODE_BUDGET {
            let message = format!("more than {NODE_BUDGET} values once aliases are replaced");
            return Err(SyntaxError { line, message });
        }
        Ok(())
    }
}

/// Takes the entries of a merge key (`<<`), a mapping or a list of mappings; what is there already stays.
fn merge(merged: &mut Vec<(Node, Node)>, value: Node) -> Result<(), SyntaxError> {
    let line = value.line;
    let sources = match value.value {
        Value::Mapping(entries) => vec![entries],
        Value::List(items) => items
            .into_iter()
            .map(|item| match item.value {
                Value::Mapping(entries) => Ok(entries),
                _ => Err(SyntaxError { line: item.line, message: "`<<` takes mappings".to_owned() }),
            })
            .collect::<Result<_, _>>()?,
        Value::Scalar { .. } => {
            return Err(SyntaxError { line, message: "`<<` takes a mapping or a list of mappings".to_owned() });
        }
    };
    for (key, value) in sources.into_iter().flatten() {
        if !merged.iter().any(|(present, _)| present.value == key.value) {
            merged.push((key, value));
        }
    }
    Ok(())
}

fn tag_name(tag: &Tag) -> String {
    tag.suffix.clone()
}

impl Node {
    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Null as YAML 1.1 knows it: nothing, `~`, `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// A boolean as YAML 1.1 knows it.
    pub fn boolean(&self) -> Option<bool> {
        let Value::Scalar { text, plain: true } = &self.value else { return None };
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Some(true),
            "false" | "no" | "off" => Some(false),
            _ => None,
        }
    }

    /// What the scalar becomes where GitLab wants text: `010` is the number 8, `1_000` is 1000, `yes` is `true`.
    pub fn printed(&self) -> Option<String> {
        let Value::Scalar { text, plain } = &self.value else { return None };
        if !plain {
            return Some(text.clone());
        }
        if let Some(boolean) = self.boolean() {
            return Some(boolean.to_string());
        }
        Some(integer(text).map_or_else(|| text.clone(), |number| number.to_string()))
    }

    fn is_plain(&self, wanted: &str) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if text == wanted)
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Scalar { .. } => 0,
            Value::List(items) => items.iter().map(Node::size).sum(),
            Value::Mapping(entries) => entries.iter().map(|(key, value)| key.size() + value.size()).sum(),
        }
    }
}

/// An integer of YAML 1.1: decimal, `0x1f`, `0b101`, octal `017`, with `_` between digits.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let digits: String = digits.chars().filter(|digit| *digit != '_').collect();
    let parsed = if let Some(hexadecimal) = digits.strip_prefix("0x") {
        i64::from_str_radix(hexadecimal, 16)
    } else if let Some(binary) = digits.strip_prefix("0b") {
        i64::from_str_radix(binary, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        i64::from_str_radix(digits.strip_prefix("0o").unwrap_or(&digits[1..]), 8)
    } else {
        digits.parse()
    };
    parsed.ok().map(|number| if negative { -number } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_of<'a>(node: &'a Node, key: &str) -> &'a Node {
        let Value::Mapping(entries) = &node.value else { panic!("no mapping") };
        &entries.iter().find(|(name, _)| name.text() == Some(key)).expect("the key").1
    }

    #[test]
    fn reads_scalars_as_ruby_does() {
        let root = parse("a: 010\nb: 1_000\nc: yes\nd: '010'\ne: ~\nf: 1.10\ng: 0x1f\nh: 08\n").expect("parsed").root;
        let printed = |key| value_of(&root, key).printed().expect("a scalar");
        assert_eq!(["a", "b", "c", "d", "f", "g", "h"].map(printed), ["8", "1000", "true", "010", "1.10", "31", "08"]);
        assert!(value_of(&root, "e").is_null());
    }

    #[test]
    fn keeps_lines_and_tags() {
        let root = parse("job:\n  script:\n    - !reference [.setup, script]\n").expect("parsed").root;
        let script = value_of(value_of(&root, "job"), "script");
        let Value::List(items) = &script.value else { panic!("no list") };
        assert_eq!((items[0].line, items[0].tag.as_deref()), (3, Some("reference")));
    }

    #[test]
    fn merges_and_replaces_aliases() {
        let text = "base: &b {x: 1, y: 2}\nother: &o {y: 3, z: 4}\njob:\n  <<: [*b, *o]\n  x: 9\n";
        let root = parse(text).expect("parsed").root;
        let job = value_of(&root, "job");
        assert_eq!(["x", "y", "z"].map(|key| value_of(job, key).text().expect("text")), ["9", "2", "4"]);
    }

    #[test]
    fn the_last_of_two_equal_keys_wins_and_is_told() {
        let document = parse("a: 1\na: 2\n").expect("parsed");
        assert_eq!(value_of(&document.root, "a").text(), Some("2"));
        assert_eq!(document.warnings.len(), 1);
        assert_eq!(document.warnings[0].line, 2);
    }

    #[test]
    fn refuses_bombs_and_abysses() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert!(parse(&bomb).expect_err("too large").message.contains("aliases"));
        assert!(parse(&"[".repeat(5000)).is_err());
    }

    #[test]
    fn says_the_line_of_a_syntax_error() {
        let error = parse("a: 1\nb: [1, 2\nc: 3\n").expect_err("unbalanced");
        assert!(error.line >= 2, "{error}");
    }
}
