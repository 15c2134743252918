//! Variables that cannot be expanded: they refer to each other in a circle, or multiply beyond the limit.

use std::collections::HashMap;
use std::sync::Arc;

use super::variables::{DEPTH_LIMIT, VALUE_LIMIT, collect_names, has_reference};

/// Variables that refer to each other in a circle, in its order.
#[derive(Debug, PartialEq, Eq)]
pub struct Circle(pub Vec<Arc<str>>);

/// Finds a circle of references among variables. A variable that refers to itself only is none: its own name stays.
pub fn find_circle<'a>(names: &[&'a str], value_of: &dyn Fn(&str) -> Option<(&'a str, bool)>) -> Option<Circle> {
    let mut done: HashMap<&str, bool> = HashMap::new();
    names.iter().find_map(|name| visit(name, value_of, &mut done, &mut Vec::new()))
}

fn visit<'a>(
    name: &'a str,
    value_of: &dyn Fn(&str) -> Option<(&'a str, bool)>,
    done: &mut HashMap<&'a str, bool>,
    path: &mut Vec<&'a str>,
) -> Option<Circle> {
    match done.get(name) {
        Some(true) => return None,
        Some(false) => {
            let start = path.iter().position(|step| *step == name).unwrap_or(0);
            let circle = &path[start..];
            return (circle.len() > 1).then(|| Circle(circle.iter().map(|name| (*name).into()).collect()));
        }
        None => {}
    }
    if path.len() > DEPTH_LIMIT {
        return Some(Circle(path.iter().map(|name| (*name).into()).collect()));
    }
    let (value, raw) = value_of(name)?;
    if raw || !has_reference(value) {
        return None;
    }
    done.insert(name, false);
    path.push(name);
    let mut names: Vec<&'a str> = Vec::new();
    collect_names(value, &mut names);
    let circle = names.into_iter().find_map(|next| visit(next, value_of, done, path));
    path.pop();
    done.insert(name, true);
    circle
}

/// The first variable whose value would be longer than the limit. There must be no circle among them.
pub fn find_too_long<'a>(names: &[&'a str], value_of: &dyn Fn(&str) -> Option<(&'a str, bool)>) -> Option<&'a str> {
    let mut lengths = HashMap::new();
    names.iter().copied().find(|name| length(name, value_of, &mut lengths) > VALUE_LIMIT)
}

fn length<'a>(
    name: &'a str,
    value_of: &dyn Fn(&str) -> Option<(&'a str, bool)>,
    lengths: &mut HashMap<&'a str, usize>,
) -> usize {
    if let Some(length) = lengths.get(name) {
        return *length;
    }
    let Some((value, raw)) = value_of(name) else { return 0 };
    // A name that refers to itself stays.
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
    fn circles_are_found() {
        let value = |name: &str| match name {
            "A" => Some(("$B", false)),
            "B" => Some(("x ${C}", false)),
            "C" => Some(("$A", false)),
            "D" => Some(("$D", false)),
            "R" => Some(("$A", true)),
            _ => None,
        };
        let circle = find_circle(&["R", "D", "A"], &value).expect("a circle");
        assert_eq!(circle.0.iter().map(|name| &**name).collect::<Vec<_>>(), ["A", "B", "C"]);
        assert_eq!(find_circle(&["R", "D"], &value), None);
    }

    #[test]
    fn what_doubles_becomes_too_long() {
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
