//! Reads values of keywords, with the checks that many keywords share.

use std::sync::Arc;

use crate::pipeline::context::Context;
use crate::pipeline::problem::Class;
use crate::pipeline::suggest::did_you_mean;
use crate::pipeline::syntax::{Node, Origin, YamlValue};

/// The maximum length, in bytes, of a value that a message repeats.
const MAX_SHOWN_LENGTH: usize = 39;

/// Reads the keywords of one job, or of the top level. A method that returns `None` for a present value has reported
/// the reason.
pub struct KeywordReader<'r, 'a> {
    pub context: &'r mut Context<'a>,
    /// The job, or `None` at the top level.
    pub job: Option<&'r Arc<str>>,
}

impl KeywordReader<'_, '_> {
    /// Reports a problem.
    pub fn error<T>(&mut self, class: Class, at: Origin, message: impl Into<String>) -> Option<T> {
        self.context.error(class, at, self.job, message);
        None
    }

    /// Reports a value that the keyword does not accept.
    pub fn bad_value<T>(&mut self, node: &Node, keyword: &str, wanted: &str) -> Option<T> {
        let value = node.printed().filter(|text| text.len() <= MAX_SHOWN_LENGTH && !node.is_null());
        let kind = match &node.value {
            YamlValue::List(items) if items.is_empty() => "an empty list",
            YamlValue::Mapping(mapping) if mapping.is_empty() => "an empty mapping",
            _ => node.kind(),
        };
        let shown = value.map_or_else(|| kind.to_owned(), |text| format!("`{text}`"));
        self.error(Class::BadValue, node.at, format!("`{keyword}` takes {wanted}, not {shown}"))
    }

    /// Reports a keyword whose mapping lacks a key. `keys` names the key, such as "`name`".
    pub fn missing_key<T>(&mut self, node: &Node, keyword: &str, keys: &str) -> Option<T> {
        self.error(Class::BadValue, node.at, format!("`{keyword}` must contain {keys}"))
    }

    /// Reports a list with too few or too many entries. `allowed` is their number, such as `1 to 3`.
    pub fn bad_count<T>(&mut self, node: &Node, keyword: &str, count: usize, allowed: &str) -> Option<T> {
        self.error(Class::BadValue, node.at, format!("`{keyword}` has {count} entries; {allowed} are allowed"))
    }

    /// Reports a value that is not a mapping, and keys that `known` does not contain.
    pub fn check_mapping(&mut self, node: &Node, keyword: &str, known: &[&str]) -> Option<()> {
        let Some(mapping) = node.mapping() else { return self.bad_value(node, keyword, "a mapping") };
        let mut sound = Some(());
        for (key, entry) in mapping.iter().filter(|(key, _)| !known.contains(&&***key)) {
            let message = format!("unknown keyword `{keyword}:{key}`{}", did_you_mean(key, known));
            sound = sound.and(self.context.report.unknown_keyword_of(entry.key_at, self.job, message));
        }
        sound
    }

    pub fn text(&mut self, node: &Node, keyword: &str) -> Option<Arc<str>> {
        match node.text() {
            Some(text) => Some(Arc::clone(text)),
            None => self.bad_value(node, keyword, "text"),
        }
    }

    /// Text, or a number as text.
    pub fn printed(&mut self, node: &Node, keyword: &str) -> Option<Arc<str>> {
        match node.printed() {
            Some(text) => Some(text),
            None => self.bad_value(node, keyword, "text"),
        }
    }

    pub fn boolean(&mut self, node: &Node, keyword: &str) -> Option<bool> {
        match node.boolean() {
            Some(value) => Some(value),
            None => self.bad_value(node, keyword, "true or false"),
        }
    }

    /// One of the given words.
    pub fn one_of(&mut self, node: &Node, keyword: &str, words: &[&str]) -> Option<Arc<str>> {
        match node.text() {
            Some(text) if words.contains(&&**text) => Some(Arc::clone(text)),
            _ => self.bad_value(node, keyword, &format!("one of {}", words.join(", "))),
        }
    }

    /// A list of text; nested lists are flattened.
    pub fn nested_texts(&mut self, node: &Node, keyword: &str) -> Option<Vec<Arc<str>>> {
        if node.list().is_none() {
            return self.bad_value(node, keyword, "a list of text");
        }
        let items = self.context.flatten(node, keyword, self.job)?;
        items.iter().map(|item| self.text(item, keyword)).collect()
    }

    /// A list of text without lists inside, for keywords that GitLab does not flatten.
    pub fn flat_texts(&mut self, node: &Node, keyword: &str) -> Option<Vec<Arc<str>>> {
        match self.context.flat_texts(node, keyword, self.job) {
            Some(texts) => Some(texts),
            None => self.bad_value(node, keyword, "a flat list of text"),
        }
    }

    /// Text, or a list of text without lists inside.
    pub fn text_or_flat_texts(&mut self, node: &Node, keyword: &str) -> Option<Vec<Arc<str>>> {
        match node.text() {
            Some(text) => Some(vec![Arc::clone(text)]),
            None => self.flat_texts(node, keyword),
        }
    }

    /// Text with at least one character other than a blank, and at most `limit` characters.
    pub fn short_text(&mut self, node: &Node, keyword: &str, limit: usize) -> Option<Arc<str>> {
        let text = self.text(node, keyword)?;
        if text.trim().is_empty() {
            return self.error(Class::BadValue, node.at, format!("`{keyword}` is empty"));
        }
        self.check_length(node, keyword, &text, limit)?;
        Some(text)
    }

    /// Reports text with more than `limit` characters.
    pub fn check_length(&mut self, node: &Node, keyword: &str, text: &str, limit: usize) -> Option<()> {
        match text.chars().count() {
            length if length > limit => {
                let message = format!("`{keyword}` has {length} characters; up to {limit} are allowed");
                self.error(Class::BadValue, node.at, message)
            }
            _ => Some(()),
        }
    }

    /// Commands: text, or lists of text.
    pub fn commands(&mut self, node: &Node, keyword: &str) -> Option<Vec<Arc<str>>> {
        if let Some(text) = node.text() {
            return Some(vec![Arc::clone(text)]);
        }
        if node.list().is_none() {
            return self.bad_value(node, keyword, "a command or a list of commands");
        }
        let items = self.context.flatten(node, keyword, self.job)?;
        items.iter().map(|item| self.command(item, keyword)).collect()
    }

    fn command(&mut self, item: &Node, keyword: &str) -> Option<Arc<str>> {
        if let Some(text) = item.text() {
            return Some(Arc::clone(text));
        }
        match item.mapping() {
            Some(mapping) => {
                let key = mapping.keys().next().map_or("", |key| key);
                let message = format!(
                    "`{keyword}`: YAML reads `{key}: …` as a mapping; put a command that contains a colon into quotes"
                );
                self.error(Class::BadValue, item.at, message)
            }
            None => self.bad_value(item, keyword, "commands as text (put the value into quotes)"),
        }
    }

    /// An integer, or a list of integers.
    pub fn integers(&mut self, node: &Node, keyword: &str) -> Option<Vec<i32>> {
        let single = std::slice::from_ref(node);
        let items = node.list().unwrap_or(single);
        let numbers = items.iter().map(|item| item.integer().and_then(|number| i32::try_from(number).ok()));
        match numbers.collect() {
            Some(numbers) => Some(numbers),
            None => self.bad_value(node, keyword, "an exit code or a list of exit codes"),
        }
    }
}
