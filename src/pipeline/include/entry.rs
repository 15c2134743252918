//! Reads an entry of `include`: its form, its rules, its inputs.

use std::sync::Arc;

use super::Loader;
use crate::pipeline::file::inputs::InputArgument;
use crate::pipeline::problem::{Class, Reported};
use crate::pipeline::request::{InputValue, SourceTree};
use crate::pipeline::rules::clause::{Clause, RuleOwner};
use crate::pipeline::suggest::did_you_mean;
use crate::pipeline::syntax::{MappingEntry, Node, Origin};
use crate::pipeline::variable_view::VariableView;

/// Keywords that name the location of the files. An entry has exactly one of them.
const LOCATION_KEYS: [&str; 6] = ["local", "project", "remote", "template", "component", "artifact"];

/// All keywords of an entry, also of `trigger:include`.
pub const INCLUDE_KEYS: [&str; 13] = [
    "local",
    "project",
    "ref",
    "file",
    "remote",
    "integrity",
    "cache",
    "template",
    "component",
    "inputs",
    "rules",
    "artifact",
    "job",
];

/// An include that can be fetched.
pub struct IncludeEntry {
    pub at: Origin,
    pub location: IncludeLocation,
    /// Values for the inputs of the included file.
    pub inputs: Vec<InputArgument>,
    rules: Vec<IncludeRule>,
}

/// A rule of an entry.
struct IncludeRule {
    clause: Clause,
    /// Whether the rule includes the files, if its condition holds.
    includes: bool,
}

/// The files to fetch, after variables are expanded.
pub enum IncludeLocation {
    /// Files in the same tree as the including file.
    Local(String),
    /// Files of another project.
    Project { project: String, reference: Option<String>, files: Vec<String> },
    /// A URL.
    Remote { url: String, integrity: Option<String> },
    /// A template of GitLab.
    Template(String),
    /// `host/path/name@version`
    Component(String),
    /// A file from the artifacts of a job of the parent pipeline.
    Artifact { job: String, path: String },
}

const OWNER: RuleOwner<'static> = RuleOwner { job: None, keyword: "include:rules" };

/// Whether an entry that is only a text is a URL, not a path.
pub fn is_url(text: &str) -> bool {
    text.starts_with("https://") || text.starts_with("http://")
}

/// The location in an entry that is only a text.
fn short_location(text: String) -> IncludeLocation {
    match is_url(&text) {
        true => IncludeLocation::Remote { url: text, integrity: None },
        false => IncludeLocation::Local(text),
    }
}

impl Loader<'_, '_> {
    /// Reads the value of `include`. Entries with a problem are reported and left out.
    pub fn entries(&mut self, include: &Node, tree: &Option<SourceTree>) -> Vec<IncludeEntry> {
        let Some(items) = self.context.flatten(include, "include", None) else { return Vec::new() };
        items.iter().filter_map(|item| self.entry(item, tree)).collect()
    }

    fn entry(&mut self, item: &Node, tree: &Option<SourceTree>) -> Option<IncludeEntry> {
        let at = item.at;
        if let Some(text) = item.text() {
            let location = short_location(self.expand(text));
            return self.checked(IncludeEntry { at, location, inputs: vec![], rules: vec![] }, tree);
        }
        self.check_keys(item)?;
        let location = self.location(item)?;
        self.check_integrity(item)?;
        if let Some(cache) = item.get("cache") {
            let message = "`include:cache` has no effect; a local run keeps remote files in its own cache";
            self.context.report.warn(cache.at, None, message);
        }
        let inputs = self.arguments(item)?;
        let rules = match item.get("rules") {
            Some(node) => self.rules(node)?,
            None => Vec::new(),
        };
        self.checked(IncludeEntry { at, location, inputs, rules }, tree)
    }

    /// Reports unknown keywords. `None`: the entry cannot be read.
    fn check_keys(&mut self, item: &Node) -> Option<()> {
        let Some(mapping) = item.mapping() else {
            return self.refuse(item.at, format!("`include` takes a path, a URL or a mapping, not {}", item.kind()));
        };
        let has_location = LOCATION_KEYS.into_iter().any(|kind| item.get(kind).is_some());
        for (key, entry) in mapping.iter().filter(|(key, _)| !INCLUDE_KEYS.contains(&&***key)) {
            let message = format!("unknown keyword `include:{key}`{}", did_you_mean(key, &INCLUDE_KEYS));
            // If the entry has no location, the unknown keyword is probably a misspelled location. So only the unknown
            // keyword is reported, not also the missing location.
            if !has_location {
                self.context.error(Class::UnknownKeyword, entry.key_at, None, message);
                return None;
            }
            self.context.report.unknown_keyword(entry.key_at, message);
        }
        Some(())
    }

    fn check_integrity(&mut self, item: &Node) -> Option<()> {
        let Some(integrity) = item.get("integrity") else { return Some(()) };
        let hash = integrity.text().and_then(|text| text.strip_prefix("sha256-"));
        let is_base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
        if item.get("remote").is_none() || hash.is_none_or(|hash| hash.is_empty() || !hash.chars().all(is_base64)) {
            let message = "`include:integrity` takes `sha256-` and a hash in base64, and needs `remote`";
            return self.refuse(integrity.at, message.to_owned());
        }
        Some(())
    }

