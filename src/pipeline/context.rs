//! What all steps of planning share.

use std::collections::HashMap;
use std::sync::Arc;

use super::predefined::{self, Project};
use super::problem::{Class, Report};
use super::request::Request;
use super::rules::expression::Expression;
use super::rules::files::Files;
use super::syntax::{Budget, Node, Origin};
use super::variables::{Scope, View};

/// How deep lists of commands, rules and needs may nest.
const LIST_DEPTH: usize = 10;

/// How many items all lists of all jobs may have together.
const ITEMS_LIMIT: usize = 2_000_000;

/// What the compiled patterns of all expressions may take together.
const PATTERNS_LIMIT: usize = 32 << 20;

/// The state of planning.
pub struct Context<'a> {
    /// What is asked.
    pub request: &'a Request<'a>,
    /// Where the project is.
    pub project: Project,
    /// Variables that do not come from the configuration.
    pub scope: Arc<Scope>,
    /// Problems and warnings.
    pub report: Report,
    /// What files may hold.
    pub budget: Budget,
    /// Lists of files.
    pub files: Files<'a>,
    expressions: HashMap<Arc<str>, Result<Arc<Expression>, String>>,
    items: usize,
    pattern_bytes: usize,
}

impl<'a> Context<'a> {
    /// Begins.
    pub fn new(request: &'a Request<'a>) -> Self {
        let project = Project::new(request.facts.remote.as_deref(), &request.facts.directory);
        let predefined = predefined::of_pipeline(request, &project);
        let scope = Scope::new(predefined, request.project_variables.clone(), request.pipeline_variables.clone());
        Self {
            request,
            project,
            scope: Arc::new(scope),
            report: Report::new(request.lax),
            budget: Budget::default(),
            files: Files::new(request.sources),
            expressions: HashMap::new(),
            items: ITEMS_LIMIT,
            pattern_bytes: 0,
        }
    }

    /// Reads an expression; a text that was read before costs nothing.
    pub fn expression(&mut self, text: &Arc<str>) -> Result<Arc<Expression>, String> {
        if let Some(done) = self.expressions.get(text) {
            return done.clone();
        }
        let was_exhausted = self.pattern_bytes > PATTERNS_LIMIT;
        // Once it is told that patterns are too large, the others are not even compiled.
        let mut result = if was_exhausted {
            Expression::parse(&"null".into()).map(Arc::new)
        } else {
            Expression::parse(text).map(Arc::new)
        };
        self.pattern_bytes += result.as_ref().map_or(0, |expression| expression.size());
        if self.pattern_bytes > PATTERNS_LIMIT && !was_exhausted {
            result = Err("the patterns of all expressions together are too large".to_owned());
        }
        self.expressions.insert(Arc::clone(text), result.clone());
        result
    }

    /// The items of nested lists in their order. Nulls are left out. `None`: too deep or too many, and reported.
    pub fn flatten(&mut self, node: &Node, keyword: &str, job: Option<&Arc<str>>) -> Option<Vec<Node>> {
        let mut items = Vec::new();
        let why = match flatten_into(node, 0, &mut self.items, &mut items) {
            Ok(()) => return Some(items),
            Err(Overflow::Depth) => {
                let message = format!("`{keyword}` nests lists deeper than {LIST_DEPTH} levels");
                (Class::BadValue, message)
            }
            Err(Overflow::Count) => {
                (Class::TooBig, format!("`{keyword}`: all jobs together have more than {ITEMS_LIMIT} list items"))
            }
        };
        self.report.problem(why.0, node.at, job, why.1);
        None
    }

    /// Variables before any job is known.
    pub fn view<'s>(scope: &'s Scope) -> View<'s> {
        View { scope, yaml: &[], defaults: &[], job: &[] }
    }

    /// A problem of a job, or of the file when there is none.
    pub fn error(&mut self, class: Class, at: Origin, job: Option<&Arc<str>>, message: impl Into<String>) {
        self.report.problem(class, at, job, message.into());
    }
}

enum Overflow {
    Depth,
    Count,
}

fn flatten_into(node: &Node, depth: usize, left: &mut usize, out: &mut Vec<Node>) -> Result<(), Overflow> {
    *left = left.checked_sub(1).ok_or(Overflow::Count)?;
    let Some(items) = node.list() else {
        if !node.is_null() {
            out.push(node.clone());
        }
        return Ok(());
    };
    if depth > LIST_DEPTH {
        return Err(Overflow::Depth);
    }
    items.iter().try_for_each(|item| flatten_into(item, depth + 1, left, out))
}
