//! Replaces `!reference [key, …]` by the value at that path of the configuration, after merge and `extends`.

use std::collections::HashMap;
use std::sync::Arc;

use super::problem::{Class, ProblemReport};
use super::suggest::did_you_mean;
use super::syntax::{Mapping, Node, Origin, YamlValue, written_size};

/// How deeply references may lead to other references.
const MAX_DEPTH: usize = 10;

/// The size limit of the configuration, in bytes, after references are replaced.
const MAX_SIZE: usize = 64 << 20;

/// Replaces all references. Entries with a problem are reported and left out.
pub fn resolve_all(root: &Node, report: &mut ProblemReport) -> Node {
    let Some(mapping) = root.mapping() else { return root.clone() };
    if first_reference(root).is_none() {
        return root.clone();
    }
    let mut resolution = Resolution { root: mapping, done: HashMap::new(), open: Vec::new(), job: None, report };
    let mut resolved = (**mapping).clone();
    resolved.retain(|name, entry| {
        resolution.job = Some(Arc::clone(name));
        match resolution.resolve(&entry.node) {
            Resolved::Unchanged => true,
            Resolved::Replaced(node) => {
                entry.node = node;
                true
            }
            Resolved::Failed => false,
        }
    });
    let resolved = Node::mapping_at(resolved, root.at);
    if written_size(&resolved) > MAX_SIZE {
        let message = format!("this configuration is larger than {} MiB after references are replaced", MAX_SIZE >> 20);
        report.error(Class::TooBig, first_reference(root).unwrap_or(root.at), message);
        return Node::mapping_at(Mapping::default(), root.at);
    }
    resolved
}

/// The position of the first reference.
fn first_reference(node: &Node) -> Option<Origin> {
    match &node.value {
        YamlValue::Reference(_) => Some(node.at),
        YamlValue::List(items) => items.iter().find_map(first_reference),
        YamlValue::Mapping(mapping) => mapping.values().find_map(|entry| first_reference(&entry.node)),
        _ => None,
    }
}

/// A node after its references are resolved.
enum Resolved {
    /// The node contains no references.
    Unchanged,
    /// The node with its references replaced.
    Replaced(Node),
    /// A reference in the node has a problem, which is already reported.
    Failed,
}

struct Resolution<'a> {
    root: &'a Mapping,
    /// The resolved value of each path; `None`: there is a problem, which is already reported.
    done: HashMap<Vec<Arc<str>>, Option<Node>>,
    /// The references that are being resolved, the outermost first; for the detection of cycles.
    open: Vec<Vec<Arc<str>>>,
    /// The entry with the references, for messages.
    job: Option<Arc<str>>,
    report: &'a mut ProblemReport,
}

