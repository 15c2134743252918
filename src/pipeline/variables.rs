//! Variables by level, and their expansion by the server. The server expands recursively, and leaves unknown names for
//! the runner.

use std::sync::Arc;

use super::hash::{Index, Map};
use super::request::GivenVariable;
use super::syntax::Origin;

/// The longest expanded value, in bytes.
pub const MAX_VALUE_SIZE: usize = 1 << 18;

/// The longest chain of variables that refer to each other.
pub const MAX_REFERENCE_DEPTH: usize = 200;

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

pub(super) fn truncate(value: &mut String, limit: usize) {
    if value.len() > limit {
        let end = (0..=limit).rev().find(|end| value.is_char_boundary(*end)).unwrap_or(0);
        value.truncate(end);
    }
}

/// Whether a text may contain a reference to a variable.
pub fn has_reference(text: &str) -> bool {
    text.contains(['$', '%'])
}

/// Replaces each `$NAME`, `${NAME}` and `%NAME%` by the result of `value`, which gets the name and the whole reference.
/// `$$` and `%%` are kept.
pub fn replace_references(text: &str, mut value: impl FnMut(&str, &str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['$', '%']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        match parse_reference(rest) {
            Some((name, length)) => {
                out.push_str(&value(name, &rest[..length]));
                rest = &rest[length..];
            }
            None => {
                let doubled = rest.starts_with("$$") || rest.starts_with("%%");
                let (literal, after) = rest.split_at(1 + usize::from(doubled));
                out.push_str(literal);
                rest = after;
            }
        }
        if out.len() > MAX_VALUE_SIZE {
            truncate(&mut out, MAX_VALUE_SIZE);
            return out;
        }
    }
    out.push_str(rest);
    out
}

/// Parses a reference at the start of `text`: the name, and the length of the reference.
fn parse_reference(text: &str) -> Option<(&str, usize)> {
    let name_in = |text: &str| {
        let valid = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
        if valid { end } else { 0 }
    };
    let after = &text[1..];
    if text.starts_with('%') {
        let end = name_in(after);
        return (end > 0 && after[end..].starts_with('%')).then(|| (&after[..end], end + 2));
    }
    if let Some(inside) = after.strip_prefix('{') {
        let end = name_in(inside);
        return (end > 0 && inside[end..].starts_with('}')).then(|| (&inside[..end], end + 3));
    }
    let end = name_in(after);
    (end > 0).then(|| (&after[..end], end + 1))
}

/// The names that a value refers to.
pub fn collect_names<'a>(value: &'a str, names: &mut Vec<&'a str>) {
    let mut rest = value;
    while let Some(at) = rest.find(['$', '%']) {
        rest = &rest[at..];
        let length = match parse_reference(rest) {
            Some((name, length)) => {
                names.push(name);
                length
            }
            None => 1 + usize::from(rest.starts_with("$$") || rest.starts_with("%%")),
        };
        rest = &rest[length..];
    }
}

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
