//! Loads the whole configuration from the first file: headers, inputs, YAML, includes, merge.

pub mod entry;
mod fetch;

use std::sync::Arc;

use super::context::Context;
use super::file::declaration::{self, Spec};
use super::file::document::{self, Document};
use super::file::fill::Filling;
use super::file::inputs::{self, Given};
use super::file::interpolate::{self, Values};
use super::merge::Merger;
use super::problem::Class;
use super::request::{Content, SourceError, SourceTree};
use super::suggest::did_you_mean;
use super::syntax::{self, FILE_LIMIT, Mapping, Node, Origin, SyntaxError};

/// The number of files that a pipeline may include, as on GitLab.
const FILES_LIMIT: usize = 150;

/// The number of inputs that a caller may give, as on GitLab.
const INPUTS_LIMIT: usize = 20;

/// Keywords of the entries of `spec:include`.
const SPEC_INCLUDE_KEYS: [&str; 7] = ["local", "file", "remote", "project", "ref", "integrity", "cache"];

struct Fetched {
    /// The file's name in messages.
    name: String,
    bytes: Vec<u8>,
    /// The tree from which the file's own local includes are read; `None` if the file belongs to no tree.
    tree: Option<SourceTree>,
    component: Option<Component>,
}

/// The component facts that the file may use.
struct Component {
    name: String,
    sha: String,
    version: String,
    reference: String,
}

/// Loads the configuration. `None`: there is a problem, which is already reported.
pub fn load(context: &mut Context<'_>) -> Option<Node> {
    let request = context.request;
    let mut loader = Loader { context, count: 0, open: Vec::new(), merger: Merger::default() };
    match &request.content {
        Content::File(path) => {
            let given = request.inputs.iter().map(|input| Given {
                key: input.key.as_str().into(),
                value: input.value.clone(),
                at: Origin::default(),
            });
            let given: Vec<Given> = given.collect();
            if given.len() > INPUTS_LIMIT {
                let message = format!("{} inputs are given; up to {INPUTS_LIMIT} are allowed", given.len());
                loader.context.error(Class::InputSpec, Origin::default(), None, message);
                return None;
            }
            let path = path.trim_start_matches('/');
            let bytes = match request.sources.read(&SourceTree::Project, path) {
                Ok(bytes) => bytes,
                Err(error) => {
                    let at = Origin { file: loader.context.report.add_file(path), line: 1 };
                    let (class, why) = match error {
                        SourceError::Missing(why) => (Class::IncludeMissing, why),
                        SourceError::Failed(why) => (Class::IncludeFailed, why),
                    };
                    loader.context.error(class, at, None, format!("the configuration {path} cannot be read: {why}"));
                    return None;
                }
            };
            let fetched = Fetched { name: path.to_owned(), bytes, tree: Some(SourceTree::Project), component: None };
            loader.file(fetched, &given, Origin::default())
        }
        Content::Includes { include, files } => {
            loader.context.report.files.clone_from(files);
            let mapping = Mapping::from_iter([(
                "include".into(),
                syntax::MappingEntry { key_at: include.at, node: include.clone() },
            )]);
            loader.includes(Node::mapping_at(mapping, include.at), &Some(SourceTree::Project))
        }
    }
}

struct Loader<'c, 'a> {
    context: &'c mut Context<'a>,
    count: usize,
    /// The files that are being loaded, the outermost first; for the detection of cycles.
    open: Vec<String>,
    merger: Merger,
}

