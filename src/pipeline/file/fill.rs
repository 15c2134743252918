//! Puts the values of interpolation blocks into a parsed file.

use std::collections::HashMap;
use std::sync::Arc;

use super::interpolate::{Block, BlockValues, EDGE, value_of};
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::{
    Budget, MAX_DEPTH, Mapping, MappingEntry, Node, Origin, Size, TreeExtent, YamlValue, extent,
};

/// The number of different blocks that a file may have, as on GitLab.
const MAX_BLOCKS: usize = 10_000;

/// Replaces the marks of blocks in a tree.
///
/// A file can pass each of its inputs several times to a file that it includes, so values could grow with every
/// include. Therefore each value counts against the size limit of the pipeline, once when it is evaluated and each time
/// that it is inserted. The filled tree may be as deep as a parsed one, and no deeper.
pub struct Filling<'a> {
    blocks: &'a [Block],
    values: &'a BlockValues<'a>,
    budget: &'a mut Budget,
    /// The value of each evaluated block, by its content.
    evaluated: HashMap<&'a str, (Node, TreeExtent)>,
    /// A limit is exceeded; further blocks are not evaluated.
    is_over_limit: bool,
    /// Problems: class, line, message.
    pub errors: Vec<(Class, u32, String)>,
}

impl<'a> Filling<'a> {
    pub fn new(blocks: &'a [Block], values: &'a BlockValues<'a>, budget: &'a mut Budget) -> Self {
        Self { blocks, values, budget, evaluated: HashMap::new(), is_over_limit: false, errors: Vec::new() }
    }

    /// A tree with values in the place of marks. A text that consists of one mark becomes the value; other marks become
    /// text. If the value of a list item is a list, its items are inserted into the list around it.
    pub fn fill(&mut self, root: &Node) -> Node {
        self.node(root, 0)
    }

    fn node(&mut self, node: &Node, depth: usize) -> Node {
        let value = match &node.value {
            YamlValue::Text(text) if text.contains(EDGE) => match self.sole_value(text, depth, node.at) {
                Some(value) => value.value,
                None => YamlValue::Text(self.text(text, depth, node.at).into()),
            },
            YamlValue::List(items) => YamlValue::List(Arc::new(self.items(items, depth))),
            YamlValue::Reference(path) => YamlValue::Reference(Arc::new(self.items(path, depth))),
            YamlValue::Mapping(mapping) => YamlValue::Mapping(Arc::new(self.mapping(mapping, depth))),
            other => other.clone(),
        };
        Node { value, at: node.at }
    }

    fn mapping(&mut self, mapping: &Mapping, depth: usize) -> Mapping {
        let mut filled = Mapping::with_capacity_and_hasher(mapping.len(), Default::default());
        for (key, entry) in mapping.iter() {
            let key = match key.contains(EDGE) {
                true => self.text(key, depth, entry.key_at).into(),
                false => Arc::clone(key),
            };
            let node = self.node(&entry.node, depth + 1);
            filled.insert(key, MappingEntry { key_at: entry.key_at, node });
        }
        filled
    }

    fn items(&mut self, items: &[Node], depth: usize) -> Vec<Node> {
        let mut out = Vec::with_capacity(items.len());
        for item in items {
            let filled = self.node(item, depth + 1);
            match (&item.value, filled.list()) {
                (YamlValue::Text(_), Some(inserted)) => out.extend_from_slice(inserted),
                _ => out.push(filled),
            }
        }
        out
    }

    /// The value of a text that consists of one mark.
    fn sole_value(&mut self, text: &str, depth: usize, at: Origin) -> Option<Node> {
        let index = text.strip_prefix(EDGE)?.strip_suffix(EDGE)?;
        self.value(index.parse().ok()?, depth, at)
    }

    /// A text with its marks replaced by text. A delimiter that belongs to no mark stays: the file contains it.
    fn text(&mut self, text: &str, depth: usize, at: Origin) -> String {
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once(EDGE) {
            out.push_str(before);
            let mark = after
                .split_once(EDGE)
                .and_then(|(index, end)| Some((self.value(index.parse().ok()?, depth, at)?, end)));
            rest = match mark {
                Some((value, end)) => {
                    out.push_str(&as_text(&value));
                    end
                }
                None => {
                    out.push(EDGE);
                    after
                }
            };
        }
        out.push_str(rest);
        out
    }

