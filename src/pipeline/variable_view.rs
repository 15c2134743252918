//! The variables that rules and includes see.

use std::collections::HashMap;
use std::sync::Arc;

use super::variable_references::{MAX_VALUE_SIZE, has_reference, replace_references, truncate};
use super::variables::{SharedVariables, UnexpandedValue, Variable};

/// The deepest chain of references that is expanded.
const MAX_DEPTH: usize = 10;

/// The maximum size of a value inside of another one, in bytes.
const MAX_NESTED_SIZE: usize = MAX_VALUE_SIZE / 16;

/// Predefined variables that a job has and rules do not: the server sets them after it has evaluated the rules.
const AFTER_RULES: [&str; 5] =
    ["CI_PIPELINE_ID", "CI_PIPELINE_URL", "CI_REPOSITORY_URL", "CI_REGISTRY_USER", "CI_DEPENDENCY_PROXY_USER"];

/// Unexpanded values by name; the level with the highest precedence wins.
#[derive(Clone, Copy)]
pub struct VariableView<'a> {
    /// Predefined variables, and those that the caller gives.
    pub shared: &'a SharedVariables,
    /// The job's variables in the configuration.
    pub own: &'a [Variable],
    /// Default variables of the configuration; those of the job override them.
    pub defaults: &'a [Variable],
    /// Predefined variables of the job.
    pub job: &'a [(&'static str, Arc<str>)],
    /// The environment of the job, which decides which variables of the project it has.
    pub environment: Option<&'a str>,
}

impl<'a> VariableView<'a> {
    /// The variables that do not depend on a job.
    pub fn of_pipeline(shared: &'a SharedVariables, defaults: &'a [Variable]) -> Self {
        Self { shared, own: &[], defaults, job: &[], environment: None }
    }

    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.find(name).map(|value| value.text)
    }

    fn find(&self, name: &str) -> Option<UnexpandedValue<'a>> {
        if let Some(given) = self.shared.given(name, self.environment) {
            return Some(UnexpandedValue { text: &given.value, raw: given.raw });
        }
        let find = |list: &'a [Variable]| list.iter().rev().find(|variable| &*variable.key == name);
        if let Some(variable) = find(self.own).or_else(|| find(self.defaults)) {
            return Some(UnexpandedValue::of_configuration(variable));
        }
        if let Some((_, text)) = self.job.iter().find(|(key, _)| *key == name) {
            return Some(UnexpandedValue { text, raw: true });
        }
        let predefined = self.shared.predefined.get(name).filter(|_| !AFTER_RULES.contains(&name));
        predefined.map(|text| UnexpandedValue { text, raw: true })
    }

    pub fn is_masked(&self, name: &str) -> bool {
        self.shared.given(name, self.environment).is_some_and(|given| given.masked)
    }

    /// Replaces known variables recursively. Unknown ones are kept in the text, and become empty in values.
    pub fn expand_known(&self, text: &str) -> String {
        let mut found = FoundValues::new();
        replace_references(text, |name, reference| {
            self.value_at(name, 0, &mut found).unwrap_or_else(|| reference.to_owned())
        })
    }

    /// Replaces variables recursively; unknown ones become empty.
    pub fn expand(&self, text: &str) -> String {
        self.expand_at(text, 0, &mut FoundValues::new())
    }

    fn expand_at(&self, text: &str, depth: usize, found: &mut FoundValues) -> String {
        if !has_reference(text) || depth > MAX_DEPTH {
            return text.to_owned();
        }
        replace_references(text, |name, _| self.value_at(name, depth, found).unwrap_or_default())
    }

    fn value_at(&self, name: &str, depth: usize, found: &mut FoundValues) -> Option<String> {
        let key = (depth, name.to_owned());
        if let Some(value) = found.get(&key) {
            return value.clone();
        }
        let value = self.find(name).map(|value| {
            let mut text = if value.raw { value.text.to_owned() } else { self.expand_at(value.text, depth + 1, found) };
            truncate(&mut text, MAX_NESTED_SIZE);
            text
        });
        found.insert(key, value.clone());
        value
    }
}

/// The values that one expansion has found, by depth and name. Without them, a few variables that name each other many
/// times would take exponential time.
type FoundValues = HashMap<(usize, String), Option<String>>;
