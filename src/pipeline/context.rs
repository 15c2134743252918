//! The state that all planning steps share.

use std::sync::Arc;

use super::hash::Map;
use super::predefined;
use super::problem::{Class, ProblemReport};
use super::project_address::ProjectAddress;
use super::request::PlanRequest;
use super::rules::expression::Expression;
use super::rules::files::FileLists;
use super::syntax::{Budget, Node, Origin};
use super::variables::SharedVariables;

/// The number of levels to which lists of commands, rules and needs may nest, as on GitLab.
const MAX_LIST_DEPTH: usize = 10;

/// The number of list items that all jobs together may have.
const MAX_ITEMS: usize = 2_000_000;

/// The memory limit, in bytes, for the compiled patterns of all expressions together.
const MAX_PATTERN_BYTES: usize = 32 << 20;

/// The state of planning.
pub struct Context<'a> {
    pub request: &'a PlanRequest<'a>,
    /// The project's address, from the URL of `origin`.
    pub project: ProjectAddress,
    /// The variables of the pipeline that no job changes.
    pub shared_variables: Arc<SharedVariables>,
    pub report: ProblemReport,
    /// The remaining size limit for all parsed YAML.
    pub budget: Budget,
    /// Cached lists of files, for `changes` and `exists`.
    pub file_lists: FileLists<'a>,
    expressions: Map<Arc<str>, Result<Arc<Expression>, String>>,
    /// The number of list items that jobs may still have.
    items_left: usize,
    /// The memory of the compiled patterns so far.
    pattern_bytes: usize,
}

impl<'a> Context<'a> {
    pub fn new(request: &'a PlanRequest<'a>) -> Self {
        let project = ProjectAddress::new(request.facts.remote.as_deref(), &request.facts.directory);
        let predefined = predefined::pipeline_variables(request, &project);
        let shared_variables =
            SharedVariables::new(predefined, request.project_variables.clone(), request.pipeline_variables.clone());
        Self {
            request,
            project,
            shared_variables: Arc::new(shared_variables),
            report: ProblemReport::new(request.unknown_keywords),
            budget: Budget::default(),
            file_lists: FileLists::new(request.sources),
            expressions: Map::default(),
            items_left: MAX_ITEMS,
            pattern_bytes: 0,
        }
    }

    /// Parses an expression. The result is cached by text.
    pub fn expression(&mut self, text: &Arc<str>) -> Result<Arc<Expression>, String> {
        if let Some(done) = self.expressions.get(text) {
            return done.clone();
        }
        let was_exhausted = self.pattern_bytes > MAX_PATTERN_BYTES;
        // After the memory limit for patterns is exceeded, further patterns are not compiled.
        let mut result = if was_exhausted {
            Expression::parse(&"null".into()).map(Arc::new)
        } else {
            Expression::parse(text).map(Arc::new)
        };
        self.pattern_bytes += result.as_ref().map_or(0, |expression| expression.size());
        if self.pattern_bytes > MAX_PATTERN_BYTES && !was_exhausted {
            result = Err("the patterns of all expressions together are too large".to_owned());
        }
        self.expressions.insert(Arc::clone(text), result.clone());
        result
    }

    /// Flattens nested lists. `None`: the lists nest too deeply or are too long; this is reported.
    pub fn flatten(&mut self, node: &Node, keyword: &str, job: Option<&Arc<str>>) -> Option<Vec<Node>> {
        let mut items = Vec::new();
        let (class, message) = match flatten_into(node, 0, &mut self.items_left, &mut items) {
            Ok(()) => return Some(items),
            Err(Overflow::Depth) => {
                let message = format!("`{keyword}` nests lists deeper than {MAX_LIST_DEPTH} levels");
                (Class::BadValue, message)
            }
            Err(Overflow::Count) => (Class::TooBig, too_many_items(keyword)),
        };
        self.report.add(class, node.at, job, message);
        None
    }

    /// The texts of a list without lists inside. `None`: the node is something else. If all lists together are too
    /// long, that is reported, and the result is empty.
    pub fn flat_texts(&mut self, node: &Node, keyword: &str, job: Option<&Arc<str>>) -> Option<Vec<Arc<str>>> {
        let items = node.list()?;
        // Jobs can share a list, so a short file could make very many copies.
        let Some(left) = self.items_left.checked_sub(items.len()) else {
            self.error(Class::TooBig, node.at, job, too_many_items(keyword));
            return Some(Vec::new());
        };
        self.items_left = left;
        items.iter().map(|item| item.text().cloned()).collect()
    }

    /// Reports a problem of a job, or of the file if `job` is `None`.
    pub fn error(&mut self, class: Class, at: Origin, job: Option<&Arc<str>>, message: impl Into<String>) {
        self.report.add(class, at, job, message.into());
    }
}

fn too_many_items(keyword: &str) -> String {
    format!("`{keyword}`: all jobs together have more than {MAX_ITEMS} list items")
}

enum Overflow {
    Depth,
    Count,
}

fn flatten_into(node: &Node, depth: usize, left: &mut usize, out: &mut Vec<Node>) -> Result<(), Overflow> {
    *left = left.checked_sub(1).ok_or(Overflow::Count)?;
    let Some(items) = node.list() else {
        out.push(node.clone());
        return Ok(());
    };
    if depth > MAX_LIST_DEPTH {
        return Err(Overflow::Depth);
    }
    items.iter().try_for_each(|item| flatten_into(item, depth + 1, left, out))
}