    /// The value of a block; null if it has a problem, which is reported. `None`: there is no such block.
    fn value(&mut self, index: usize, depth: usize, at: Origin) -> Option<Node> {
        let block = self.blocks.get(index)?;
        if self.is_over_limit {
            return Some(Node::null_at(at));
        }
        Some(self.value_to_insert(block, depth, at).unwrap_or_else(|(class, message)| {
            self.is_over_limit = class == Class::TooBig;
            self.errors.push((class, block.line, message));
            Node::null_at(at)
        }))
    }

    /// The value of a block that is inserted at a depth of the tree.
    fn value_to_insert(&mut self, block: &'a Block, depth: usize, at: Origin) -> Result<Node, (Class, String)> {
        let (value, extent) = match self.evaluated.get(block.content.as_str()) {
            Some(evaluated) => evaluated.clone(),
            None => self.evaluate(block, at)?,
        };
        if depth + extent.depth > MAX_DEPTH {
            let message = format!("`$[[ {} ]]` makes the file nest deeper than {MAX_DEPTH} levels", block.content);
            return Err((Class::TooBig, message));
        }
        self.spend(extent.size)?;
        Ok(value)
    }

    fn evaluate(&mut self, block: &'a Block, at: Origin) -> Result<(Node, TreeExtent), (Class, String)> {
        if self.evaluated.len() >= MAX_BLOCKS {
            return Err((Class::TooBig, format!("the file has more than {MAX_BLOCKS} different blocks `$[[ … ]]`")));
        }
        let value = value_of(&block.content, self.values, self.budget)?;
        let extent = extent(&value);
        self.spend(extent.size)?;
        let evaluated = (moved_to(&value, at), extent);
        self.evaluated.insert(&block.content, evaluated.clone());
        Ok(evaluated)
    }

    /// Subtracts a size from the size limit.
    fn spend(&mut self, size: Size) -> Result<(), (Class, String)> {
        self.budget.spend(size).map_err(|why| (Class::TooBig, format!("the files of the pipeline have {why}")))
    }
}

/// A copy of a value with the position of a block: problems are reported where the value is used.
fn moved_to(value: &Node, at: Origin) -> Node {
    let value = match &value.value {
        YamlValue::List(items) | YamlValue::Reference(items) => {
            YamlValue::List(Arc::new(items.iter().map(|item| moved_to(item, at)).collect()))
        }
        YamlValue::Mapping(mapping) => {
            let entry = |(key, entry): (&Arc<str>, &MappingEntry)| {
                (Arc::clone(key), MappingEntry { key_at: at, node: moved_to(&entry.node, at) })
            };
            YamlValue::Mapping(Arc::new(mapping.iter().map(entry).collect()))
        }
        scalar => scalar.clone(),
    };
    Node { value, at }
}

/// A value as it appears inside of a longer text: lists and mappings as JSON.
pub fn as_text(value: &Node) -> String {
    match value.printed() {
        Some(text) => text.to_string(),
        None => {
            let mut out = String::new();
            push_json(value, &mut out);
            out
        }
    }
}

