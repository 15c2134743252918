//! The variables of a job: their order of precedence and their expansion.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Variable;
use super::expand::expand;
use super::lenient::boolean;

/// Read-only variables of bash: exporting one would end the script.
pub const READONLY: [&str; 6] = ["BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"];

/// Variables in the order of precedence, lowest first: the last one of a name wins.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Variables {
    list: Vec<Variable>,
    /// The directory for file variables.
    directory: String,
}

impl Variables {
    /// An empty list; file variables will be written to `directory` (`<project directory>.tmp`).
    pub fn new(directory: &Path) -> Self {
        Self { list: Vec::new(), directory: directory.display().to_string() }
    }

    /// Adds a public value of the agent, which is not expanded.
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        self.list.push(Variable {
            key: key.to_owned(),
            value: value.into(),
            public: true,
            raw: true,
            ..Variable::default()
        });
    }

    /// Adds a variable.
    pub fn push(&mut self, variable: Variable) {
        self.list.push(variable);
    }

    /// Adds variables from scripts (`GITLAB_ENV`), one `KEY=VALUE` per line; other lines are ignored.
    pub fn push_lines(&mut self, lines: &str) {
        let pairs = lines.lines().filter_map(|line| line.split_once('='));
        pairs.filter(|(key, _)| is_usable(key)).for_each(|(key, value)| self.set(key, value));
    }

    /// The effective value of a variable: expanded; for files the content instead of the path. `None` if it is not set.
    pub fn value(&self, key: &str) -> Option<String> {
        let variable = self.list.iter().rev().find(|variable| variable.key == key)?;
        Some(self.expanded(variable))
    }

    /// Replaces references in a text; file variables become their paths.
    pub fn expand(&self, text: &str) -> String {
        expand(text, &|name| self.reference(name))
    }

    /// The value as a boolean; `None` if it is not set or not a boolean.
    pub fn boolean(&self, key: &str) -> Option<bool> {
        self.value(key).and_then(|text| boolean(&text))
    }

    /// The number of attempts of a stage: 1 to 10.
    pub fn attempts(&self, key: &str) -> u32 {
        self.value(key).and_then(|text| text.trim().parse().ok()).unwrap_or(1_u32).clamp(1, 10)
    }

    /// The value as a duration such as `90s` or `1h30m`; `None` if it is not set or not a duration.
    pub fn duration(&self, key: &str) -> Option<Duration> {
        self.value(key).and_then(|text| crate::config::duration::parse(&text))
    }

    /// All values that must not appear in the log.
    pub fn secrets(&self) -> Vec<String> {
        self.list.iter().filter(|variable| variable.masked).map(|variable| self.expanded(variable)).collect()
    }

    /// The variables to export in a script, each name once, in order; for files, their paths.
    pub fn exports(&self) -> Vec<(String, String)> {
        self.effective().map(|variable| self.export(variable)).collect()
    }

    /// The exports without non-public variables, for services of the job.
    pub fn public_exports(&self) -> Vec<(String, String)> {
        self.effective().filter(|variable| variable.public).map(|variable| self.export(variable)).collect()
    }

    fn export(&self, variable: &Variable) -> (String, String) {
        let value = if variable.file { self.path(&variable.key) } else { self.expanded(variable) };
        (variable.key.clone(), value)
    }

    /// Files to write: name in the directory, and content.
    pub fn files(&self) -> Vec<(String, String)> {
        if !self.list.iter().any(|variable| variable.file) {
            return Vec::new();
        }
        let files = self.effective().filter(|variable| variable.file);
        files.map(|variable| (variable.key.clone(), self.expanded(variable))).collect()
    }

    /// The last variable of each name, if a shell can export the name.
    fn effective(&self) -> impl Iterator<Item = &Variable> {
        let mut last = std::collections::HashMap::new();
        for (index, variable) in self.list.iter().enumerate() {
            last.insert(variable.key.as_str(), index);
        }
        let is_last = move |(index, variable): &(usize, &Variable)| last.get(variable.key.as_str()) == Some(index);
        self.list.iter().enumerate().filter(is_last).map(|(_, variable)| variable).filter(|v| is_usable(&v.key))
    }

    /// Names that no shell can export, for a warning.
    pub fn unusable_names(&self) -> Vec<&str> {
        self.list.iter().map(|variable| variable.key.as_str()).filter(|key| !is_usable(key)).collect()
    }

    fn expanded(&self, variable: &Variable) -> String {
        if variable.raw {
            return variable.value.clone();
        }
        expand(&variable.value, &|name| self.reference(name))
    }

    /// The replacement of a reference: the unexpanded value, or the path of a file.
    fn reference(&self, name: &str) -> String {
        match self.list.iter().rev().find(|variable| variable.key == name) {
            Some(variable) if variable.file => self.path(name),
            Some(variable) => variable.value.clone(),
            None => String::new(),
        }
    }

    fn path(&self, key: &str) -> String {
        format!("{}/{key}", self.directory)
    }
}

/// Whether every shell can export the name.
fn is_usable(key: &str) -> bool {
    let first = key.bytes().next();
    first.is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !READONLY.contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(key: &str, value: &str) -> Variable {
        Variable { key: key.to_owned(), value: value.to_owned(), ..Variable::default() }
    }

    #[test]
    fn the_last_value_wins_and_is_expanded_once() {
        let mut variables = Variables::new(Path::new("/b/p.tmp"));
        variables.push(variable("A", "$B"));
        variables.push(variable("B", "$C"));
        variables.push(variable("C", "deep"));
        variables.push(Variable { raw: true, ..variable("RAW", "$A") });
        variables.push(Variable { file: true, ..variable("FILE", "content") });
        variables.push(variable("PATH_OF", "at $FILE"));
        variables.push(variable("A", "last $B"));
        variables.push(variable("not-a-name", "x"));
        variables.push(variable("UID", "0"));
        let exports = variables.exports();
        let export = |key: &str| exports.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        assert_eq!(export("A"), Some("last $C"));
        assert_eq!(export("RAW"), Some("$A"));
        assert_eq!(export("FILE"), Some("/b/p.tmp/FILE"));
        assert_eq!(export("PATH_OF"), Some("at /b/p.tmp/FILE"));
        assert_eq!(export("not-a-name"), None);
        assert_eq!(variables.unusable_names(), ["not-a-name", "UID"]);
        assert_eq!(variables.files(), [("FILE".to_owned(), "content".to_owned())]);
        assert_eq!(variables.value("FILE").as_deref(), Some("content"));
        assert_eq!(exports.iter().filter(|(name, _)| name == "A").count(), 1);
    }

    #[test]
    fn variables_from_scripts_win_if_they_are_valid() {
        let mut variables = Variables::new(Path::new("/t"));
        variables.push(variable("VERSION", "0"));
        variables.push_lines("VERSION=1.2=$X\njunk\nA-B=x\nUID=0\nLAST=no line end");
        assert_eq!(variables.value("VERSION").as_deref(), Some("1.2=$X"));
        assert_eq!(variables.value("LAST").as_deref(), Some("no line end"));
        assert!(variables.unusable_names().is_empty());
    }

    #[test]
    fn limits_the_number_of_attempts() {
        let mut variables = Variables::new(Path::new("/t"));
        for (text, attempts) in [("3", 3), ("0", 1), ("99", 10), ("x", 1)] {
            variables.push(variable("GET_SOURCES_ATTEMPTS", text));
            assert_eq!(variables.attempts("GET_SOURCES_ATTEMPTS"), attempts);
        }
    }
}
