//! Merges mappings key by key, and applies `extends`.

use std::sync::Arc;

use super::hash::Map;
use super::problem::{Class, ProblemReport};
use super::suggest::did_you_mean;
use super::syntax::{Mapping, MappingEntry, Node, Origin, YamlValue};

/// The number of levels of `extends` that a job may have, as on GitLab.
const MAX_LEVELS: usize = 11;

/// The number of entries that all merges together may copy.
const MAX_ENTRIES: usize = 5_000_000;

/// Merges mappings, and counts the copied entries.
#[derive(Debug, Default)]
pub struct Merger {
    copied: usize,
}

impl Merger {
    /// Merges `over` into `base`: mappings key by key; any other value is replaced.
    pub fn merge(&mut self, base: &Node, over: &Node) -> Node {
        let (YamlValue::Mapping(below), YamlValue::Mapping(above)) = (&base.value, &over.value) else {
            return over.clone();
        };
        if below.is_empty() {
            return over.clone();
        }
        self.copied = self.copied.saturating_add(below.len() + above.len());
        let mut merged: Mapping = (**below).clone();
        for (key, entry) in above.iter() {
            match merged.get_mut(key) {
                Some(present) => {
                    present.node = self.merge(&present.node, &entry.node);
                    present.key_at = entry.key_at;
                }
                None => {
                    merged.insert(Arc::clone(key), entry.clone());
                }
            }
        }
        Node::mapping_at(merged, over.at)
    }

    /// Whether the merges have copied more entries than the limit. Callers then stop merging.
    pub fn is_exhausted(&self) -> bool {
        self.copied > MAX_ENTRIES
    }
}

/// Applies every `extends` of a configuration. Entries with a problem are reported and left out.
pub fn extend_all(root: &Node, report: &mut ProblemReport) -> Node {
    let Some(mapping) = root.mapping() else { return root.clone() };
    let extends = |entry: &MappingEntry| entry.node.mapping().is_some_and(|own| own.contains_key("extends"));
    if !mapping.values().any(extends) {
        return root.clone();
    }
    let mut extension = Extension { mapping, done: Map::default(), merger: Merger::default(), report };
    let mut merged = Mapping::with_capacity_and_hasher(mapping.len(), Default::default());
    // Jobs come first, so that a problem in a chain of templates is reported with a job that extends them.
    for name in mapping.keys().filter(|name| !name.starts_with('.')) {
        if extension.merger.is_exhausted() {
            break;
        }
        extension.resolve(name, &mut Vec::new());
    }
    for (name, entry) in mapping.iter() {
        if extension.merger.is_exhausted() {
            break;
        }
        if let Some((node, _)) = extension.resolve(name, &mut Vec::new()) {
            merged.insert(Arc::clone(name), MappingEntry { key_at: entry.key_at, node });
        }
    }
    Node::mapping_at(merged, root.at)
}

struct Extension<'a> {
    mapping: &'a Mapping,
    /// For each name, the merged entry and its number of `extends` levels; `None`: there is a problem, which is already
    /// reported.
    done: Map<&'a str, Option<(Node, usize)>>,
    merger: Merger,
    report: &'a mut ProblemReport,
}

impl<'a> Extension<'a> {
    fn resolve(&mut self, name: &'a str, path: &mut Vec<&'a str>) -> Option<(Node, usize)> {
        if let Some(done) = self.done.get(name) {
            return done.clone();
        }
        let result = self.merge(name, path);
        self.done.insert(name, result.clone());
        result
    }

    fn merge(&mut self, name: &'a str, path: &mut Vec<&'a str>) -> Option<(Node, usize)> {
        let mapping: &'a Mapping = self.mapping;
        let (_, key, entry) = mapping.get_full(name)?;
        let Some(parents) = entry.node.get("extends") else { return Some((entry.node.clone(), 0)) };
        let at = parents.at;
        let single = std::slice::from_ref(parents);
        let mut merged = Node::mapping_at(Mapping::default(), entry.node.at);
        let mut levels = 0;
        path.push(name);
        for parent in parents.list().unwrap_or(single) {
            let Some(parent) = parent.text() else {
                let message = format!("`extends` takes names, not {}", parent.kind());
                self.report.job_error(Class::BadValue, at, key, message);
                path.pop();
                return None;
            };
            let base = self.parent(key, parent, at, path);
            let Some((base, parent_levels)) = base else {
                path.pop();
                return None;
            };
            levels = levels.max(parent_levels + 1);
            merged = self.merger.merge(&merged, &base);
        }
        path.pop();
        if levels > MAX_LEVELS {
            let message = format!("`extends` goes through more than {MAX_LEVELS} levels");
            self.report.job_error(Class::ExtendsTooDeep, at, key, message);
            return None;
        }
        let merged = self.merger.merge(&merged, &entry.node);
        if self.merger.is_exhausted() {
            let message = format!("the configuration has more than {MAX_ENTRIES} entries after `extends` is applied");
            self.report.error(Class::TooBig, at, message);
            return None;
        }
        Some((merged, levels))
    }