/// Appends JSON with a space after commas and colons.
fn push_json(value: &Node, out: &mut String) {
    match &value.value {
        YamlValue::List(items) | YamlValue::Reference(items) => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                out.push_str(if number > 0 { ", " } else { "" });
                push_json(item, out);
            }
            out.push(']');
        }
        YamlValue::Mapping(mapping) => {
            out.push('{');
            for (number, (key, entry)) in mapping.iter().enumerate() {
                out.push_str(if number > 0 { ", " } else { "" });
                out.push_str(&format!("{}: ", serde_json::Value::from(&**key)));
                push_json(&entry.node, out);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_json().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::super::interpolate::mark;
    use super::*;
    use crate::pipeline::syntax::parse;

    fn filled(text: &str) -> Result<Json, Vec<(Class, u32)>> {
        filled_with(text, &mut Budget::default())
    }

    fn filled_with(text: &str, budget: &mut Budget) -> Result<Json, Vec<(Class, u32)>> {
        let marked = mark(text, 1);
        let root = parse(&marked.text, 0, &|line| line, &mut Budget::default()).expect("must be YAML").root;
        let inputs = |name: &str| match name {
            "text" => Some(serde_json::json!("yes: \"no\" # 'x'")),
            "true" => Some(serde_json::json!("true")),
            "lines" => Some(serde_json::json!("x\ny")),
            "list" => Some(serde_json::json!([1, "a", {"k": null}])),
            "flag" => Some(serde_json::json!(true)),
            "none" => Some(Json::Null),
            "big" => Some("x".repeat(10 << 20).into()),
            "many" => Some(vec![Json::Null; 300_000].into()),
            "deep" => Some((0..95).fold(Json::Null, |inner, _| serde_json::json!({ "k": inner }))),
            _ => None,
        };
        let inputs = |name: &str| inputs(name).map(Node::from);
        let values = BlockValues { inputs: &inputs, component: &|_| None, variables: &|_| None };
        let mut filling = Filling::new(&marked.blocks, &values, budget);
        let root = filling.fill(&root);
        if filling.errors.is_empty() {
            return Ok(root.to_json());
        }
        Err(filling.errors.into_iter().map(|(class, line, _)| (class, line)).collect())
    }

    #[test]
    fn a_whole_value_keeps_its_type_and_parts_of_text_become_text() {
        let text = "a: $[[ inputs.list ]]\nb: \"$[[ inputs.flag ]]\"\nc: x$[[ inputs.flag ]]$[[ inputs.list ]]\nd: $[[ inputs.true ]]\ne: $[[ inputs.none ]]\nf: x$[[ inputs.none ]]\n";
        let expected = serde_json::json!({
            "a": [1, "a", {"k": null}], "b": true, "c": "xtrue[1, \"a\", {\"k\": null}]", "d": "true", "e": null, "f": "x",
        });
        assert_eq!(filled(text), Ok(expected));
    }

    #[test]
    fn values_are_never_read_as_yaml() {
        let text = "'$[[ inputs.text ]]': {s: [\"$[[ inputs.lines ]]\", echo $[[ inputs.text ]], $[[ inputs.text ]]]}\n# $[[ inputs.unknown ]]\n";
        let written = "yes: \"no\" # 'x'";
        let expected = serde_json::json!({written: {"s": ["x\ny", format!("echo {written}"), written]}});
        assert_eq!(filled(text), Ok(expected));
    }

    #[test]
    fn a_list_is_inserted_into_the_list_around_it() {
        let text = "a: [x, $[[ inputs.list ]], y]\nb: [[$[[ inputs.list ]]]]\nc: [\"$[[ inputs.list ]] \"]\n";
        let expected = serde_json::json!({
            "a": ["x", 1, "a", {"k": null}, "y"], "b": [[1, "a", {"k": null}]], "c": ["[1, \"a\", {\"k\": null}] "],
        });
        assert_eq!(filled(text), Ok(expected));
    }

    #[test]
    fn the_delimiter_of_marks_may_be_in_the_file() {
        let text = format!("a: 'x{EDGE} $[[ inputs.flag ]]{EDGE}{EDGE}y{EDGE}'\n");
        assert_eq!(filled(&text), Ok(serde_json::json!({"a": format!("x{EDGE} true{EDGE}{EDGE}y{EDGE}")})));
    }

    #[test]
    fn reports_bad_blocks_with_their_line() {
        assert_eq!(filled("a: 1\nb: [x, $[[ inputs.no ]]]\n"), Err(vec![(Class::InputUnknown, 2)]));
    }

    #[test]
    fn values_count_against_the_size_limit_each_time_they_are_inserted() {
        let big = "a: $[[ inputs.big ]]\nb: $[[ inputs.big ]]\nc: x$[[ inputs.big ]]\nd: $[[ inputs.big ]]\n";
        assert_eq!(filled(big), Err(vec![(Class::TooBig, 3)]));
        let many = "a: [$[[ inputs.many ]]]\nb: $[[ inputs.many ]]\nc: $[[ inputs.many ]]\n";
        assert_eq!(filled(many), Err(vec![(Class::TooBig, 3)]));
    }

    #[test]
    fn the_size_limit_holds_for_all_files_together() {
        let mut budget = Budget::default();
        let text = "a: $[[ inputs.big ]]\n";
        assert!(filled_with(text, &mut budget).is_ok());
        assert_eq!(filled_with(text, &mut budget), Err(vec![(Class::TooBig, 1)]));
    }

    #[test]
    fn functions_count_the_text_that_they_read() {
        let calls: String = (0..4).map(|n| format!("k{n}: $[[ inputs.big | truncate({n},1) ]]\n")).collect();
        assert_eq!(filled(&calls), Err(vec![(Class::TooBig, 4)]));
    }

    #[test]
    fn limits_the_depth_of_the_filled_tree_and_the_number_of_blocks() {
        assert!(filled("a: {b: {c: {d: $[[ inputs.deep ]]}}}\n").is_ok());
        assert_eq!(filled("a: {b: {c: {d: {e: {f: $[[ inputs.deep ]]}}}}}\n"), Err(vec![(Class::TooBig, 1)]));
        let blocks: String = (0..=MAX_BLOCKS).map(|n| format!("- $[[ inputs.text | truncate({n},1) ]]\n")).collect();
        assert_eq!(filled(&blocks), Err(vec![(Class::TooBig, 10_001)]));
    }
}
