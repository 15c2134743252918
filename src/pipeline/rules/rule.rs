//! Reads `rules` of a job, and `workflow:rules`.

use super::clause::{Clause, RuleOwner};
use crate::pipeline::draft::needs::Needs;
use crate::pipeline::draft::reader::KeywordReader;
use crate::pipeline::draft::scheduling::RuleWhen;
use crate::pipeline::plan::{AllowFailure, Delay, Variable, VariableLevel, When};
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::{Node, Origin};

const JOB_KEYS: [&str; 9] =
    ["if", "changes", "exists", "when", "start_in", "allow_failure", "variables", "needs", "interruptible"];

const WORKFLOW_KEYS: [&str; 6] = ["if", "changes", "exists", "when", "variables", "auto_cancel"];

/// A rule: a condition, and the values that it overrides.
#[derive(Clone, Debug)]
pub struct Rule {
    pub at: Origin,
    pub clause: Clause,
    pub when: Option<RuleWhen>,
    pub start_in: Option<Delay>,
    pub allow_failure: Option<AllowFailure>,
    pub variables: Vec<Variable>,
    pub needs: Option<Needs>,
    pub interruptible: Option<bool>,
    /// Whether `auto_cancel:on_job_failure` is `all`.
    pub cancel_on_job_failure: Option<bool>,
}

impl Rule {
    fn new(at: Origin, clause: Clause) -> Self {
        Self {
            at,
            clause,
            when: None,
            start_in: None,
            allow_failure: None,
            variables: Vec::new(),
            needs: None,
            interruptible: None,
            cancel_on_job_failure: None,
        }
    }
}

impl KeywordReader<'_, '_> {
    /// Reads the rules of a job.
    pub fn rules(&mut self, node: &Node) -> Option<Vec<Rule>> {
        self.rules_with(node, "rules", &JOB_KEYS, VariableLevel::Rule)
    }

    /// Reads `workflow:rules`.
    pub fn workflow_rules(&mut self, node: &Node) -> Option<Vec<Rule>> {
        self.rules_with(node, "workflow:rules", &WORKFLOW_KEYS, VariableLevel::Workflow)
    }

    fn rules_with(&mut self, node: &Node, keyword: &str, keys: &[&str], level: VariableLevel) -> Option<Vec<Rule>> {
        if node.list().is_none() {
            return self.bad_value(node, keyword, "a list of rules");
        }
        let items = self.context.flatten(node, keyword, self.job)?;
        if items.is_empty() {
            return self.bad_value(node, keyword, "at least one rule");
        }
        // All rules are read, so that each reports its problem.
        let rules: Vec<Option<Rule>> = items.iter().map(|item| self.rule(item, keyword, keys, level)).collect();
        rules.into_iter().collect()
    }

    fn rule(&mut self, item: &Node, keyword: &str, keys: &[&str], level: VariableLevel) -> Option<Rule> {
        self.check_mapping(item, keyword, keys)?;
        if item.mapping()?.is_empty() {
            return self.bad_value(item, keyword, "rules with at least one keyword");
        }
        let clause = Clause::read(item, RuleOwner { job: self.job, keyword }, self.context)?;
        let mut rule = Rule::new(item.at, clause);
        let keyword_path = |key: &str| format!("{keyword}:{key}");
        if let Some(node) = item.get("when") {
            rule.when = Some(match level {
                VariableLevel::Workflow => self.workflow_when(node, &keyword_path("when"))?,
                _ => self.rule_when(node, &keyword_path("when"))?,
            });
        }
        rule.start_in = self.rule_start_in(item, keyword, rule.when)?;
        if let Some(node) = item.get("allow_failure") {
            let allowed = self.boolean(node, &keyword_path("allow_failure"))?;
            rule.allow_failure = Some(if allowed { AllowFailure::Yes } else { AllowFailure::No });
        }
        if let Some(node) = item.get("variables") {
            rule.variables = self.variables(node, level, &keyword_path("variables"));
        }
        if let Some(node) = item.get("needs") {
            rule.needs = Some(self.needs(node, &keyword_path("needs"))?);
        }
        if let Some(node) = item.get("interruptible") {
            rule.interruptible = Some(self.boolean(node, &keyword_path("interruptible"))?);
        }
        if let Some(node) = item.get("auto_cancel") {
            rule.cancel_on_job_failure = self.auto_cancel(node, &keyword_path("auto_cancel"))?;
        }
        Some(rule)
    }

    /// Reads `when` of a rule of the workflow.
    fn workflow_when(&mut self, node: &Node, keyword: &str) -> Option<RuleWhen> {
        match node.text().map(|text| &**text) {
            Some("always") => Some(RuleWhen::Run(When::Always)),
            Some("never") => Some(RuleWhen::Never),
            _ => {
                let value = node.printed().unwrap_or_else(|| node.kind().into());
                self.error(Class::BadWhen, node.at, format!("`{keyword}` must be always or never, not `{value}`"))
            }
        }
    }

    /// Reads `start_in`, which a rule has if and only if its `when` is `delayed`.
    fn rule_start_in(&mut self, item: &Node, keyword: &str, when: Option<RuleWhen>) -> Option<Option<Delay>> {
        let is_delayed = when == Some(RuleWhen::Run(When::Delayed));
        match item.get("start_in") {
            Some(node) if is_delayed => Some(Some(self.start_in(node, &format!("{keyword}:start_in"))?)),
            Some(node) => {
                let message = format!("`{keyword}:start_in` needs `when: delayed` in the same rule");
                self.error(Class::StartIn, node.at, message)
            }
            None if is_delayed => {
                self.error(Class::StartIn, item.at, format!("`{keyword}`: `when: delayed` needs `start_in`"))
            }
            None => Some(None),
        }
    }

    /// Reads `auto_cancel`: whether the first failed job cancels the pipeline, if given.
    pub fn auto_cancel(&mut self, node: &Node, keyword: &str) -> Option<Option<bool>> {
        self.check_mapping(node, keyword, &["on_new_commit", "on_job_failure"])?;
        if let Some(commit) = node.get("on_new_commit") {
            self.one_of(commit, &format!("{keyword}:on_new_commit"), &["conservative", "interruptible", "none"])?;
            let message = format!("`{keyword}:on_new_commit`: only a GitLab server cancels older pipelines");
            self.context.report.warn(commit.at, None, message);
        }
        Some(match node.get("on_job_failure") {
            Some(failure) => {
                Some(&*self.one_of(failure, &format!("{keyword}:on_job_failure"), &["all", "none"])? == "all")
            }
            None => None,
        })
    }
}

/// The value of `when` in a rule, for explanations.
pub fn when_word(rule: &Rule) -> &'static str {
    match rule.when {
        Some(RuleWhen::Never) => "never",
        Some(RuleWhen::Run(when)) => when.word(),
        None => "no `when` of its own",
    }
}
