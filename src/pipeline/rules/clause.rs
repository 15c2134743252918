//! The condition of a rule: `if`, `changes`, `exists`. All given parts must hold.

use std::sync::Arc;

use crate::pipeline::context::Context;
use crate::pipeline::problem::{Class, Reported};
use crate::pipeline::request::{Base, SourceError, SourceTree};
use crate::pipeline::suggest::did_you_mean;
use crate::pipeline::syntax::{Node, Origin};
use crate::pipeline::variable_references::{collect_names, has_reference};
use crate::pipeline::variable_view::VariableView;

use super::expression::Expression;
use super::files::PathListKind;
use super::path_pattern::PathPattern;

/// The number of patterns that a list may have.
const MAX_PATTERNS: usize = 50;

/// A condition. Without any part, it holds.
#[derive(Clone, Debug, Default)]
pub struct Clause {
    condition: Option<Arc<Expression>>,
    changes: Option<Changes>,
    exists: Option<Exists>,
}

/// `changes`
#[derive(Clone, Debug)]
pub struct Changes {
    paths: PathPatterns,
    compare_to: Option<Node>,
}

/// `exists`
#[derive(Clone, Debug)]
struct Exists {
    paths: PathPatterns,
    project: Option<Node>,
    reference: Option<Arc<str>>,
}

/// The patterns of `changes` or `exists`.
#[derive(Clone, Debug)]
enum PathPatterns {
    Globs(Arc<Vec<Arc<str>>>),
    Regexp {
        text: Arc<str>,
        at: Origin,
        /// `None` if the text contains variables; it is compiled after they are expanded.
        compiled: Option<PathPattern>,
    },
}

/// The owner of a rule, for messages.
#[derive(Clone, Copy)]
pub struct RuleOwner<'a> {
    /// The job; `None` for rules of the workflow or an include.
    pub job: Option<&'a Arc<str>>,
    /// `rules`, `workflow:rules`, `include:rules`, …
    pub keyword: &'a str,
}

impl Clause {
    /// Reads the condition of a rule. `None`: there is a problem, which is already reported.
    pub fn read(rule: &Node, owner: RuleOwner<'_>, context: &mut Context<'_>) -> Option<Self> {
        let mut clause = Self::default();
        if let Some(node) = rule.get("if") {
            clause.condition = Some(read_if(node, owner, context)?);
        }
        if let Some(node) = rule.get("changes") {
            clause.changes = Some(Changes::read(node, owner, context)?);
        }
        if let Some(node) = rule.get("exists") {
            clause.exists = Some(read_exists(node, owner, context)?);
        }
        Some(clause)
    }

    /// Why the condition holds; `Ok(None)`: it does not hold.
    pub fn match_reasons(
        &self,
        view: &VariableView<'_>,
        tree: &SourceTree,
        owner: RuleOwner<'_>,
        context: &mut Context<'_>,
    ) -> Result<Option<Reasons>, Reported> {
        let mut reasons = Reasons::default();
        if let Some(condition) = &self.condition {
            if !condition.holds(view) {
                return Ok(None);
            }
            reasons.condition = Some(Arc::clone(condition));
        }
        if let Some(changes) = &self.changes {
            match changes.match_reason(view, owner, context)? {
                Some(why) => reasons.files.push(why),
                None => return Ok(None),
            }
        }
        if let Some(exists) = &self.exists {
            match exists.match_reason(view, tree, owner, context)? {
                Some(why) => reasons.files.push(why),
                None => return Ok(None),
            }
        }
        Ok(Some(reasons))
    }
}

/// Why a condition holds.
#[derive(Clone, Debug, Default)]
pub struct Reasons {
    condition: Option<Arc<Expression>>,
    files: Vec<String>,
}

impl Reasons {
    /// The reasons as text, with the values of variables.
    pub fn explain(&self, view: &VariableView<'_>) -> String {
        let condition = self.condition.iter().map(|condition| condition.explain(view));
        let reasons: Vec<String> = condition.chain(self.files.iter().cloned()).collect();
        if reasons.is_empty() { "it has no condition".to_owned() } else { reasons.join("; ") }
    }
}

/// Reads an expression, which must be text.
pub fn read_if(node: &Node, owner: RuleOwner<'_>, context: &mut Context<'_>) -> Option<Arc<Expression>> {
    let keyword = owner.keyword;
    let Some(text) = node.text() else {
        let message = format!("`{keyword}:if` takes an expression as text, not {}", node.kind());
        context.error(Class::IfSyntax, node.at, owner.job, message);
        return None;
    };
    match context.expression(text) {
        Ok(expression) => Some(expression),
        Err(why) => {
            let message = format!("`{keyword}:if: {text}` cannot be read: {why}");
            context.error(Class::IfSyntax, node.at, owner.job, message);
            None
        }
    }
}

