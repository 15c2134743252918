//! Parses text into a tree, with limits on size, on depth and on the expansion of aliases.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput, Tag};

use super::budget::{Budget, Size};
use super::libyaml::{self, LibyamlDifference};
use super::{Mapping, MappingEntry, Node, Origin, YamlValue, scalar};
use crate::pipeline::hash::Set;

/// How deeply mappings and lists may nest, as on GitLab.
pub const MAX_DEPTH: usize = 100;

/// The number of duplicate keys to report for a file.
const MAX_DUPLICATES: usize = 100;

/// Why a text is not valid YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// From 1.
    pub line: u32,
    pub message: String,
}

/// A parsed document, and its duplicate keys.
pub struct YamlDocument {
    pub root: Node,
    /// For each duplicate key: its position and a message.
    pub duplicates: Vec<(Origin, String)>,
}

/// The number of bytes after which a text is not repaired again; the bytes of all attempts to parse it count.
const MAX_REPAIRED_BYTES: usize = 16 << 20;

/// Parses the first document of `text`; an empty text gives null. `line_of` converts a line of the text to a line of
/// the file, both from 1.
pub fn parse(
    text: &str,
    file: u32,
    line_of: &dyn Fn(u32) -> u32,
    budget: &mut Budget,
) -> Result<YamlDocument, SyntaxError> {
    // Without this, the parser would read blanks at the end as another line of a block scalar.
    let mut text = Cow::Borrowed(text.trim_end_matches([' ', '\t']));
    let mut parsed_bytes = 0;
    loop {
        let mut left = budget.clone();
        let refusal = match parse_once(&text, file, line_of, &mut left) {
            Ok(document) => {
                *budget = left;
                return Ok(document);
            }
            Err(refusal) => refusal,
        };
        parsed_bytes += text.len();
        let repaired = refusal
            .difference
            .filter(|_| parsed_bytes <= MAX_REPAIRED_BYTES)
            .and_then(|place| libyaml::repaired(&text, place));
        match repaired {
            Some(repaired) => text = Cow::Owned(repaired),
            None => return Err(refusal.error),
        }
    }
}

/// A syntax error, and its place if libyaml accepts the text there.
struct Refusal {
    error: SyntaxError,
    difference: Option<LibyamlDifference>,
}

fn parse_once(
    text: &str,
    file: u32,
    line_of: &dyn Fn(u32) -> u32,
    budget: &mut Budget,
) -> Result<YamlDocument, Refusal> {
    let parser = Parser::new_from_str(text);
    let mut builder = Builder {
        parser,
        file,
        line_of,
        budget,
        anchors: HashMap::new(),
        names: Set::default(),
        duplicates: vec![],
        difference: None,
        unfinished: libyaml::unfinished_line(text),
        end: 0,
    };
    let mut root = Node { value: YamlValue::Null, at: Origin { file, line: line_of(1) } };
    loop {
        let content = builder.next().and_then(|(event, line)| match event {
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) => Ok(false),
            Event::StreamEnd | Event::DocumentEnd => Ok(true),
            content => builder.node(content, line, 0).map(|(node, _)| {
                root = node;
                false
            }),
        });
        match content {
            Ok(false) => {}
            Ok(true) => return Ok(YamlDocument { root, duplicates: builder.duplicates }),
            Err(error) => return Err(Refusal { error, difference: builder.difference }),
        }
    }
}

