//! Detects variables that cannot be expanded: those that form a cycle, and those whose expanded value exceeds the
//! limit.

use std::sync::Arc;

use super::context::Context;
use super::hash::Map;
use super::plan::{Job, Variable};
use super::problem::Class;
use super::syntax::Origin;
use super::variable_references::{MAX_REFERENCE_DEPTH, MAX_VALUE_SIZE};
use super::variables::UnexpandedValue;

/// Checks the variables of the pipeline and the project, which all jobs share, for a cycle.
pub fn check_given_variables(context: &mut Context<'_>) {
    let shared = Arc::clone(&context.shared_variables);
    let value = |name: &str| shared.given(name, None).map(UnexpandedValue::of_given);
    let names = shared.pipeline.keys().map(String::as_str).chain(shared.project_names());
    let names: Vec<&str> = names.filter(|name| value(name).is_some_and(UnexpandedValue::has_reference)).collect();
    if let Some(cycle) = find_cycle(&names, &value) {
        let message = format!(
            "the variables {} of the pipeline or the project form a cycle; remove one of the references",
            cycle.first_names()
        );
        context.error(Class::VariableCycle, Origin::default(), None, message);
    }
}

/// Checks the variables of a job.
pub fn check_variables(job: &Job, context: &mut Context<'_>) {
    let refers = |variable: &&Variable| UnexpandedValue::of_configuration(variable).has_reference();
    let names: Vec<&str> = job.variables.iter().filter(refers).map(|variable| &*variable.key).collect();
    if names.is_empty() {
        return;
    }
    let shared = Arc::clone(&context.shared_variables);
    let own: Map<&str, &Variable> = job.variables.iter().map(|variable| (&*variable.key, variable)).collect();
    let environment = job.environment.as_ref().map(|environment| environment.name.as_str());
    let value = |name: &str| {
        let given = shared.given(name, environment).map(UnexpandedValue::of_given);
        given.or_else(|| own.get(name).map(|variable| UnexpandedValue::of_configuration(variable)))
    };
    if let Some(cycle) = find_cycle(&names, &value) {
        let at = job.variables.iter().find(|variable| cycle.0.contains(&variable.key));
        let at = at.map_or(job.at, |variable| variable.at);
        let message = format!("the variables {} form a cycle; remove one of the references", cycle.first_names());
        context.error(Class::VariableCycle, at, Some(&job.group), message);
    } else if let Some(name) = find_too_long(&names, &value) {
        let at = job.variables.iter().find(|variable| &*variable.key == name).map_or(job.at, |variable| variable.at);
        let message = format!("the variable `{name}` is longer than {} KiB after expansion", MAX_VALUE_SIZE >> 10);
        context.error(Class::TooBig, at, Some(&job.group), message);
    }
}

/// Variables that refer to each other in a cycle, in the order of the references.
#[derive(Debug, PartialEq, Eq)]
struct Cycle(Vec<Arc<str>>);

impl Cycle {
    /// The first names, for a message.
    fn first_names(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|name| &**name).take(10).collect();
        names.join(", ")
    }
}

/// Returns the value of a variable, if there is a variable of this name.
type ValueLookup<'f, 'v> = dyn Fn(&str) -> Option<UnexpandedValue<'v>> + 'f;

/// Finds a cycle among variables. A variable that refers only to itself is not a cycle: the reference to its own name
/// is not expanded.
fn find_cycle<'a>(names: &[&'a str], value_of: &ValueLookup<'_, 'a>) -> Option<Cycle> {
    let mut visits: Map<&str, Visit> = Map::default();
    names.iter().find_map(|name| find_cycle_from(name, value_of, &mut visits, &mut Vec::new()))
}

/// The progress of the search at a variable.
#[derive(Clone, Copy)]
enum Visit {
    /// The variable is on the current path.
    Open,
    /// No cycle is reachable from the variable.
    Done,
}

fn find_cycle_from<'a>(
    name: &'a str,
    value_of: &ValueLookup<'_, 'a>,
    visits: &mut Map<&'a str, Visit>,
    path: &mut Vec<&'a str>,
) -> Option<Cycle> {
    match visits.get(name) {
        Some(Visit::Done) => return None,
        Some(Visit::Open) => {
            let start = path.iter().position(|step| *step == name).unwrap_or(0);
            let cycle = &path[start..];
            return (cycle.len() > 1).then(|| Cycle(cycle.iter().map(|name| (*name).into()).collect()));
        }
        None => {}
    }
    if path.len() > MAX_REFERENCE_DEPTH {
        return Some(Cycle(path.iter().map(|name| (*name).into()).collect()));
    }
    let value = value_of(name)?;
    if !value.has_reference() {
        return None;
    }
    visits.insert(name, Visit::Open);
    path.push(name);
    let cycle = value.names().into_iter().find_map(|next| find_cycle_from(next, value_of, visits, path));
    path.pop();
    visits.insert(name, Visit::Done);
    cycle
}

/// The first variable whose expanded value would be longer than the limit. The caller has checked that there is no
/// cycle.
fn find_too_long<'a>(names: &[&'a str], value_of: &ValueLookup<'_, 'a>) -> Option<&'a str> {
    let mut lengths = Map::default();
    names.iter().copied().find(|name| expanded_length(name, value_of, &mut lengths) > MAX_VALUE_SIZE)
}

fn expanded_length<'a>(name: &'a str, value_of: &ValueLookup<'_, 'a>, lengths: &mut Map<&'a str, usize>) -> usize {
    if let Some(length) = lengths.get(name) {
        return *length;
    }
    let Some(value) = value_of(name) else { return 0 };
    // A reference of a variable to itself is not expanded.
    lengths.insert(name, name.len());
    let lengths_of_names = value.names().into_iter().map(|next| expanded_length(next, value_of, lengths));
    let total = lengths_of_names.fold(value.text.len(), usize::saturating_add);
    lengths.insert(name, total);
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cycles() {
        let value = |name: &str| match name {
            "A" => Some(UnexpandedValue { text: "$B", raw: false }),
            "B" => Some(UnexpandedValue { text: "x ${C}", raw: false }),
            "C" => Some(UnexpandedValue { text: "$A", raw: false }),
            "D" => Some(UnexpandedValue { text: "$D", raw: false }),
            "R" => Some(UnexpandedValue { text: "$A", raw: true }),
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
        let value = |name: &str| {
            let (_, text) = list.iter().find(|(key, _)| *key == name)?;
            Some(UnexpandedValue { text, raw: false })
        };
        assert_eq!(find_too_long(&["V60", "V59", "V1"], &value), Some("V1"));
        assert_eq!(find_too_long(&["V60", "V59"], &value), None);
    }
}
