//! Reads one file: the inputs that its header declares, and its content with the values of these inputs.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Component, Loader};
use crate::pipeline::file::declaration::{self, Spec};
use crate::pipeline::file::document::{self, Document};
use crate::pipeline::file::fill::Filling;
use crate::pipeline::file::inputs::{self, InputArgument};
use crate::pipeline::file::interpolate::{self, BlockValues};
use crate::pipeline::problem::Class;
use crate::pipeline::request::SourceTree;
use crate::pipeline::suggest::did_you_mean;
use crate::pipeline::syntax::{self, Node, Origin, SyntaxError};
use crate::pipeline::variable_view::VariableView;

/// Keywords of the entries of `spec:include`.
const SPEC_INCLUDE_KEYS: [&str; 7] = ["local", "file", "remote", "project", "ref", "integrity", "cache"];

/// A fetched file, and the facts that its reading depends on.
pub struct FileToRead<'f> {
    /// The file's name in messages.
    pub name: &'f str,
    /// The file's index in the list of files.
    pub index: u32,
    pub text: &'f str,
    /// Values for the inputs that the file declares.
    pub arguments: &'f [InputArgument],
    /// Where the file is included; line 0 for the first file.
    pub included_at: Origin,
    /// The tree from which the file's own local includes are read.
    pub tree: &'f Option<SourceTree>,
    pub component: Option<&'f Component>,
}

impl Loader<'_, '_> {
    /// The content of a file, with the values of its inputs. `None`: there is a problem, which is already reported.
    pub fn content(&mut self, file: &FileToRead<'_>) -> Option<Node> {
        let documents = document::split(file.text);
        let header = match documents.as_slice() {
            [first, _, ..] => Some(self.parse(first, file.index)?),
            _ => None,
        };
        if let Some(third) = documents.get(2) {
            let message = format!("{} has more than two documents: a header with `spec` and the content", file.name);
            let at = Origin { file: file.index, line: third.first_line };
            self.context.error(Class::YamlSyntax, at, None, message);
            return None;
        }
        match header.filter(|header| header.mapping().is_some_and(|mapping| mapping.contains_key("spec"))) {
            Some(header) => {
                let spec = self.spec(&header, file)?;
                self.filled_content(&documents[1], spec, file)
            }
            None => self.plain_content(&documents[0], file),
        }
    }

    /// The content of a file without a header.
    fn plain_content(&mut self, document: &Document<'_>, file: &FileToRead<'_>) -> Option<Node> {
        if let Some(argument) = file.arguments.first() {
            let name = file.name;
            let message = format!("input `{}` is not declared: {name} has no header with spec:inputs", argument.key);
            let at = if argument.at.line > 0 { argument.at } else { Origin { file: file.index, line: 1 } };
            self.context.error(Class::InputUnknown, at, None, message);
            return None;
        }
        let content = self.parse(document, file.index)?;
        let is_job = |node: &Node| {
            let has = |keyword| node.mapping().is_some_and(|mapping| mapping.contains_key(keyword));
            ["script", "run", "trigger", "extends"].into_iter().any(has)
        };
        // A later step refuses a job with this name.
        if let Some(entry) = content.mapping().and_then(|mapping| mapping.get("spec"))
            && !is_job(&entry.node)
        {
            let message = "`spec` must be in a header of its own, which ends with the line `---`";
            self.context.error(Class::InputSpec, entry.key_at, None, message);
            return None;
        }
        Some(content)
    }

    /// Reads the header of a file.
    fn spec(&mut self, header: &Node, file: &FileToRead<'_>) -> Option<Spec> {
        let report = &mut self.context.report;
        let before = report.problems.len();
        let mapping = header.mapping()?;
        for (key, entry) in mapping.iter().filter(|(key, _)| &***key != "spec") {
            report.unknown_keyword(
                entry.key_at,
                format!("unknown keyword `{key}` in the header; only `spec` is allowed"),
            );
        }
        let spec = declaration::read_spec(&mapping.get("spec")?.node, report);
        let spec = self.with_included_inputs(spec, file.tree);
        declaration::check_rules(&spec.inputs, &mut self.context.report);
        (self.context.report.problems.len() == before).then_some(spec)
    }