impl PathPatterns {
    fn read(node: &Node, keyword: &str, owner: RuleOwner<'_>, context: &mut Context<'_>) -> Option<Self> {
        // As on GitLab, `exists` also takes a single path, and neither keyword takes lists inside the list.
        let texts = match node.text().filter(|_| keyword == "exists") {
            Some(path) => Some(vec![Arc::clone(path)]),
            None => context.flat_texts(node, keyword, owner.job),
        };
        let valid = texts.filter(|texts| texts.len() <= MAX_PATTERNS);
        if valid.is_none() {
            let message = format!("`{}:{keyword}` takes a flat list of up to {MAX_PATTERNS} paths", owner.keyword);
            context.error(Class::BadValue, node.at, owner.job, message);
        }
        valid.map(|texts| Self::Globs(Arc::new(texts)))
    }

    /// Reads `paths` or `regexp` of a mapping.
    fn read_mapping(node: &Node, keyword: &str, owner: RuleOwner<'_>, context: &mut Context<'_>) -> Option<Self> {
        match (node.get("paths"), node.get("regexp")) {
            (Some(paths), None) => Self::read(paths, &format!("{keyword}:paths"), owner, context),
            (None, Some(regexp)) => {
                let text = regexp.text().cloned().unwrap_or_default();
                let mut names = Vec::new();
                collect_names(&text, &mut names);
                let compiled = match names.is_empty() {
                    true => Some(compile(&text, regexp.at, keyword, owner, context)?),
                    false => None,
                };
                Some(Self::Regexp { text, at: regexp.at, compiled })
            }
            _ => {
                let message = format!("`{}:{keyword}` must contain either `paths` or `regexp`", owner.keyword);
                context.error(Class::BadValue, node.at, owner.job, message);
                None
            }
        }
    }

    /// The first match, as an explanation.
    fn find(
        &self,
        paths: &Arc<Vec<String>>,
        kind: PathListKind,
        view: &VariableView<'_>,
        owner: RuleOwner<'_>,
        context: &mut Context<'_>,
    ) -> Result<Option<String>, Reported> {
        match self {
            Self::Globs(globs) => {
                let expanded: Vec<Arc<str>> = globs.iter().map(|glob| expand(glob, view)).collect();
                Ok(context.file_lists.find(&expanded, paths, kind))
            }
            Self::Regexp { text, at, compiled } => {
                let pattern = match compiled {
                    Some(pattern) => pattern.clone(),
                    None => compile(&view.expand_known(text), *at, kind.keyword(), owner, context).ok_or(Reported)?,
                };
                let path = paths.iter().find(|path| pattern.is_match(path));
                Ok(path.map(|path| format!("{} {path} ({text})", kind.word())))
            }
        }
    }
}

/// Compiles a regular expression for paths. `None`: it cannot be used, which is reported.
fn compile(
    text: &str,
    at: Origin,
    keyword: &str,
    owner: RuleOwner<'_>,
    context: &mut Context<'_>,
) -> Option<PathPattern> {
    match PathPattern::compile(text) {
        Ok(pattern) => Some(pattern),
        Err(why) => {
            let message = format!("`{}:{keyword}:regexp` cannot be used: {why}", owner.keyword);
            context.error(Class::BadValue, at, owner.job, message);
            None
        }
    }
}

fn expand(text: &Arc<str>, view: &VariableView<'_>) -> Arc<str> {
    if has_reference(text) { view.expand_known(text).into() } else { Arc::clone(text) }
}

/// Reports unknown keys. `None`: there is an unknown key, probably a misspelled one, so that the caller does not report
/// a missing key as well.
fn check_keys(
    node: &Node,
    known: &[&str],
    keyword: &str,
    owner: RuleOwner<'_>,
    context: &mut Context<'_>,
) -> Option<()> {
    let mut sound = Some(());
    for (key, entry) in node.mapping().into_iter().flat_map(|mapping| mapping.iter()) {
        if !known.contains(&&**key) {
            let message = format!("unknown keyword `{}:{keyword}:{key}`{}", owner.keyword, did_you_mean(key, known));
            sound = sound.and(context.report.unknown_keyword_of(entry.key_at, owner.job, message));
        }
    }
    sound
}