impl Resolution<'_> {
    fn resolve(&mut self, node: &Node) -> Resolved {
        match &node.value {
            YamlValue::Reference(path) => self.reference(path, node.at).map_or(Resolved::Failed, Resolved::Replaced),
            YamlValue::List(items) => {
                let mut new: Option<Vec<Node>> = None;
                for (number, item) in items.iter().enumerate() {
                    match self.resolve(item) {
                        Resolved::Unchanged => {}
                        Resolved::Replaced(item) => new.get_or_insert_with(|| (**items).clone())[number] = item,
                        Resolved::Failed => return Resolved::Failed,
                    }
                }
                new.map_or(Resolved::Unchanged, |items| Resolved::Replaced(Node::list_at(items, node.at)))
            }
            YamlValue::Mapping(mapping) => {
                let mut new: Option<Mapping> = None;
                for (number, entry) in mapping.values().enumerate() {
                    match self.resolve(&entry.node) {
                        Resolved::Unchanged => {}
                        Resolved::Replaced(node) => new.get_or_insert_with(|| (**mapping).clone())[number].node = node,
                        Resolved::Failed => return Resolved::Failed,
                    }
                }
                new.map_or(Resolved::Unchanged, |mapping| Resolved::Replaced(Node::mapping_at(mapping, node.at)))
            }
            _ => Resolved::Unchanged,
        }
    }

    /// Resolves a reference; `None`: there is a problem, which is already reported.
    fn reference(&mut self, path: &[Node], at: Origin) -> Option<Node> {
        let names: Option<Vec<Arc<str>>> = path.iter().map(Node::printed).collect();
        let Some(names) = names.filter(|names| !names.is_empty()) else {
            self.error(
                Class::ReferenceUnknown,
                at,
                "`!reference` takes a list of keys, such as [.setup, script]".into(),
            );
            return None;
        };
        if let Some(done) = self.done.get(&names) {
            return done.clone();
        }
        let shown = format!("`!reference [{}]`", names.join(", "));
        if let Some(start) = self.open.iter().position(|open| *open == names) {
            let cycle: Vec<String> = self.open[start..].iter().map(|names| format!("[{}]", names.join(", "))).collect();
            let message = format!("{shown} forms a cycle: {}", cycle.join(" leads to "));
            self.error(Class::ReferenceCycle, at, message);
            return None;
        }
        if self.open.len() >= MAX_DEPTH {
            self.error(Class::ReferenceTooDeep, at, format!("{shown}: references lead deeper than {MAX_DEPTH} levels"));
            return None;
        }
        let Some(target) = self.target(&names, &shown, at) else {
            self.done.insert(names, None);
            return None;
        };
        self.open.push(names);
        let node = match self.resolve(&target) {
            Resolved::Unchanged => Some(target),
            Resolved::Replaced(node) => Some(node),
            Resolved::Failed => None,
        };
        if let Some(names) = self.open.pop() {
            self.done.insert(names, node.clone());
        }
        node
    }

    /// The value at a path of keys.
    fn target(&mut self, names: &[Arc<str>], shown: &str, at: Origin) -> Option<Node> {
        let mut mapping = self.root;
        let mut node = None;
        for (number, name) in names.iter().enumerate() {
            let Some(entry) = mapping.get(name).filter(|entry| !entry.node.is_null()) else {
                let known: Vec<&str> = mapping.keys().map(|key| &**key).collect();
                let message = format!("{shown}: `{name}` does not exist{}", did_you_mean(name, &known));
                self.error(Class::ReferenceUnknown, at, message);
                return None;
            };
            node = Some(&entry.node);
            match (entry.node.mapping(), number + 1 < names.len()) {
                (Some(next), true) => mapping = next,
                (None, true) => {
                    let message = format!("{shown}: `{name}` is {}, not a mapping", entry.node.kind());
                    self.error(Class::ReferenceUnknown, at, message);
                    return None;
                }
                (_, false) => {}
            }
        }
        node.cloned()
    }

    fn error(&mut self, class: Class, at: Origin, message: String) {
        match &self.job {
            Some(job) if !job.starts_with('.') => self.report.job_error(class, at, job, message),
            _ => self.report.error(class, at, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::syntax::{Budget, parse};
    use super::*;

    fn resolved(text: &str) -> Result<serde_json::Value, Vec<Class>> {
        let root = parse(text, 0, &|line| line, &mut Budget::default()).expect("must be YAML").root;
        let mut report = ProblemReport::default();
        let resolved = resolve_all(&root, &mut report);
        let classes: Vec<Class> = report.problems.iter().map(|problem| problem.class).collect();
        if classes.is_empty() { Ok(resolved.to_json()) } else { Err(classes) }
    }

    #[test]
    fn resolves_references_to_references() {
        let text = ".a: {s: [x, !reference [.b, s]]}\n.b: {s: [y], v: {k: 1}}\nj: {script: [!reference [.a, s]], one: !reference [.b, v, k]}\n";
        assert_eq!(
            resolved(text).expect("resolve the references")["j"],
            serde_json::json!({"script": [["x", ["y"]]], "one": 1})
        );
    }

    #[test]
    fn refuses_bad_references() {
        assert_eq!(resolved("j: {s: !reference [.no, s]}"), Err(vec![Class::ReferenceUnknown]));
        assert_eq!(resolved("j: {s: !reference [.a, s]}\n.a: {s: null}"), Err(vec![Class::ReferenceUnknown]));
        assert_eq!(resolved("j: {s: !reference []}"), Err(vec![Class::ReferenceUnknown]));
        assert_eq!(
            resolved("j: {s: !reference [.a, s]}\n.a: {s: [!reference [j, s]]}"),
            Err(vec![Class::ReferenceCycle])
        );
        let link = |n: usize| format!(".c{n}: {{s: [!reference [.c{}, s]]}}\n", n + 1);
        let chain = (0..20).map(link).collect::<String>() + ".c20: {s: [x]}\n";
        assert!(resolved(&chain).is_err());
    }

    #[test]
    fn limits_the_size_that_references_multiply_to() {
        let level =
            |n: usize| format!(".c{n}: {{s: [{}]}}\n", vec![format!("!reference [.c{}, s]", n + 1); 10].join(", "));
        let text = (0..9).map(level).collect::<String>() + ".c9: {s: [x]}\n";
        assert_eq!(resolved(&text), Err(vec![Class::TooBig]));
    }
}