    /// The content of a file with a header, with values in the place of its blocks.
    fn filled_content(&mut self, document: &Document<'_>, spec: Spec, file: &FileToRead<'_>) -> Option<Node> {
        let report = &mut self.context.report;
        let inputs = inputs::resolve(&spec, file.name, file.arguments, file.included_at, report)?;
        let marked = interpolate::mark(document.text, document.first_line);
        let root = self.parse_text(&marked.text, file.index, &|line| line + document.first_line - 1)?;
        if marked.blocks.is_empty() {
            return Some(root);
        }
        self.fill(&root, &marked.blocks, &inputs, &spec, file)
    }

    fn fill(
        &mut self,
        root: &Node,
        blocks: &[interpolate::Block],
        inputs: &HashMap<Arc<str>, Node>,
        spec: &Spec,
        file: &FileToRead<'_>,
    ) -> Option<Node> {
        let shared = Arc::clone(&self.context.shared_variables);
        let view = VariableView::of_pipeline(&shared, &[]);
        let values = BlockValues {
            inputs: &|name| inputs.get(name).cloned(),
            component: &|key| file.component.and_then(|component| component.fact(spec, key)),
            variables: &|key| {
                let value = view.get(key)?;
                Some(if view.is_masked(key) {
                    Err(format!("the variable `{key}` is masked and cannot be used in `expand_vars`"))
                } else {
                    Ok(value.to_owned())
                })
            },
        };
        let mut filling = Filling::new(blocks, &values, &mut self.context.budget);
        let filled = filling.fill(root);
        let errors = filling.errors;
        for (class, line, message) in &errors {
            self.context.error(*class, Origin { file: file.index, line: *line }, None, message.as_str());
        }
        errors.is_empty().then_some(filled)
    }

    /// Parses a document, or takes the tree that the caller has parsed ahead.
    fn parse(&mut self, document: &Document<'_>, file: u32) -> Option<Node> {
        let parsed =
            self.context.request.sources.parsed().filter(|parsed| file == 0 && parsed.is_parsed_from(document));
        if let Some(parsed) = parsed {
            self.context.budget = parsed.budget.clone();
            for (at, message) in &parsed.duplicates {
                self.context.report.warn(*at, None, message.clone());
            }
            return Some(parsed.root.clone());
        }
        let first_line = document.first_line;
        self.parse_text(document.text, file, &move |line| line + first_line - 1)
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
                self.report_syntax_error(file, &error);
                None
            }
        }
    }

    fn report_syntax_error(&mut self, file: u32, error: &SyntaxError) {
        let at = Origin { file, line: error.line };
        self.context.error(Class::YamlSyntax, at, None, format!("not valid YAML: {}", error.message));
    }

    /// Adds inputs from `spec:include`: files that contain only `inputs`.
    fn with_included_inputs(&mut self, mut spec: Spec, tree: &Option<SourceTree>) -> Spec {
        let Some(include) = spec.include.take() else { return spec };
        let single = std::slice::from_ref(&include);
        let items = include.list().unwrap_or(single).iter().filter_map(Node::mapping);
        for (key, entry) in items.flat_map(|mapping| mapping.iter()) {
            if !SPEC_INCLUDE_KEYS.contains(&&**key) {
                let hint = did_you_mean(key, &SPEC_INCLUDE_KEYS);
                self.context
                    .report
                    .unknown_keyword(entry.key_at, format!("unknown keyword `spec:include:{key}`{hint}"));
                return spec;
            }
        }
        for entry in self.entries(&include, tree) {
            for fetched in self.fetch(&entry, tree) {
                let file = self.context.report.add_file(&fetched.name);
                let text = String::from_utf8_lossy(&fetched.bytes);
                let Some(node) = self.parse(&Document { text: &text, first_line: 1 }, file) else { continue };
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
}

impl Component {
    /// A fact about the component, if the header lists it.
    fn fact(&self, spec: &Spec, key: &str) -> Option<String> {
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