    /// The merged entry of a parent, and its number of levels.
    fn parent(
        &mut self,
        key: &Arc<str>,
        parent: &Arc<str>,
        at: Origin,
        path: &mut Vec<&'a str>,
    ) -> Option<(Node, usize)> {
        let mapping: &'a Mapping = self.mapping;
        let Some((_, parent, entry)) = mapping.get_full(parent) else {
            let names: Vec<&str> = mapping.keys().map(|name| &**name).collect();
            let hint = did_you_mean(parent, &names);
            let message = format!("`extends` names `{parent}`, which does not exist{hint}");
            self.report.job_error(Class::ExtendsUnknown, at, key, message);
            return None;
        };
        if entry.node.mapping().is_none() {
            let message = format!("`extends` names `{parent}`, which is {}, not a mapping", entry.node.kind());
            self.report.job_error(Class::ExtendsUnknown, at, key, message);
            return None;
        }
        if let Some(start) = path.iter().position(|step| *step == &**parent) {
            let cycle: Vec<&str> = path[start..].iter().copied().chain([&**parent]).collect();
            let message = format!("`extends` forms a cycle: {}", cycle.join(" extends "));
            self.report.job_error(Class::ExtendsCycle, at, key, message);
            return None;
        }
        if path.len() > MAX_LEVELS {
            let chain: Vec<&str> = path.iter().copied().chain([&**parent]).collect();
            let message = format!("`extends` goes through more than {MAX_LEVELS} levels: {}", chain.join(" extends "));
            self.report.job_error(Class::ExtendsTooDeep, at, key, message);
            return None;
        }
        self.resolve(parent, path)
    }
}

#[cfg(test)]
mod tests {
    use super::super::syntax::{Budget, parse};
    use super::*;

    fn extended(text: &str) -> Result<serde_json::Value, Vec<Class>> {
        let root = parse(text, 0, &|line| line, &mut Budget::default()).expect("must be YAML").root;
        let mut report = ProblemReport::default();
        let merged = extend_all(&root, &mut report);
        let classes: Vec<Class> = report.problems.iter().map(|problem| problem.class).collect();
        if classes.is_empty() { Ok(merged.to_json()) } else { Err(classes) }
    }

    #[test]
    fn parents_merge_in_order_and_the_job_wins() {
        let text = ".a: {x: 1, v: {p: 1, q: 1}, l: [1]}\n.b: {extends: .a, x: 2, v: {q: 2}}\nj: {extends: [.b], v: {r: 3}, l: [2], x: null}\n";
        let merged = extended(text).expect("merge the mappings");
        let expected = serde_json::json!({"x": null, "v": {"p": 1, "q": 2, "r": 3}, "l": [2], "extends": [".b"]});
        assert_eq!(merged["j"], expected);
    }

    fn chain(links: usize) -> String {
        let link = |n: usize| format!(".c{n}: {{extends: .c{}}}\n", n + 1);
        (0..links).map(link).collect::<String>() + &format!(".c{links}: {{x: 1}}\n")
    }

    #[test]
    fn limits_the_entries_that_parents_multiply_to() {
        let variables: String = (0..2000).map(|n| format!("V{n}: x, ")).collect();
        let jobs: String = (0..4000).map(|n| format!("j{n}: {{extends: .a, variables: {{A: b}}}}\n")).collect();
        let text = format!(".a: {{variables: {{{variables}}}}}\n{jobs}");
        assert_eq!(extended(&text), Err(vec![Class::TooBig]));
    }

    #[test]
    fn reports_a_bad_extends_once() {
        assert_eq!(extended("j: {extends: .no}\nk: {extends: j}\n"), Err(vec![Class::ExtendsUnknown]));
        assert_eq!(
            extended(".a: {extends: .b}\n.b: {extends: .a}\nj: {extends: .a}\n"),
            Err(vec![Class::ExtendsCycle])
        );
        assert_eq!(extended("j: {extends: j}\n"), Err(vec![Class::ExtendsCycle]));
        assert_eq!(extended(".l: [1]\nj: {extends: .l}\n"), Err(vec![Class::ExtendsUnknown]));
        assert!(extended(&chain(11)).is_ok());
        assert_eq!(extended(&chain(12)), Err(vec![Class::ExtendsTooDeep]));
        assert!(extended(&chain(2000)).is_err());
    }
}
