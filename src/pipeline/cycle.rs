//! Detects variables that cannot be expanded: those that form a cycle, and those whose expanded value exceeds the
//! limit.

use std::sync::Arc;

use super::context::Context;
use super::hash::Map;
use super::plan::{Job, Variable};
use super::problem::Class;
use super::syntax::Origin;
use super::variables::{MAX_DEPTH, MAX_VALUE_SIZE, PipelineVariables, collect_names, has_reference};

/// Checks the variables of the pipeline and the project, which all jobs share, for a cycle.
pub fn check_given_variables(context: &mut Context<'_>) {
    let scope = Arc::clone(&context.scope);
    let value = |name: &str| scope.given(name, None).map(|given| (given.value.as_str(), given.raw || given.file));
    let names = scope.pipeline.keys().map(String::as_str).chain(scope.project_names());
    let names: Vec<&str> =
        names.filter(|name| value(name).is_some_and(|(text, raw)| !raw && has_reference(text))).collect();
    if let Some(cycle) = find_cycle(&names, &value) {
        let message = format!("the variables {} of the pipeline or the project form a cycle", cycle.shown());
        context.error(Class::VariableCycle, Origin::default(), None, message);
    }
}

/// Checks the variables of a job.
pub fn check_variables(job: &Job, scope: &PipelineVariables, context: &mut Context<'_>) {
    let refers = |variable: &&Variable| !variable.raw && has_reference(&variable.value);
    let names: Vec<&str> = job.variables.iter().filter(refers).map(|variable| &*variable.key).collect();
    if names.is_empty() {
        return;
    }
    let own: Map<&str, &Variable> = job.variables.iter().map(|variable| (&*variable.key, variable)).collect();
    let environment = job.environment.as_ref().map(|environment| environment.name.as_str());
    let value = |name: &str| {
        let given = scope.given(name, environment).map(|given| (given.value.as_str(), given.raw || given.file));
        given.or_else(|| own.get(name).map(|variable| (&*variable.value, variable.raw)))
    };
    if let Some(cycle) = find_cycle(&names, &value) {
        let at = job.variables.iter().find(|variable| cycle.0.contains(&variable.key));
        let at = at.map_or(job.at, |variable| variable.at);
        let message = format!("the variables {} form a cycle", cycle.shown());
        context.error(Class::VariableCycle, at, Some(&job.group), message);
    } else if let Some(name) = find_too_long(&names, &value) {
        let at = job.variables.iter().find(|variable| &*variable.key == name).map_or(job.at, |variable| variable.at);
        let message = format!("the variable `{name}` is longer than 256 KiB after expansion");
        context.error(Class::TooBig, at, Some(&job.group), message);
    }
}

/// Variables that refer to each other in a cycle, in the order of the references.
#[derive(Debug, PartialEq, Eq)]
struct Cycle(Vec<Arc<str>>);

impl Cycle {
    /// The first names, for a message.
    fn shown(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|name| &**name).take(10).collect();
        names.join(", ")
    }
}

/// Finds a cycle among variables. A variable that refers only to itself is not a cycle: the reference to its own name
/// is not expanded.
fn find_cycle<'a>(names: &[&'a str], value_of: &dyn Fn(&str) -> Option<(&'a str, bool)>) -> Option<Cycle> {
    let mut done: Map<&str, bool> = Map::default();
    names.iter().find_map(|name| visit(name, value_of, &mut done, &mut Vec::new()))
}

fn visit<'a>(
    name: &'a str,
    value_of: &dyn Fn(&str) -> Option<(&'a str, bool)>,
    done: &mut Map<&'a str, bool>,
    path: &mut Vec<&'a str>,
) -> Option<Cycle> {
    match done.get(name) {
        Some(true) => return None,
        Some(false) => {
            let start = path.iter().position(|step| *step == name).unwrap_or(0);
            let cycle = &path[start..];
            return (cycle.len() > 1).then(|| Cycle(cycle.iter().map(|name| (*name).into()).collect()));
        }
        None => {}
    }
    if path.len() > MAX_DEPTH {
        return Some(Cycle(path.iter().map(|name| (*name).into()).collect()));
    }
    let (value, raw) = value_of(name)?;
    if raw || !has_reference(value) {
        return None;
    }
    done.insert(name, false);
    path.push(name);
    let mut names: Vec<&'a str> = Vec::new();
    collect_names(value, &mut names);
    let cycle = names.into_iter().find_map(|next| visit(next, value_of, done, path));
    path.pop();
    done.insert(name, true);
    cycle
}

/// The first variable whose expanded value would be longer than the limit. The caller has checked that there is no
/// cycle.
fn find_too_long<'a>(names: &[&'a str], value_of: &dyn Fn(&str) -> Option<(&'a str, bool)>) -> Option<&'a str> {
    let mut lengths = Map::default();
    names.iter().copied().find(|name| length(name, value_of, &mut lengths) > MAX_VALUE_SIZE)
}

fn length<'a>(
    name: &'a str,
    value_of: &dyn Fn(&str) -> Option<(&'a str, bool)>,
    lengths: &mut Map<&'a str, usize>,
) -> usize {
    if let Some(length) = lengths.get(name) {
        return *length;
    }
    let Some((value, raw)) = value_of(name) else { return 0 };
    // A reference of a variable to itself is not expanded.
    lengths.insert(name, name.len());
    let mut names = Vec::new();
    if !raw {
        collect_names(value, &mut names);
    }
    let total = names.into_iter().map(|next| length(next, value_of, lengths)).fold(value.len(), usize::saturating_add);
    lengths.insert(name, total);
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cycles() {
        let value = |name: &str| match name {
            "A" => Some(("$B", false)),
            "B" => Some(("x ${C}", false)),
            "C" => Some(("$A", false)),
            "D" => Some(("$D", false)),
            "R" => Some(("$A", true)),
            _ => None,
        };
        let cycle = find_cycle(&["R", "D", "A"], &value).expect("a cycle");
        assert_eq!(cycle.0.iter().map(|name| &**name).collect::<Vec<_>>(), ["A", "B", "C"]);
        assert_eq!(find_cycle(&["R", "D"], &value), None);
    }

    #[test]
    fn finds_the_variable_whose_value_doubles_beyond_the_limit() {
        let names: Vec<String> = (0..60).map(|n| format!("V{n}")).collect();
        let values: Vec<String> = (1..61).map(|n| format!("$V{n}$V{n}")).collect();
        let mut list: Vec<(&str, &str)> =
            names.iter().zip(&values).map(|(name, value)| (name.as_str(), value.as_str())).collect();
        list.push(("V60", "xxxxxxxx"));
        let value = |name: &str| list.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value, false));
        assert_eq!(find_too_long(&["V60", "V59", "V1"], &value), Some("V1"));
        assert_eq!(find_too_long(&["V60", "V59"], &value), None);
    }
}
