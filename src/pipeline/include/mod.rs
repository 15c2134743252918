//! Loads the whole configuration: reads the first file and the files that it includes, and merges their contents.
//!
//! [`Loader`] goes through one file at a time: [`content`] reads the file, [`entry`] its `include` entries, and [`fetch`]
//! gets the included files.

mod content;
pub mod entry;
mod fetch;

use self::content::FileToRead;
use super::context::Context;
use super::file::inputs::InputArgument;
use super::merge::Merger;
use super::problem::Class;
use super::request::{ConfigurationStart, PlanRequest, SourceError, SourceTree};
use super::syntax::{MAX_FILE_SIZE, Mapping, MappingEntry, Node, Origin};

/// The number of files that a pipeline may include, as on GitLab.
const MAX_FILES: usize = 150;

/// The number of inputs that a caller may give, as on GitLab.
const MAX_INPUTS: usize = 20;

/// A file as it was fetched.
struct Fetched {
    /// The file's name in messages.
    name: String,
    bytes: Vec<u8>,
    /// The tree from which the file's own local includes are read; `None` if the file belongs to no tree.
    tree: Option<SourceTree>,
    component: Option<Component>,
}

/// The facts about a component that its file may use, such as `$[[ component.sha ]]`.
struct Component {
    name: String,
    sha: String,
    version: String,
    reference: String,
}

/// Loads the configuration. `None`: there is a problem, which is already reported.
pub fn load(context: &mut Context<'_>) -> Option<Node> {
    let request = context.request;
    let mut loader = Loader { context, included: 0, open: Vec::new(), merger: Merger::default() };
    match &request.start {
        ConfigurationStart::File(path) => loader.first_file(path.trim_start_matches('/'), request),
        ConfigurationStart::Includes { include, files } => {
            loader.context.report.files.clone_from(files);
            let entry = MappingEntry { key_at: include.at, node: include.clone() };
            let mapping = Mapping::from_iter([("include".into(), entry)]);
            loader.includes(Node::mapping_at(mapping, include.at), &Some(SourceTree::Project))
        }
    }
}

/// The class of the problem that a file cannot be read, and the cause.
fn classified(error: SourceError) -> (Class, String) {
    match error {
        SourceError::Missing(why) => (Class::IncludeMissing, why),
        SourceError::Failed(why) => (Class::IncludeFailed, why),
    }
}

struct Loader<'c, 'a> {
    context: &'c mut Context<'a>,
    /// The number of included files so far.
    included: usize,
    /// The files that are being loaded, the outermost first; for the detection of cycles.
    open: Vec<String>,
    merger: Merger,
}

impl Loader<'_, '_> {
    /// The file at which the configuration starts.
    fn first_file(&mut self, path: &str, request: &PlanRequest<'_>) -> Option<Node> {
        if request.inputs.len() > MAX_INPUTS {
            let message = format!("the request has {} inputs; up to {MAX_INPUTS} are allowed", request.inputs.len());
            self.context.error(Class::InputSpec, Origin::default(), None, message);
            return None;
        }
        let arguments: Vec<InputArgument> = request
            .inputs
            .iter()
            .map(|input| InputArgument {
                key: input.key.as_str().into(),
                value: input.value.clone(),
                at: Origin::default(),
            })
            .collect();
        match request.sources.read(&SourceTree::Project, path) {
            Ok(bytes) => {
                let fetched =
                    Fetched { name: path.to_owned(), bytes, tree: Some(SourceTree::Project), component: None };
                self.file(fetched, &arguments, Origin::default())
            }
            Err(error) => {
                let at = Origin { file: self.context.report.add_file(path), line: 1 };
                let (class, why) = classified(error);
                self.context.error(class, at, None, format!("the configuration {path} cannot be read: {why}"));
                None
            }
        }
    }

    /// The content of a file, with its includes merged.
    fn file(&mut self, fetched: Fetched, arguments: &[InputArgument], included_at: Origin) -> Option<Node> {
        let Fetched { name, bytes, tree, component } = fetched;
        let index = self.context.report.add_file(&name);
        let text = self.text(&bytes, index)?;
        let component = component.as_ref();
        let file = FileToRead { name: &name, index, text, arguments, included_at, tree: &tree, component };
        let content = self.content(&file)?;
        self.check_not_empty(&file, &content)?;
        self.open.push(name);
        let merged = self.includes(content, &tree);
        self.open.pop();
        merged
    }

    /// The text of a file, which must be UTF-8 and not too large.
    fn text<'b>(&mut self, bytes: &'b [u8], file: u32) -> Option<&'b str> {
        if bytes.len() > MAX_FILE_SIZE {
            let message = format!("the file is larger than {} MiB", MAX_FILE_SIZE >> 20);
            self.context.error(Class::TooBig, Origin { file, line: 1 }, None, message);
            return None;
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Some(text),
            Err(error) => {
                let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() as u32 + 1;
                self.context.error(Class::YamlSyntax, Origin { file, line }, None, "the text is not UTF-8");
                None
            }
        }
    }

    /// Refuses content that is empty or not a mapping.
    fn check_not_empty(&mut self, file: &FileToRead<'_>, content: &Node) -> Option<()> {
        if content.mapping().is_some_and(|mapping| !mapping.is_empty()) {
            return Some(());
        }
        let name = file.name;
        let start = if content.at.line > 0 { content.at } else { Origin { file: file.index, line: 0 } };
        let is_empty = content.is_null() || content.mapping().is_some();
        let (class, at, message) = if !is_empty {
            let kind = content.kind();
            let message = format!("{name} contains {kind} instead of a mapping of keywords and jobs");
            (Class::NotAMapping, start, message)
        } else if file.included_at.line > 0 {
            (Class::IncludeMissing, file.included_at, format!("the included file {name} is empty"))
        } else {
            (Class::NotAMapping, start, format!("{name} is empty; write a mapping of keywords and jobs"))
        };
        self.context.error(class, at, None, message);
        None
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
                self.check_may_open(&fetched.name, entry.at)?;
                let Some(node) = self.file(fetched, &entry.inputs, entry.at) else { continue };
                merged = Some(match merged {
                    Some(base) => self.merger.merge(&base, &node),
                    None => node,
                });
            }
            if self.merger.is_exhausted() {
                let message = "the included files have more than 5,000,000 entries when they are merged";
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

    /// Counts an included file. Refuses a file that is already open, and more files than are allowed.
    fn check_may_open(&mut self, name: &str, at: Origin) -> Option<()> {
        self.included += 1;
        let message = if let Some(start) = self.open.iter().position(|open| open == name) {
            let cycle = self.open[start..].join(" includes ");
            format!("the files form a cycle: {cycle} includes {name}")
        } else if self.included > MAX_FILES {
            format!("the pipeline includes more than {MAX_FILES} files")
        } else {
            return Some(());
        };
        self.context.error(Class::IncludeLimit, at, None, message);
        None
    }
}
