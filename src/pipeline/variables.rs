//! The variables of a pipeline by level.

use std::sync::Arc;

use super::hash::{Index, Map};
use super::request::GivenVariable;
use super::syntax::Origin;
use super::variable_references::{collect_names, has_reference};

/// A variable of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    pub key: Arc<str>,
    /// The value as written.
    pub value: Arc<str>,
    /// `expand: false`
    pub raw: bool,
    pub at: Origin,
    pub level: VariableLevel,
}

/// Levels of variables in the configuration, from the lowest to the highest precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VariableLevel {
    /// Top-level `variables`.
    Default,
    /// The matching rule of `workflow:rules`.
    Workflow,
    /// The job's own.
    Job,
    /// `parallel:matrix`
    Matrix,
    /// The job's matching rule.
    Rule,
}

/// A variable of a job, after the server's expansion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvVariable {
    pub key: Arc<str>,
    /// The value, or the content of the file.
    pub value: String,
    /// The job gets the path of a file that contains the value.
    pub file: bool,
    /// The value must not appear in a log.
    pub masked: bool,
    /// The runner must not expand the value again.
    pub raw: bool,
    pub source: EnvSource,
}

/// Where a variable of a job comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EnvSource {
    /// The configuration, or a dotenv report of an earlier job.
    #[default]
    Configuration,
    /// A predefined variable. Its value is not expanded, and other variables may refer to it.
    Predefined,
    /// The caller, as a variable of the pipeline or the project.
    Given,
}

/// A value before its references are expanded.
#[derive(Clone, Copy)]
pub struct UnexpandedValue<'a> {
    pub text: &'a str,
    /// References in the text are not expanded.
    pub raw: bool,
}

impl<'a> UnexpandedValue<'a> {
    /// The value of a variable that the caller gives. The server does not expand the content of a file.
    pub fn of_given(given: &'a GivenVariable) -> Self {
        Self { text: &given.value, raw: given.raw || given.file }
    }

    pub fn of_configuration(variable: &'a Variable) -> Self {
        Self { text: &variable.value, raw: variable.raw }
    }

    pub fn has_reference(self) -> bool {
        !self.raw && has_reference(self.text)
    }

    /// The names that the value refers to.
    pub fn names(self) -> Vec<&'a str> {
        let mut names = Vec::new();
        if !self.raw {
            collect_names(self.text, &mut names);
        }
        names
    }
}

/// All variables of a pipeline except those of its jobs.
#[derive(Clone, Debug, Default)]
pub struct SharedVariables {
    /// Predefined variables that all jobs share.
    pub predefined: Index<Arc<str>, Arc<str>>,
    /// Variables of project, group and instance; the nearest level first.
    pub project: Vec<GivenVariable>,
    /// Variables of the pipeline itself (command line, trigger, parent pipeline).
    pub pipeline: Index<String, GivenVariable>,
    /// The indexes in `project`, by name.
    by_name: Map<String, Vec<usize>>,
}

impl SharedVariables {
    pub fn new(
        predefined: Index<Arc<str>, Arc<str>>,
        project: Vec<GivenVariable>,
        pipeline: Vec<GivenVariable>,
    ) -> Self {
        let mut by_name: Map<String, Vec<usize>> = Map::default();
        for (index, variable) in project.iter().enumerate() {
            by_name.entry(variable.key.clone()).or_default().push(index);
        }
        let pipeline = pipeline.into_iter().map(|variable| (variable.key.clone(), variable)).collect();
        Self { predefined, project, pipeline, by_name }
    }

    /// The variable of project, group or instance for an environment: from the nearest level, with the longest scope
    /// match.
    fn project_variable(&self, name: &str, environment: Option<&str>) -> Option<&GivenVariable> {
        let candidates = self.by_name.get(name)?.iter().map(|index| &self.project[*index]);
        let mut best: Option<(usize, &GivenVariable)> = None;
        for variable in candidates {
            let Some(length) = scope_match(&variable.environment_scope, environment) else { continue };
            if best.is_none_or(|(longest, _)| length > longest) {
                best = Some((length, variable));
            }
        }
        best.map(|(_, variable)| variable)
    }

    /// The caller's value for a name: a pipeline variable, else one of the project.
    pub fn given(&self, name: &str, environment: Option<&str>) -> Option<&GivenVariable> {
        self.pipeline.get(name).or_else(|| self.project_variable(name, environment))
    }

    /// Names of project variables, each once.
    pub fn project_names(&self) -> impl Iterator<Item = &str> {
        let first = |(index, variable): (usize, &'_ GivenVariable)| self.by_name[&variable.key][0] == index;
        self.project.iter().enumerate().filter(move |pair| first(*pair)).map(|(_, variable)| variable.key.as_str())
    }
}

/// How closely a scope matches: the length of a pattern, or more than any pattern for the name itself; `None` if it
/// does not match.
fn scope_match(scope: &str, environment: Option<&str>) -> Option<usize> {
    if scope.is_empty() || scope == "*" {
        return Some(0);
    }
    let mut rest = environment?;
    let parts: Vec<&str> = scope.split('*').collect();
    let (first, last) = (parts[0], parts[parts.len() - 1]);
    rest = rest.strip_prefix(first)?;
    if parts.len() == 1 {
        return rest.is_empty().then_some(usize::MAX);
    }
    for part in &parts[1..parts.len() - 1] {
        rest = &rest[rest.find(part)? + part.len()..];
    }
    rest.ends_with(last).then_some(scope.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_scopes_with_wildcards_and_prefers_the_longest() {
        for (scope, environment, expected) in [
            ("*", None, Some(0)),
            ("", Some("x"), Some(0)),
            ("review/*", Some("review/7"), Some(8)),
            ("review/*", Some("staging"), None),
            ("review/*", None, None),
            ("production", Some("production"), Some(usize::MAX)),
            ("production", Some("production/eu"), None),
            ("*/eu", Some("prod/eu"), Some(4)),
            ("a*b*c", Some("a1b2c"), Some(5)),
        ] {
            assert_eq!(scope_match(scope, environment), expected, "{scope}");
        }
        let given = |value: &str, scope: &str| GivenVariable {
            key: "K".into(),
            value: value.into(),
            environment_scope: scope.into(),
            ..Default::default()
        };
        let list = vec![given("any", "*"), given("some", "prod*"), given("exact", "prod"), given("none", "*x")];
        let shared = SharedVariables::new(Index::default(), list, vec![]);
        let value = |environment| shared.given("K", environment).map(|given| given.value.as_str());
        let values = [value(None), value(Some("prod")), value(Some("prod/x")), value(Some("qa"))];
        assert_eq!(values, [Some("any"), Some("exact"), Some("some"), Some("any")]);
    }
}
