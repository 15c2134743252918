//! Reads and evaluates `only` and `except`.

use std::sync::Arc;

use super::clause::{Changes, RuleOwner, read_if};
use super::expression::Expression;
use crate::pipeline::context::Context;
use crate::pipeline::draft::reader::KeywordReader;
use crate::pipeline::pattern::RegexPattern;
use crate::pipeline::problem::{Class, Reported};
use crate::pipeline::syntax::Node;
use crate::pipeline::variable_view::VariableView;

/// `only` or `except`.
#[derive(Clone, Debug, Default)]
pub struct OnlyExcept {
    refs: Option<Vec<Arc<str>>>,
    variables: Option<Vec<Arc<Expression>>>,
    changes: Option<Changes>,
    /// `kubernetes: active`
    kubernetes: bool,
}

/// The result of a part of `only` or `except`: `refs`, `variables`, `changes` or `kubernetes`.
pub struct PolicyPart {
    pub holds: bool,
    pub why: String,
}

impl PolicyPart {
    fn holding(why: impl Into<String>) -> Self {
        Self { holds: true, why: why.into() }
    }

    fn failing(why: impl Into<String>) -> Self {
        Self { holds: false, why: why.into() }
    }
}

impl KeywordReader<'_, '_> {
    /// Reads `only` or `except`.
    pub fn policy(&mut self, node: &Node, keyword: &str) -> Option<OnlyExcept> {
        if node.mapping().is_none() {
            return Some(OnlyExcept { refs: Some(self.refs(node, keyword)?), ..OnlyExcept::default() });
        }
        if node.mapping()?.is_empty() {
            return self.bad_value(node, keyword, "a list of refs, or a mapping with at least one keyword");
        }
        self.check_mapping(node, keyword, &["refs", "variables", "changes", "kubernetes"])?;
        let mut policy = OnlyExcept::default();
        let owner = RuleOwner { job: self.job, keyword };
        if let Some(refs) = node.get("refs") {
            policy.refs = Some(self.refs(refs, &format!("{keyword}:refs"))?);
        }
        if let Some(variables) = node.get("variables") {
            let keyword_path = format!("{keyword}:variables");
            self.flat_texts(variables, &keyword_path)?;
            let items = self.context.flatten(variables, &keyword_path, self.job)?;
            let owner = RuleOwner { job: self.job, keyword: &keyword_path };
            let read: Option<Vec<_>> = items.iter().map(|item| read_if(item, owner, self.context)).collect();
            policy.variables = Some(read?);
        }
        if let Some(changes) = node.get("changes") {
            policy.changes = Some(Changes::read(changes, owner, self.context)?);
        }
        if let Some(kubernetes) = node.get("kubernetes") {
            self.one_of(kubernetes, &format!("{keyword}:kubernetes"), &["active"])?;
            policy.kubernetes = true;
        }
        Some(policy)
    }

    /// Reads names of refs and patterns.
    fn refs(&mut self, node: &Node, keyword: &str) -> Option<Vec<Arc<str>>> {
        let refs = self.flat_texts(node, keyword)?;
        for pattern in &refs {
            let (name, _) = split_project(pattern);
            if let Some(Err(why)) = RegexPattern::between_slashes(name) {
                let message = format!("`{keyword}`: the pattern `{pattern}` cannot be used: {why}");
                return self.error(Class::BadValue, node.at, message);
            }
        }
        Some(refs)
    }
}

/// Splits `name@path`.
fn split_project(pattern: &str) -> (&str, Option<&str>) {
    match pattern.rsplit_once('@').filter(|_| !pattern.ends_with('/')) {
        Some((name, path)) => (name, Some(path)),
        None => (pattern, None),
    }
}

impl OnlyExcept {
    /// The policy of a job without `only`: branches and tags, but no merge requests.
    pub fn branches_and_tags() -> Self {
        Self { refs: Some(vec!["branches".into(), "tags".into()]), ..Self::default() }
    }

    /// `only` without refs uses the refs of a job without a policy.
    pub fn with_default_refs(mut self) -> Self {
        self.refs = self.refs.or(Self::branches_and_tags().refs);
        self
    }

    /// Evaluates each part that is given.
    pub fn evaluate_parts(
        &self,
        view: &VariableView<'_>,
        owner: RuleOwner<'_>,
        context: &mut Context<'_>,
    ) -> Result<Vec<PolicyPart>, Reported> {
        let mut parts = Vec::new();
        if let Some(refs) = &self.refs {
            let found = refs.iter().find(|pattern| matches_ref(pattern, context));
            let reference = context.reference().to_owned();
            parts.push(match found {
                Some(pattern) => PolicyPart::holding(format!("ref `{pattern}` matches {reference}")),
                None => PolicyPart::failing(format!("no ref of {} matches {reference}", refs.join(", "))),
            });
        }
        if let Some(variables) = &self.variables {
            let found = variables.iter().find(|expression| expression.holds(view));
            parts.push(match found {
                Some(expression) => PolicyPart::holding(expression.explain(view)),
                None => PolicyPart::failing("no expression of `variables` holds"),
            });
        }
        if let Some(changes) = &self.changes {
            parts.push(match changes.match_reason(view, owner, context)? {
                Some(why) => PolicyPart::holding(why),
                None => PolicyPart::failing("no file matches `changes`"),
            });
        }
        if self.kubernetes {
            parts.push(PolicyPart::failing("a local run has no Kubernetes cluster"));
        }
        Ok(parts)
    }
}

impl Context<'_> {
    fn reference(&self) -> &str {
        self.shared_variables.predefined.get("CI_COMMIT_REF_NAME").map_or("", |name| name)
    }
}

fn matches_ref(pattern: &str, context: &Context<'_>) -> bool {
    let (pattern, path) = split_project(pattern);
    if path.is_some_and(|path| path != context.project.path) {
        return false;
    }
    let request = context.request;
    let merge_request = request.source.merge_request.is_some();
    let tag = request.facts.tag.is_some() && !merge_request;
    let branch = !tag && !merge_request;
    let source = request.source.name.strip_suffix("_event").unwrap_or(&request.source.name);
    if (tag && pattern == "tags")
        || (branch && pattern == "branches")
        || pattern == source
        || is_plural(pattern, source)
    {
        return true;
    }
    if merge_request {
        return false;
    }
    match RegexPattern::between_slashes(pattern) {
        Some(Ok(compiled)) => compiled.is_match(context.reference()),
        _ => pattern == context.reference(),
    }
}

fn is_plural(plural: &str, word: &str) -> bool {
    let ending = plural.strip_prefix(word);
    ending == Some(if word.ends_with("sh") { "es" } else { "s" })
}