impl Loader<'_, '_> {
    /// The content of a file, with its includes merged. `at` is where the file is included.
    fn file(&mut self, fetched: Fetched, given: &[Given], at: Origin) -> Option<Node> {
        let Fetched { name, bytes, tree, component } = fetched;
        let file = self.context.report.add_file(&name);
        let start = Origin { file, line: 0 };
        if bytes.len() > FILE_LIMIT {
            let message = format!("the file is larger than {} MiB", FILE_LIMIT >> 20);
            self.context.error(Class::TooBig, Origin { file, line: 1 }, None, message);
            return None;
        }
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            Err(error) => {
                let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() as u32 + 1;
                self.context.error(Class::YamlSyntax, Origin { file, line }, None, "the text is not UTF-8");
                return None;
            }
        };
        let content = self.content(text, file, &name, given, at, &tree, component.as_ref())?;
        if content.mapping().is_none_or(|mapping| mapping.is_empty()) {
            let empty = content.is_null() || content.mapping().is_some();
            let (class, message) = if !empty {
                (
                    Class::NotAMapping,
                    format!("{name} contains {} instead of a mapping of keywords and jobs", content.kind()),
                )
            } else if at.line > 0 {
                (Class::IncludeMissing, format!("the included file {name} is empty"))
            } else {
                (Class::NotAMapping, format!("{name} is empty; write a mapping of keywords and jobs"))
            };
            let place = if content.at.line > 0 { content.at } else { start };
            self.context.error(class, if empty && at.line > 0 { at } else { place }, None, message);
            return None;
        }
        self.open.push(name);
        let merged = self.includes(content, &tree);
        self.open.pop();
        merged
    }

    /// Parses a text after interpolation of its blocks.
    #[allow(clippy::too_many_arguments)]
    fn content(
        &mut self,
        text: &str,
        file: u32,
        name: &str,
        given: &[Given],
        at: Origin,
        tree: &Option<SourceTree>,
        component: Option<&Component>,
    ) -> Option<Node> {
        let documents = document::split(text);
        let header = match documents.as_slice() {
            [first, _, ..] => {
                let node = self.parse(first, file)?;
                node.mapping().is_some_and(|mapping| mapping.contains_key("spec")).then_some(node)
            }
            _ => None,
        };
        if let Some(third) = documents.get(2) {
            let message = format!("{name} has more than two documents: a header with `spec` and the content");
            self.context.error(Class::YamlSyntax, Origin { file, line: third.first }, None, message);
            return None;
        }
        let Some(header) = header else {
            if let Some(given) = given.first() {
                let message = format!("input `{}` is not declared: {name} has no header with spec:inputs", given.key);
                let at = if given.at.line > 0 { given.at } else { Origin { file, line: 1 } };
                self.context.error(Class::InputUnknown, at, None, message);
                return None;
            }
            let content = self.parse(&documents[0], file)?;
            let is_job = |node: &Node| {
                let has = |keyword| node.mapping().is_some_and(|mapping| mapping.contains_key(keyword));
                ["script", "run", "trigger", "extends"].into_iter().any(has)
            };
            // The planner refuses a job with this name.
            if let Some(entry) = content.mapping().and_then(|mapping| mapping.get("spec"))
                && !is_job(&entry.node)
            {
                let message = "`spec` must be in a header of its own, which ends with the line `---`";
                self.context.error(Class::InputSpec, entry.key_at, None, message);
                return None;
            }
            return Some(content);
        };
        let before = self.context.report.problems.len();
        for (key, entry) in header.mapping()?.iter().filter(|(key, _)| &***key != "spec") {
            self.context
                .report
                .unknown(entry.key_at, format!("unknown keyword `{key}` in the header; only `spec` is allowed"));
        }
        let spec =
            declaration::read_spec(header.mapping()?.get("spec").map(|entry| &entry.node)?, &mut self.context.report);
        let spec = self.with_included_inputs(spec, tree);
        declaration::check_rules(&spec.inputs, &mut self.context.report);
        if self.context.report.problems.len() > before {
            return None;
        }
        let values = inputs::resolve(&spec, name, given, at, &mut self.context.report)?;
        let scope = Arc::clone(&self.context.scope);
        let body = documents[1];
        let marked = interpolate::mark(body.text, body.first);
        let root = self.parse_text(&marked.text, file, &|line| line + body.first - 1)?;
        if marked.blocks.is_empty() {
            return Some(root);
        }
        let values = Values {
            inputs: &|name| values.get(name).cloned(),
            component: &|key| component.and_then(|component| component.get(&spec, key)),
            variables: &|key| {
                let view = Context::view(&scope);
                let value = view.get(key)?;
                Some(if view.is_masked(key) {
                    Err(format!("the variable `{key}` is masked and cannot be used in `expand_vars`"))
                } else {
                    Ok(value.to_owned())
                })
            },
        };
        let mut filling = Filling::new(&marked.blocks, &values);
        let root = filling.node(&root);
        for (class, line, message) in &filling.errors {
            self.context.error(*class, Origin { file, line: *line }, None, message.as_str());
        }
        filling.errors.is_empty().then_some(root)
    }

    fn parse(&mut self, document: &Document<'_>, file: u32) -> Option<Node> {
        let parsed = self.context.request.sources.parsed().filter(|parsed| file == 0 && parsed.is_of(document));
        if let Some(parsed) = parsed {
            self.context.budget = parsed.budget.clone();
            for (at, message) in &parsed.duplicates {
                self.context.report.warn(*at, None, message.clone());
            }
            return Some(parsed.root.clone());
        }
        let first = document.first;
        self.parse_text(document.text, file, &move |line| line + first - 1)
    }

    fn parse_text(&mut self, text: &str, file: u32, line_of: &dyn Fn(u32) -> u32) -> Option<Node> {
        match syntax::parse(text, file, line_of, &mut self.context.budget) {
            Ok(document) => {
                for (at, message) in document.duplicates {
                    self.context.report.warn(at, None, message);
                }
                Some(document.root)
            }
            Err(error) => {
                self.refuse_syntax(file, &error);
                None
            }
        }
    }

    fn refuse_syntax(&mut self, file: u32, error: &SyntaxError) {
        let at = Origin { file, line: error.line };
        self.context.error(Class::YamlSyntax, at, None, format!("not valid YAML: {}", error.message));
    }

    /// Adds inputs from `spec:include`: files that contain nothing but `inputs`.
    fn with_included_inputs(&mut self, mut spec: Spec, tree: &Option<SourceTree>) -> Spec {
        let Some(include) = spec.include.take() else { return spec };
        let single = std::slice::from_ref(&include);
        for item in include.list().unwrap_or(single) {
            for (key, entry) in item.mapping().into_iter().flat_map(|mapping| mapping.iter()) {
                if !SPEC_INCLUDE_KEYS.contains(&&**key) {
                    let message =
                        format!("unknown keyword `spec:include:{key}`{}", did_you_mean(key, &SPEC_INCLUDE_KEYS));
                    self.context.report.unknown(entry.key_at, message);
                    return spec;
                }
            }
        }
        for entry in self.entries(&include, tree) {
            for fetched in self.fetch(&entry, tree) {
                let file = self.context.report.add_file(&fetched.name);
                let text = String::from_utf8_lossy(&fetched.bytes);
                let Some(node) = self.parse(&Document { text: &text, first: 1 }, file) else { continue };
                for (key, entry) in node.mapping().into_iter().flat_map(|mapping| mapping.iter()) {
                    if &**key == "inputs" {
                        declaration::read_inputs(&entry.node, &mut spec.inputs, &mut self.context.report);
                    } else {
                        let message = format!("{} may contain only `inputs`, not `{key}`", fetched.name);
                        self.context.error(Class::InputSpec, entry.key_at, None, message);
                    }
                }
            }
        }
        spec
    }

    /// Merges the content over the files that it includes.
    fn includes(&mut self, content: Node, tree: &Option<SourceTree>) -> Option<Node> {
        let Some(include) = content.get("include") else { return Some(content) };
        let before = self.context.report.problems.len();
        let mut merged: Option<Node> = None;
        for entry in self.entries(include, tree) {
            if !self.applies(&entry, tree) {
                continue;
            }
            for fetched in self.fetch(&entry, tree) {
                if let Some(start) = self.open.iter().position(|open| *open == fetched.name) {
                    let cycle = self.open[start..].join(" includes ");
                    let message = format!("files include each other: {cycle} includes {}", fetched.name);
                    self.context.error(Class::IncludeLimit, entry.at, None, message);
                    return None;
                }
                self.count += 1;
                if self.count > FILES_LIMIT {
                    let message = format!("more than {FILES_LIMIT} files are included");
                    self.context.error(Class::IncludeLimit, entry.at, None, message);
                    return None;
                }
                let Some(node) = self.file(fetched, &entry.inputs, entry.at) else { continue };
                merged = Some(match merged {
                    Some(base) => self.merger.merge(&base, &node),
                    None => node,
                });
            }
            if self.merger.is_exhausted() {
                let message = "merging included files copies more than 5,000,000 entries";
                self.context.error(Class::TooBig, entry.at, None, message);
                return None;
            }
        }
        if self.context.report.problems.len() > before {
            return None;
        }
        let at = content.at;
        let mut own: Mapping = content.mapping().map(|mapping| (**mapping).clone()).unwrap_or_default();
        own.shift_remove("include");
        let own = Node::mapping_at(own, at);
        Some(match merged {
            Some(base) => self.merger.merge(&base, &own),
            None => own,
        })
    }
}

impl Component {
    fn get(&self, spec: &Spec, key: &str) -> Option<String> {
        let listed = spec.component.iter().any(|listed| &**listed == key);
        listed
            .then_some(match key {
                "name" => &self.name,
                "sha" => &self.sha,
                "version" => &self.version,
                _ => &self.reference,
            })
            .cloned()
    }
}
