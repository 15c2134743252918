//! The expansion of a job's variables by the server. The server expands recursively, and leaves unknown names for the
//! runner.

use std::sync::Arc;

use super::hash::{Index, Map};
use super::variable_references::{MAX_REFERENCE_DEPTH, has_reference, replace_references};
use super::variables::{EnvSource, EnvVariable};

/// The treatment of references to unknown names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum UnknownReference {
    /// They are kept for the runner, as are references to file variables and raw variables.
    Kept,
    /// They become empty.
    Emptied,
}

/// Expands all variables. References within a cycle are kept.
pub fn expand_all(mut variables: Index<Arc<str>, EnvVariable>) -> Index<Arc<str>, EnvVariable> {
    let mut expansion = Expansion { variables: &variables, values: Map::default(), open: Vec::new() };
    let expanded: Vec<Option<Arc<str>>> = variables.keys().map(|name| expansion.value(name)).collect();
    for (variable, value) in variables.values_mut().zip(expanded) {
        if let Some(value) = value {
            variable.value = value.to_string();
        }
    }
    variables
}

/// Expands one text.
pub fn expand_text(text: &str, variables: &Index<Arc<str>, EnvVariable>, unknown: UnknownReference) -> String {
    if !has_reference(text) {
        return text.to_owned();
    }
    let mut expansion = Expansion { variables, values: Map::default(), open: Vec::new() };
    expansion.text(text, unknown)
}

struct Expansion<'a> {
    variables: &'a Index<Arc<str>, EnvVariable>,
    values: Map<&'a str, Arc<str>>,
    /// The variables whose values are being expanded, the outermost first.
    open: Vec<&'a str>,
}

impl<'a> Expansion<'a> {
    /// The expanded value; `None` if it does not change.
    fn value(&mut self, name: &str) -> Option<Arc<str>> {
        let (_, key, variable) = self.variables.get_full(name)?;
        let key: &'a str = key;
        if variable.raw || !has_reference(&variable.value) {
            return None;
        }
        if let Some(value) = self.values.get(key) {
            return Some(Arc::clone(value));
        }
        if self.open.len() > MAX_REFERENCE_DEPTH {
            return None;
        }
        self.open.push(key);
        let value: Arc<str> = self.text(&variable.value, UnknownReference::Kept).into();
        self.open.pop();
        // Within a cycle, the value depends on the variable at which the expansion began, so it is not cached.
        if self.open.is_empty() || !self.open.contains(&key) {
            self.values.insert(key, Arc::clone(&value));
        }
        Some(value)
    }

    fn text(&mut self, text: &str, unknown: UnknownReference) -> String {
        replace_references(text, |name, reference| {
            let stays = match unknown {
                UnknownReference::Kept => reference,
                UnknownReference::Emptied => "",
            };
            match self.variables.get(name) {
                None => stays.to_owned(),
                Some(variable) if unknown == UnknownReference::Kept && is_for_runner(variable) => reference.to_owned(),
                Some(_) if self.open.contains(&name) => reference.to_owned(),
                Some(variable) => match self.value(name) {
                    Some(value) => value.to_string(),
                    None => variable.value.clone(),
                },
            }
        })
    }
}

/// Whether only the runner expands references to this variable.
fn is_for_runner(variable: &EnvVariable) -> bool {
    variable.file || (variable.raw && variable.source != EnvSource::Predefined)
}

#[cfg(test)]
mod tests {
    use super::super::variable_references::MAX_VALUE_SIZE;
    use super::*;

    fn variable(key: &str, value: &str) -> (Arc<str>, EnvVariable) {
        let variable = EnvVariable { key: key.into(), value: value.into(), ..EnvVariable::default() };
        (key.into(), variable)
    }

    fn expanded(list: &[(&str, &str)]) -> Vec<String> {
        let variables = list.iter().map(|(key, value)| variable(key, value)).collect();
        expand_all(variables).into_values().map(|variable| variable.value).collect()
    }

    #[test]
    fn expands_recursively_and_keeps_unknown_names() {
        let list = [("A", "${B}/a"), ("B", "$C%C%"), ("C", "c"), ("D", "$$A %% $NO ${NO} %NO% 5% $"), ("E", "$E:/x")];
        assert_eq!(expanded(&list), ["cc/a", "cc", "c", "$$A %% $NO ${NO} %NO% 5% $", "$E:/x"]);
    }

    #[test]
    fn keeps_references_to_raw_and_file_variables() {
        let mut variables = Index::from_iter([variable("A", "$R $F"), variable("R", "$A"), variable("F", "content")]);
        variables["R"].raw = true;
        variables["F"].file = true;
        assert_eq!(expand_all(variables.clone())["A"].value, "$R $F");
        assert_eq!(expand_text("$R-$F-$X", &variables, UnknownReference::Emptied), "$A-content-");
    }

    #[test]
    fn limits_expanded_values() {
        let names: Vec<String> = (0..60).map(|n| format!("V{n}")).collect();
        let values: Vec<String> = (1..61).map(|n| format!("$V{n}$V{n}")).collect();
        let mut list: Vec<(&str, &str)> =
            names.iter().zip(&values).map(|(name, value)| (name.as_str(), value.as_str())).collect();
        list.push(("V60", "xxxxxxxx"));
        assert!(expanded(&list).iter().all(|value| value.len() <= MAX_VALUE_SIZE));
    }
}