impl Changes {
    /// Reads `changes`, a list or a mapping.
    pub fn read(node: &Node, owner: RuleOwner<'_>, context: &mut Context<'_>) -> Option<Self> {
        if node.mapping().is_none() {
            return Some(Self { paths: PathPatterns::read(node, "changes", owner, context)?, compare_to: None });
        }
        check_keys(node, &["paths", "regexp", "compare_to"], "changes", owner, context)?;
        let paths = PathPatterns::read_mapping(node, "changes", owner, context)?;
        let compare_to = node.get("compare_to").cloned();
        if let Some(node) = compare_to.as_ref().filter(|node| node.text().is_none()) {
            let message = format!("`{}:changes:compare_to` takes a ref, not {}", owner.keyword, node.kind());
            context.error(Class::CompareTo, node.at, owner.job, message);
            return None;
        }
        Some(Self { paths, compare_to })
    }

    /// Why `changes` holds; `Ok(None)`: it does not hold.
    pub fn match_reason(
        &self,
        view: &VariableView<'_>,
        owner: RuleOwner<'_>,
        context: &mut Context<'_>,
    ) -> Result<Option<String>, Reported> {
        let base = match &self.compare_to {
            Some(node) => Base::MergeBase(view.expand_known(node.text().map_or("", |text| text))),
            None => match context.base_of_pipeline() {
                Some(base) => base,
                None => {
                    return Ok(Some("there is no commit to compare with, so every file counts as changed".to_owned()));
                }
            },
        };
        let paths = match context.file_lists.changed(&base) {
            Ok(paths) => paths,
            Err(error) => {
                let (keyword, at) = match &self.compare_to {
                    Some(node) => ("changes:compare_to", node.at),
                    None => ("changes", Origin::default()),
                };
                let reference = match &base {
                    Base::MergeBase(reference) | Base::Before(reference) => reference,
                };
                let why = match error {
                    SourceError::Missing(why) | SourceError::Failed(why) => why,
                };
                let message =
                    format!("`{}:{keyword}`: the changes since `{reference}` cannot be listed: {why}", owner.keyword);
                context.error(Class::CompareTo, at, owner.job, message);
                return Err(Reported);
            }
        };
        self.paths.find(&paths, PathListKind::Changed, view, owner, context)
    }
}

fn read_exists(node: &Node, owner: RuleOwner<'_>, context: &mut Context<'_>) -> Option<Exists> {
    if node.mapping().is_none() {
        let paths = PathPatterns::read(node, "exists", owner, context)?;
        return Some(Exists { paths, project: None, reference: None });
    }
    check_keys(node, &["paths", "regexp", "project", "ref"], "exists", owner, context)?;
    let paths = PathPatterns::read_mapping(node, "exists", owner, context)?;
    let text = |key: &str| node.get(key).and_then(Node::printed);
    if let Some(project) = node.get("project").filter(|project| project.text().is_none()) {
        let message = format!("`{}:exists:project` takes the path of a project, not {}", owner.keyword, project.kind());
        context.error(Class::BadValue, project.at, owner.job, message);
        return None;
    }
    if node.get("ref").is_some() && node.get("project").is_none() {
        let message = format!("`{}:exists:ref` needs `project`", owner.keyword);
        context.error(Class::BadValue, node.at, owner.job, message);
        return None;
    }
    Some(Exists { paths, project: node.get("project").cloned(), reference: text("ref") })
}

impl Exists {
    fn match_reason(
        &self,
        view: &VariableView<'_>,
        tree: &SourceTree,
        owner: RuleOwner<'_>,
        context: &mut Context<'_>,
    ) -> Result<Option<String>, Reported> {
        let paths = match &self.project {
            None => context.file_lists.all(tree),
            Some(node) => {
                let project = view.expand_known(&node.printed().unwrap_or_default());
                let reference = self.reference.as_ref().map(|reference| view.expand_known(reference));
                let tree = context.request.sources.project(&project, reference.as_deref());
                tree.and_then(|tree| context.file_lists.all(&tree))
            }
        };
        match paths {
            Ok(paths) => self.paths.find(&paths, PathListKind::Existing, view, owner, context),
            Err(SourceError::Missing(why) | SourceError::Failed(why)) => {
                let at = self.project.as_ref().map_or(Origin::default(), |node| node.at);
                let message = format!("`{}:exists`: the files cannot be listed: {why}", owner.keyword);
                context.error(Class::IncludeFailed, at, owner.job, message);
                Err(Reported)
            }
        }
    }
}

impl Context<'_> {
    /// The base for `changes` without `compare_to`. `None`: there is no base, so every file counts as changed.
    fn base_of_pipeline(&self) -> Option<Base> {
        if let Some(merge_request) = &self.request.source.merge_request {
            return Some(Base::MergeBase(merge_request.target.clone()));
        }
        let push = self.request.source.name == "push" && self.request.facts.tag.is_none();
        self.request.facts.before.clone().filter(|_| push).map(Base::Before)
    }
}
