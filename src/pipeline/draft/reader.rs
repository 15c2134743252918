//! Reads values of keywords with the checks that many of them share.

use std::sync::Arc;

use crate::pipeline::context::Context;
use crate::pipeline::problem::Class;
use crate::pipeline::suggest::did_you_mean;
use crate::pipeline::syntax::{Node, Origin};

/// Reads keywords of one job, or of the top level. Every method that returns `None` for a value that is there has
/// reported why.
pub struct Reader<'r, 'a> {
    /// The state of planning.
    pub context: &'r mut Context<'a>,
    /// The job, if it is one's keyword.
    pub job: Option<&'r Arc<str>>,
}

impl Reader<'_, '_> {
    /// Reports a problem.
    pub fn error<T>(&mut self, class: Class, at: Origin, message: impl Into<String>) -> Option<T> {
        self.context.error(class, at, self.job, message);
        None
    }

    /// Reports a value that a keyword does not take.
    pub fn bad<T>(&mut self, node: &Node, keyword: &str, wanted: &str) -> Option<T> {
        let value = node.printed().filter(|text| text.len() < 40 && !node.is_null());
        let shown = value.map_or_else(|| node.kind().to_owned(), |text| format!("`{text}`"));
        self.error(Class::BadValue, node.at, format!("`{keyword}` takes {wanted}, not {shown}"))
    }

    /// Reports keys that a mapping does not have, and values that are no mapping.
    pub fn mapping(&mut self, node: &Node, keyword: &str, known: &[&str]) -> Option<()> {
        let Some(mapping) = node.mapping() else { return self.bad(node, keyword, "a mapping") };
        let mut sound = Some(());
        for (key, entry) in mapping.iter().filter(|(key, _)| !known.contains(&&***key)) {
            let message = format!("`{keyword}` has no keyword `{key}`{}", did_you_mean(key, known));
            self.context.report.unknown_of(entry.key_at, self.job, message);
            if !self.context.report.lax {
                sound = None;
            }
        }
        sound
    }

    /// Text.
    pub fn text(&mut self, node: &Node, keyword: &str) -> Option<Arc<str>> {
        match node.text() {
            Some(text) => Some(Arc::clone(text)),
            None => self.bad(node, keyword, "text"),
        }
    }

    /// Text or a number, as text.
    pub fn printed(&mut self, node: &Node, keyword: &str) -> Option<Arc<str>> {
        match node.printed() {
            Some(text) => Some(text),
            None => self.bad(node, keyword, "text"),
        }
    }

    /// A boolean.
    pub fn boolean(&mut self, node: &Node, keyword: &str) -> Option<bool> {
        match node.boolean() {
            Some(value) => Some(value),
            None => self.bad(node, keyword, "true or false"),
        }
    }

    /// One of some words.
    pub fn one_of(&mut self, node: &Node, keyword: &str, words: &[&str]) -> Option<Arc<str>> {
        match node.text() {
            Some(text) if words.contains(&&**text) => Some(Arc::clone(text)),
            Some(text) if text.contains('$') => Some(Arc::clone(text)),
            _ => self.bad(node, keyword, &format!("one of {}", words.join(", "))),
        }
    }

    /// A list of text, nested lists flattened.
    pub fn texts(&mut self, node: &Node, keyword: &str) -> Option<Vec<Arc<str>>> {
        if node.list().is_none() {
            return self.bad(node, keyword, "a list of text");
        }
        let items = self.context.flatten(node, keyword, self.job)?;
        items.iter().map(|item| self.text(item, keyword)).collect()
    }

    /// Text, or a list of text.
    pub fn text_or_texts(&mut self, node: &Node, keyword: &str) -> Option<Vec<Arc<str>>> {
        match node.text() {
            Some(text) => Some(vec![Arc::clone(text)]),
            None => self.texts(node, keyword),
        }
    }

    /// Commands: text, or lists of text.
    pub fn commands(&mut self, node: &Node, keyword: &str) -> Option<Vec<Arc<str>>> {
        if let Some(text) = node.text() {
            return Some(vec![Arc::clone(text)]);
        }
        if node.list().is_none() {
            return self.bad(node, keyword, "a command or a list of commands");
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
                let message =
                    format!("`{keyword}`: `{key}: …` is a mapping for YAML; put a command with a colon into quotes");
                self.error(Class::BadValue, item.at, message)
            }
            None => self.bad(item, keyword, "commands as text (put it into quotes)"),
        }
    }

    /// An integer, or a list of integers.
    pub fn integers(&mut self, node: &Node, keyword: &str) -> Option<Vec<i32>> {
        let single = std::slice::from_ref(node);
        let items = node.list().unwrap_or(single);
        let numbers = items.iter().map(|item| item.integer().and_then(|number| i32::try_from(number).ok()));
        match numbers.collect() {
            Some(numbers) => Some(numbers),
            None => self.bad(node, keyword, "an exit code or a list of exit codes"),
        }
    }
}