    /// The values for the inputs of the included file.
    fn arguments(&mut self, item: &Node) -> Option<Vec<InputArgument>> {
        let Some(inputs) = item.get("inputs") else { return Some(Vec::new()) };
        let Some(mapping) = inputs.mapping() else {
            let message = format!("`include:inputs` takes a mapping of names and values, not {}", inputs.kind());
            return self.refuse(inputs.at, message);
        };
        let argument = |(key, entry): (&Arc<str>, &MappingEntry)| InputArgument {
            key: Arc::clone(key),
            value: InputValue::Typed(entry.node.clone()),
            at: entry.key_at,
        };
        Some(mapping.iter().map(argument).collect())
    }

    fn location(&mut self, item: &Node) -> Option<IncludeLocation> {
        let given: Vec<&str> = LOCATION_KEYS.into_iter().filter(|kind| item.get(kind).is_some()).collect();
        let [kind] = given.as_slice() else {
            let message = "`include` takes exactly one of local, project, remote, template, component";
            return self.refuse(item.at, message.to_owned());
        };
        let node = item.get(kind)?;
        let Some(text) = node.text() else {
            return self.refuse(item.at, format!("`include:{kind}` takes text, not {}", node.kind()));
        };
        let text = self.expand(text);
        let optional = |key: &str| item.get(key).and_then(Node::printed).map(|text| self.expand(&text));
        Some(match *kind {
            "local" => IncludeLocation::Local(text),
            "remote" => IncludeLocation::Remote { url: text, integrity: optional("integrity") },
            "template" => IncludeLocation::Template(text),
            "component" => IncludeLocation::Component(text),
            "artifact" => match optional("job") {
                Some(job) => IncludeLocation::Artifact { job, path: text },
                None => return self.refuse(item.at, "`include:artifact` needs `job`".to_owned()),
            },
            _ => {
                let reference = optional("ref");
                let files = item.get("file").and_then(|file| match file.text() {
                    Some(path) => Some(vec![Arc::clone(path)]),
                    None => self.context.flat_texts(file, "include:file", None),
                });
                match files.filter(|files| !files.is_empty()) {
                    Some(files) => {
                        let files = files.iter().map(|file| self.expand(file)).collect();
                        IncludeLocation::Project { project: text, reference, files }
                    }
                    None => {
                        let message = "`include:project` needs `file`, a path or a list of paths";
                        return self.refuse(item.at, message.to_owned());
                    }
                }
            }
        })
    }

    /// Refuses a location that cannot be included from this file.
    fn checked(&mut self, entry: IncludeEntry, tree: &Option<SourceTree>) -> Option<IncludeEntry> {
        let yaml = |path: &str| path.ends_with(".yml") || path.ends_with(".yaml");
        let why = match &entry.location {
            IncludeLocation::Local(path) if path.is_empty() => {
                "`include:local` is empty after variables are expanded".to_owned()
            }
            IncludeLocation::Local(path) if !yaml(path) => format!("`include:local: {path}` must end in .yml or .yaml"),
            IncludeLocation::Local(path) if tree.is_none() => {
                format!(
                    "`include:local: {path}` cannot be used in a remote file or a template, which belongs to no project"
                )
            }
            IncludeLocation::Project { files, .. } => match files.iter().find(|path| !yaml(path)) {
                Some(path) => format!("`include:file: {path}` must end in .yml or .yaml"),
                None => return Some(entry),
            },
            IncludeLocation::Remote { url, .. } if !is_url(url) => {
                format!("`include:remote: {url}` must begin with https:// or http://")
            }
            _ => return Some(entry),
        };
        self.refuse(entry.at, why)
    }

    fn refuse<T>(&mut self, at: Origin, message: String) -> Option<T> {
        self.context.error(Class::IncludeSyntax, at, None, message);
        None
    }

    fn expand(&self, text: &str) -> String {
        VariableView::of_pipeline(&self.context.shared_variables, &[]).expand(text)
    }

    fn rules(&mut self, node: &Node) -> Option<Vec<IncludeRule>> {
        let items = self.context.flatten(node, "include:rules", None)?;
        let mut rules = Vec::with_capacity(items.len());
        for item in &items {
            let known = ["if", "exists", "changes", "when"];
            let Some(mapping) = item.mapping() else {
                return self.refuse(item.at, format!("`include:rules` takes mappings, not {}", item.kind()));
            };
            for (key, entry) in mapping.iter().filter(|(key, _)| !known.contains(&&***key)) {
                let message = format!("unknown keyword `include:rules:{key}`{}", did_you_mean(key, &known));
                self.context.report.unknown_keyword(entry.key_at, message);
            }
            let includes = match item.get("when").map(|when| (when.text().map(|text| &**text), when.at)) {
                None | Some((Some("always"), _)) => true,
                Some((Some("never"), _)) => false,
                Some((_, at)) => {
                    self.context.error(Class::BadWhen, at, None, "`include:rules:when` must be `always` or `never`");
                    return None;
                }
            };
            rules.push(IncludeRule { clause: Clause::read(item, OWNER, self.context)?, includes });
        }
        Some(rules)
    }

    /// Whether the rules of the entry include its files; true without rules.
    pub fn applies(&mut self, entry: &IncludeEntry, tree: &Option<SourceTree>) -> bool {
        if entry.rules.is_empty() {
            return true;
        }
        let shared = Arc::clone(&self.context.shared_variables);
        let tree = tree.clone().unwrap_or(SourceTree::Project);
        for rule in &entry.rules {
            match rule.clause.match_reasons(&VariableView::of_pipeline(&shared, &[]), &tree, OWNER, self.context) {
                Ok(Some(_)) => return rule.includes,
                Ok(None) => {}
                Err(Reported) => return false,
            }
        }
        false
    }
}