fn line(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

struct Builder<'a, 'b> {
    parser: Parser<'a, StrInput<'a>>,
    file: u32,
    line_of: &'b dyn Fn(u32) -> u32,
    budget: &'b mut Budget,
    anchors: HashMap<usize, (Node, Size)>,
    /// Keys below the top level. Jobs repeat the same keys, so each key is stored only once.
    names: Set<Arc<str>>,
    duplicates: Vec<(Origin, String)>,
    /// The place of the syntax error, if libyaml accepts the text there.
    difference: Option<LibyamlDifference>,
    /// The number and the text of the last line, if no line break follows it.
    unfinished: Option<(u32, &'a str)>,
    /// The line in which the current event ends.
    end: u32,
}

impl<'a> Builder<'a, '_> {
    fn at(&self, line: u32) -> Origin {
        Origin { file: self.file, line: (self.line_of)(line) }
    }

    fn error<T>(&self, line: u32, message: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError { line: (self.line_of)(line), message: message.into() })
    }

    fn scan_error(&mut self, error: &ScanError) -> SyntaxError {
        self.difference = libyaml::difference(error);
        SyntaxError { line: (self.line_of)(line(error.marker().line())), message: error.info().to_owned() }
    }

    fn node(&mut self, event: Event<'a>, line: u32, depth: usize) -> Result<(Node, Size), SyntaxError> {
        if depth > MAX_DEPTH {
            return self.error(line, format!("nested deeper than {MAX_DEPTH} levels"));
        }
        let mut size = Size { nodes: 1, bytes: 0 };
        if let Event::Alias(anchor) = event {
            let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                return self.error(line, "an alias inside its own anchor");
            };
            self.spend(size, line)?;
            return Ok((node, size));
        }
        let at = self.at(line);
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                size.bytes = text.len();
                self.spend(size, line)?;
                if tag.as_ref().is_some_and(|tag| is_reference(tag)) {
                    // A reference without a path, which is refused when references are resolved.
                    (anchor, YamlValue::Reference(Arc::default()))
                } else {
                    let text = if is_block(style) {
                        libyaml::without_added_line_break(&text, self.end, self.unfinished)
                    } else {
                        &text
                    };
                    (anchor, scalar_value(text, style, tag.as_deref()))
                }
            }
            Event::SequenceStart(anchor, tag) => {
                self.spend(size, line)?;
                let items = Arc::new(self.list(depth, &mut size)?);
                let reference = tag.is_some_and(|tag| is_reference(&tag));
                (anchor, if reference { YamlValue::Reference(items) } else { YamlValue::List(items) })
            }
            Event::MappingStart(anchor, _) => {
                self.spend(size, line)?;
                (anchor, YamlValue::Mapping(Arc::new(self.mapping(depth, &mut size)?)))
            }
            other => return self.error(line, format!("unexpected {other:?}")),
        };
        let node = Node { value, at };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok((node, size))
    }

    fn list(&mut self, depth: usize, size: &mut Size) -> Result<Vec<Node>, SyntaxError> {
        let mut items = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(items);
            }
            let (item, item_size) = self.node(event, line, depth + 1)?;
            size.add(item_size);
            items.push(item);
        }
    }

    /// The key of an entry, as text.
    fn key(&mut self, event: Event<'a>, line: u32, depth: usize) -> Result<(Arc<str>, Size), SyntaxError> {
        if let Event::Scalar(text, style, 0, None) = &event
            && (*style != ScalarStyle::Plain || scalar::special(text).is_none())
        {
            let size = Size { nodes: 1, bytes: text.len() };
            self.spend(size, line)?;
            return Ok((if depth > 1 { self.shared(text) } else { (&**text).into() }, size));
        }
        if matches!(&event, Event::Scalar(text, ScalarStyle::Plain, 0, None) if text.is_empty()) {
            return self.error(line, "there is no key before the colon");
        }
        let (key, size) = self.node(event, line, depth)?;
        match key.printed() {
            Some(name) => Ok((name, size)),
            None => self.error(line, format!("a key is {}; write text", key.kind())),
        }
    }

    fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(name) = self.names.get(text) {
            return Arc::clone(name);
        }
        let name: Arc<str> = text.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    fn mapping(&mut self, depth: usize, size: &mut Size) -> Result<Mapping, SyntaxError> {
        let mut mapping = Mapping::default();
        // Keys that so far only a merge key (`<<`) has set. Setting one of them explicitly is not a duplicate.
        let mut merged: HashSet<Arc<str>> = HashSet::new();
        loop {
            let (event, key_line) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(mapping);
            }
            let (name, key_size) = self.key(event, key_line, depth + 1)?;
            let (event, line) = self.next()?;
            let (node, value_size) = self.node(event, line, depth + 1)?;
            size.add(key_size);
            size.add(value_size);
            if &*name == "<<" {
                self.merge(&mut mapping, &node, line, &mut merged)?;
                continue;
            }
            let was_merged = !merged.is_empty() && merged.remove(&name);
            let key_at = self.at(key_line);
            let shown = Arc::clone(&name);
            // As in Ruby, a duplicate key keeps its first position and takes its last value.
            if let Some(previous) = mapping.insert(name, MappingEntry { key_at, node })
                && !was_merged
                && self.duplicates.len() < MAX_DUPLICATES
            {
                let first = previous.key_at.line;
                let message = format!("duplicate key `{shown}` (first in line {first}); the last value is used");
                self.duplicates.push((key_at, message));
            }
        }
    }

    /// Applies a merge key (`<<`) as Ruby does: its entries override the entries before it; in a list of mappings the
    /// first mapping wins.
    fn merge(
        &mut self,
        mapping: &mut Mapping,
        node: &Node,
        line: u32,
        merged: &mut HashSet<Arc<str>>,
    ) -> Result<(), SyntaxError> {
        let sources: Vec<&Node> = match &node.value {
            YamlValue::Mapping(_) => vec![node],
            YamlValue::List(items) => items.iter().rev().collect(),
            _ => vec![node],
        };
        for source in sources {
            let Some(entries) = source.mapping() else {
                return self.error(line, format!("`<<` takes a mapping or a list of mappings, not {}", source.kind()));
            };
            for (key, entry) in entries.iter() {
                mapping.insert(Arc::clone(key), entry.clone());
                merged.insert(Arc::clone(key));
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<(Event<'a>, u32), SyntaxError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                self.end = line(span.end.line());
                Ok((event, line(span.start.line())))
            }
            Some(Err(error)) => Err(self.scan_error(&error)),
            None => self.error(1, "the document is incomplete"),
        }
    }

    fn spend(&mut self, size: Size, line: u32) -> Result<(), SyntaxError> {
        let spent = self.budget.spend(size);
        spent.or_else(|message| self.error(line, message))
    }
}

