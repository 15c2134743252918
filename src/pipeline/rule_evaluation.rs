//! Evaluates the rules of the workflow and of a job, and explains the result.

use std::sync::Arc;

use super::configuration::Configuration;
use super::context::Context;
use super::draft::Draft;
use super::draft::scheduling::RuleWhen;
use super::draft::variables::overlay;
use super::plan::{Decision, Variable};
use super::problem::Reported;
use super::request::SourceTree;
use super::rules::clause::{Reasons, RuleOwner};
use super::rules::policy::OnlyExcept;
use super::rules::rule::{self, Rule};
use super::variable_view::VariableView;

/// The decision of `workflow:rules`.
pub enum WorkflowResult {
    Created(Workflow),
    /// GitLab would create no pipeline, for this reason.
    NotCreated(String),
}

/// The values of `workflow` that apply to this pipeline.
pub struct Workflow {
    /// Default variables; those of the matching rule override the top-level ones.
    pub variables: Vec<Variable>,
    pub cancel_on_job_failure: bool,
    /// Whether the configuration has `workflow:rules`.
    has_rules: bool,
}

/// Evaluates `workflow:rules`.
pub fn evaluate_workflow(configuration: &Configuration, context: &mut Context<'_>) -> Result<WorkflowResult, Reported> {
    let mut workflow = Workflow {
        variables: configuration.variables.clone(),
        cancel_on_job_failure: configuration.cancel_on_job_failure,
        has_rules: configuration.rules.is_some(),
    };
    let Some(rules) = &configuration.rules else { return Ok(WorkflowResult::Created(workflow)) };
    let shared = Arc::clone(&context.shared_variables);
    let view = VariableView::of_pipeline(&shared, &configuration.variables);
    let owner = RuleOwner { job: None, keyword: "workflow:rules" };
    let Some(matched) = first_match(rules, &view, owner, context)? else {
        return Ok(WorkflowResult::NotCreated("no rule of `workflow:rules` matches".to_owned()));
    };
    let rule = matched.rule;
    if rule.when == Some(RuleWhen::Never) {
        let why = matched.reasons.explain(&view);
        let why = format!("rule {} of `workflow:rules` has `when: never`: {why}", matched.number);
        return Ok(WorkflowResult::NotCreated(why));
    }
    overlay(&mut workflow.variables, &rule.variables);
    workflow.cancel_on_job_failure = rule.cancel_on_job_failure.unwrap_or(workflow.cancel_on_job_failure);
    Ok(WorkflowResult::Created(workflow))
}

/// The first rule whose condition holds.
struct MatchedRule<'r> {
    /// The number of the rule, from 1.
    number: usize,
    rule: &'r Rule,
    reasons: Reasons,
}

fn first_match<'r>(
    rules: &'r [Rule],
    view: &VariableView<'_>,
    owner: RuleOwner<'_>,
    context: &mut Context<'_>,
) -> Result<Option<MatchedRule<'r>>, Reported> {
    for (number, rule) in (1..).zip(rules) {
        if let Some(reasons) = rule.clause.match_reasons(view, &SourceTree::Project, owner, context)? {
            return Ok(Some(MatchedRule { number, rule, reasons }));
        }
    }
    Ok(None)
}

/// The decision of the rules of a job.
pub enum RuleResult<'r> {
    Included {
        decision: Decision,
        /// The matching rule, whose values override those of the job.
        rule: Option<&'r Rule>,
    },
    /// The reason why the job is excluded.
    Excluded(String),
}

/// Evaluates the rules of a job, or its `only` and `except`.
pub fn evaluate_rules<'d>(
    draft: &'d Draft,
    view: &VariableView<'_>,
    workflow: &Workflow,
    context: &mut Context<'_>,
) -> Result<RuleResult<'d>, Reported> {
    let Some(rules) = &draft.rules else { return evaluate_only_except(draft, view, workflow, context) };
    let owner = RuleOwner { job: Some(&draft.job.name), keyword: "rules" };
    let Some(MatchedRule { number, rule, reasons }) = first_match(rules, view, owner, context)? else {
        let count = rules.len();
        let why = if count == 0 { "`rules` is empty".to_owned() } else { format!("none of its {count} rules matches") };
        return Ok(RuleResult::Excluded(why));
    };
    if rule.when == Some(RuleWhen::Never) {
        let why = reasons.explain(view);
        return Ok(RuleResult::Excluded(format!("rule {number} says {}: {why}", rule::when_word(rule))));
    }
    let why = if context.request.explains { reasons.explain(view) } else { String::new() };
    Ok(RuleResult::Included { decision: Decision::Rule { number, at: rule.at, why }, rule: Some(rule) })
}

fn evaluate_only_except<'d>(
    draft: &Draft,
    view: &VariableView<'_>,
    workflow: &Workflow,
    context: &mut Context<'_>,
) -> Result<RuleResult<'d>, Reported> {
    let job = Some(&draft.job.name);
    let only = match &draft.only {
        Some(only) => Some(only.clone().with_default_refs()),
        None if workflow.has_rules => None,
        None => Some(OnlyExcept::branches_and_tags()),
    };
    let mut reasons = Vec::new();
    if let Some(only) = only {
        for part in only.evaluate_parts(view, RuleOwner { job, keyword: "only" }, context)? {
            if !part.holds {
                return Ok(RuleResult::Excluded(format!("`only`: {}", part.why)));
            }
            reasons.push(part.why);
        }
    }
    if let Some(except) = &draft.except {
        let parts = except.evaluate_parts(view, RuleOwner { job, keyword: "except" }, context)?;
        if let Some(part) = parts.into_iter().find(|part| part.holds) {
            return Ok(RuleResult::Excluded(format!("`except`: {}", part.why)));
        }
    }
    let decision = match draft.only.is_none() && draft.except.is_none() {
        true => Decision::NoRules,
        false => Decision::OnlyExcept(reasons.join("; ")),
    };
    Ok(RuleResult::Included { decision, rule: None })
}
