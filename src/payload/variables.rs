//! A job's variables: who sets what, who wins, and what is expanded.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Variable;
use super::expand::expand;
use super::lenient::boolean;

/// Names that bash keeps for itself: exporting one ends the script.
pub const READONLY: [&str; 6] = ["BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"];

/// Variables in the order of their rank, lowest first: the last of a name counts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Variables {
    list: Vec<Variable>,
    /// Where files of file variables stand.
    directory: String,
}

impl Variables {
    /// An empty list; file variables will be written to `directory` (`<project directory>.tmp`).
    pub fn new(directory: &Path) -> Self {
        Self { list: Vec::new(), directory: directory.display().to_string() }
    }

    /// Adds a public value of the agent's own, which is not expanded.
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        self.list.push(Variable {
            key: key.to_owned(),
            value: value.into(),
            public: true,
            raw: true,
            ..Variable::default()
        });
    }

    /// Adds a variable as it is.
    pub fn push(&mut self, variable: Variable) {
        self.list.push(variable);
    }

    /// Adds what scripts handed on (`GITLAB_ENV`), one `KEY=VALUE` a line; other lines are nothing.
    pub fn push_lines(&mut self, lines: &str) {
        let pairs = lines.lines().filter_map(|line| line.split_once('='));
        pairs.filter(|(key, _)| is_usable(key)).for_each(|(key, value)| self.set(key, value));
    }

    /// The value with which a variable counts: expanded, content instead of path for files; `None` when not set.
    pub fn value(&self, key: &str) -> Option<String> {
        let variable = self.list.iter().rev().find(|variable| variable.key == key)?;
        Some(self.expanded(variable))
    }

    /// Text in which references are replaced, file variables by their paths.
    pub fn expand(&self, text: &str) -> String {
        expand(text, &|name| self.reference(name))
    }

    /// A switch; a value that is no boolean is as good as none.
    pub fn switch(&self, key: &str, default: bool) -> bool {
        self.value(key).and_then(|text| boolean(&text)).unwrap_or(default)
    }

    /// How often a stage is tried: 1 to 10.
    pub fn attempts(&self, key: &str) -> u32 {
        self.value(key).and_then(|text| text.trim().parse().ok()).unwrap_or(1_u32).clamp(1, 10)
    }

    /// A duration such as `90s` or `1h30m`; what is none is as good as none.
    pub fn duration(&self, key: &str) -> Option<Duration> {
        self.value(key).and_then(|text| crate::config::duration::parse(&text))
    }

    /// Everything to keep out of the log.
    pub fn secrets(&self) -> Vec<String> {
        self.list.iter().filter(|variable| variable.masked).map(|variable| self.expanded(variable)).collect()
    }

    /// What a script exports, each name once, in order: plain values, and the paths of files.
    pub fn exports(&self) -> Vec<(String, String)> {
        self.counting().map(|variable| self.export(variable)).collect()
    }

    /// The same without what is not for everybody who works for the job, such as its services.
    pub fn public_exports(&self) -> Vec<(String, String)> {
        self.counting().filter(|variable| variable.public).map(|variable| self.export(variable)).collect()
    }

    fn export(&self, variable: &Variable) -> (String, String) {
        let value = if variable.file { self.path(&variable.key) } else { self.expanded(variable) };
        (variable.key.clone(), value)
    }

    /// Files to write: name in the directory, and content.
    pub fn files(&self) -> Vec<(String, String)> {
        let files = self.counting().filter(|variable| variable.file);
        files.map(|variable| (variable.key.clone(), self.expanded(variable))).collect()
    }

    /// The last of each name, where its name can be one of a shell.
    fn counting(&self) -> impl Iterator<Item = &Variable> {
        let mut last = std::collections::HashMap::new();
        for (index, variable) in self.list.iter().enumerate() {
            last.insert(variable.key.as_str(), index);
        }
        let counts = move |(index, variable): &(usize, &Variable)| last.get(variable.key.as_str()) == Some(index);
        self.list.iter().enumerate().filter(counts).map(|(_, variable)| variable).filter(|v| is_usable(&v.key))
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

    /// What a reference to a variable stands for: its value as written, or its path.
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

/// True for a name that every shell can export.
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
    fn the_last_of_a_name_counts_and_is_expanded_once() {
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
    fn what_scripts_hand_on_wins_where_it_is_a_variable() {
        let mut variables = Variables::new(Path::new("/t"));
        variables.push(variable("VERSION", "0"));
        variables.push_lines("VERSION=1.2=$X\njunk\nA-B=x\nUID=0\nLAST=no line end");
        assert_eq!(variables.value("VERSION").as_deref(), Some("1.2=$X"));
        assert_eq!(variables.value("LAST").as_deref(), Some("no line end"));
        assert!(variables.unusable_names().is_empty());
    }

    #[test]
    fn attempts_stay_within_bounds() {
        let mut variables = Variables::new(Path::new("/t"));
        for (text, attempts) in [("3", 3), ("0", 1), ("99", 10), ("x", 1)] {
            variables.push(variable("GET_SOURCES_ATTEMPTS", text));
            assert_eq!(variables.attempts("GET_SOURCES_ATTEMPTS"), attempts);
        }
    }
}
