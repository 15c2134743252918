//! The variables that rules see.

use std::collections::HashMap;
use std::sync::Arc;

use super::variables::{MAX_VALUE_SIZE, PipelineVariables, Variable, has_reference, replace, truncate};

/// Variables as rules see them: unexpanded values by name; the level with the highest precedence wins.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub scope: &'a PipelineVariables,
    /// The job's variables in the configuration, or the default ones.
    pub yaml: &'a [Variable],
    /// Variables of the configuration with lower precedence.
    pub defaults: &'a [Variable],
    /// Predefined variables of the job.
    pub job: &'a [(&'static str, Arc<str>)],
    /// The environment of the job, which decides which variables of the project it has.
    pub environment: Option<&'a str>,
}

/// Predefined variables that a job has and rules do not: the server sets them after it has evaluated the rules.
const AFTER_RULES: [&str; 5] =
    ["CI_PIPELINE_ID", "CI_PIPELINE_URL", "CI_REPOSITORY_URL", "CI_REGISTRY_USER", "CI_DEPENDENCY_PROXY_USER"];

impl<'a> View<'a> {
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.find(name).map(|(value, _)| value)
    }

    /// The value of a variable, and whether its references to other variables are not expanded.
    fn find(&self, name: &str) -> Option<(&'a str, bool)> {
        if let Some(given) = self.scope.given(name, self.environment) {
            return Some((&given.value, given.raw));
        }
        let in_yaml = |list: &'a [Variable]| list.iter().rev().find(|variable| &*variable.key == name);
        if let Some(variable) = in_yaml(self.yaml).or_else(|| in_yaml(self.defaults)) {
            return Some((&variable.value, variable.raw));
        }
        if let Some((_, value)) = self.job.iter().find(|(key, _)| *key == name) {
            return Some((value, true));
        }
        self.scope.predefined.get(name).filter(|_| !AFTER_RULES.contains(&name)).map(|value| (&**value, true))
    }

    pub fn is_masked(&self, name: &str) -> bool {
        self.scope.given(name, self.environment).is_some_and(|given| given.masked)
    }

    /// Replaces known variables recursively; unknown ones are kept in the text, and become empty in values.
    pub fn expand_known(&self, text: &str) -> String {
        let mut found = FoundValues::new();
        replace(text, |name, reference| self.value_at(name, 0, &mut found).unwrap_or_else(|| reference.to_owned()))
    }

    /// Replaces variables recursively; unknown ones become empty.
    pub fn expand(&self, text: &str) -> String {
        self.expand_at(text, 0, &mut FoundValues::new())
    }

    fn expand_at(&self, text: &str, depth: usize, found: &mut FoundValues) -> String {
        if !has_reference(text) || depth > 10 {
            return text.to_owned();
        }
        replace(text, |name, _| self.value_at(name, depth, found).unwrap_or_default())
    }

    fn value_at(&self, name: &str, depth: usize, found: &mut FoundValues) -> Option<String> {
        let key = (depth, name.to_owned());
        if let Some(value) = found.get(&key) {
            return value.clone();
        }
        let value = self.find(name).map(|(value, raw)| {
            let mut value = if raw { value.to_owned() } else { self.expand_at(value, depth + 1, found) };
            truncate(&mut value, MAX_VALUE_SIZE / 16);
            value
        });
        found.insert(key, value.clone());
        value
    }
}

/// The values that one expansion has found, by depth and name. Without them, a few variables that name each other many
/// times would take exponential time.
type FoundValues = HashMap<(usize, String), Option<String>>;