fn is_reference(tag: &Tag) -> bool {
    tag.handle == "!" && tag.suffix == "reference"
}

fn is_block(style: ScalarStyle) -> bool {
    matches!(style, ScalarStyle::Literal | ScalarStyle::Folded)
}

fn scalar_value(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> YamlValue {
    let core = tag.filter(|tag| tag.is_yaml_core_schema()).map(|tag| tag.suffix.as_str());
    match core {
        Some("str") => YamlValue::Text(text.into()),
        Some(_) => scalar::typed(text),
        None if style == ScalarStyle::Plain && tag.is_none_or(|tag| tag.suffix.is_empty() || tag.handle == "!") => {
            scalar::typed(text)
        }
        None => YamlValue::Text(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Node {
        parse(text, 0, &|line| line, &mut Budget::default()).expect("must parse").root
    }

    fn refusal(text: &str) -> SyntaxError {
        parse(text, 0, &|line| line, &mut Budget::default()).err().expect("must be refused")
    }

    #[test]
    fn keeps_lines_and_references() {
        let root = read("job:\n  script:\n    - !reference [.setup, script]\n");
        let script = root.get("job").and_then(|job| job.get("script")).expect("the script");
        let item = &script.list().expect("a list")[0];
        assert_eq!(item.at.line, 3);
        assert!(matches!(&item.value, YamlValue::Reference(path) if path.len() == 2));
    }

    #[test]
    fn a_merge_key_overrides_entries_before_it_but_not_after_it() {
        let root = read(
            "base: &b {x: 1, y: 2}\nother: &o {y: 3, z: 4}\nafter: {<<: [*b, *o], x: 9}\nbefore: {x: 9, <<: *b}\n",
        );
        assert_eq!(root.get("after").map(Node::to_json), Some(serde_json::json!({"y": 2, "z": 4, "x": 9})));
        assert_eq!(root.get("before").map(Node::to_json), Some(serde_json::json!({"x": 1, "y": 2})));
    }

    #[test]
    fn the_last_of_two_equal_keys_wins_and_both_lines_are_reported() {
        let document = parse("a: 1\nb: 2\na: 3\n", 0, &|line| line, &mut Budget::default()).expect("must parse");
        assert_eq!(document.root.to_json(), serde_json::json!({"a": 3, "b": 2}));
        assert_eq!(document.duplicates[0].0.line, 3);
        assert!(document.duplicates[0].1.contains("line 1"));
    }

    #[test]
    fn limits_the_expansion_of_aliases() {
        let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, previous) in ["b", "c", "d", "e", "f", "g"].iter().zip(["a", "b", "c", "d", "e", "f"]) {
            bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{previous}"); 10].join(", "));
        }
        assert!(refusal(&bomb).message.contains("values after aliases"));
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 3000].join(", "));
        assert!(refusal(&long).message.contains("MiB of text"));
    }

    #[test]
    fn limits_nesting() {
        assert!(refusal(&"[".repeat(150)).message.contains("nested deeper"));
        assert!(!refusal(&"- ".repeat(150)).message.is_empty());
    }

    #[test]
    fn yaml_tags_set_the_type() {
        let root = read("a: !!str 1\nb: !!int '7'\nc: !local yes\n");
        assert_eq!(root.to_json(), serde_json::json!({"a": "1", "b": 7, "c": true}));
    }

    #[test]
    fn refuses_broken_text_with_its_line() {
        assert_eq!(refusal("a: 1\nb: [1\nc: 2\n").line, 3);
        assert!(refusal("a: *nothing\n").line > 0);
        assert!(refusal("a: &a [*a]\n").message.contains("own anchor"));
    }
}
