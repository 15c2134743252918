//! Evaluates `workflow:rules` and the rules of each job: turns expanded jobs into the jobs of the plan.

use std::sync::Arc;

use super::context::Context;
use super::cycle::{check_given_variables, check_variables};
use super::draft::reader::KeywordReader;
use super::draft::storage::cache_keys;
use super::draft::variables::overlay;
use super::draft::{Draft, Inherit};
use super::env;
use super::expand::{self, Expanded, ExpandedJobs};
use super::hash::{Index, Map, Set};
use super::plan::{Absent, AllowFailure, Decision, Environment, Job, Need, Variable, When};
use super::predefined::nodes;
use super::problem::{Class, Reported};
use super::request::SourceTree;
use super::root::Root;
use super::rules::clause::{Reasons, RuleOwner};
use super::rules::policy::OnlyExcept;
use super::rules::rule::{self, Rule};
use super::slug::{environment_slug, environment_tier, slug};
use super::syntax::{Node, Origin};
use super::view::View;

/// The number of variables that all jobs together may have.
const MAX_VARIABLES: usize = 2_000_000;

/// The result of the workflow rules.
pub struct Workflow {
    /// Default variables; those of the matching rule override the top-level ones.
    pub variables: Vec<Variable>,
    /// Whether the first failed job cancels the pipeline.
    pub cancel_on_job_failure: bool,
}

/// Evaluates `workflow:rules`. `Ok(Err(why))`: GitLab would create no pipeline.
pub fn workflow(root: &Root, context: &mut Context<'_>) -> Result<Result<Workflow, String>, Reported> {
    let mut workflow =
        Workflow { variables: root.variables.clone(), cancel_on_job_failure: root.cancel_on_job_failure };
    let Some(rules) = &root.rules else { return Ok(Ok(workflow)) };
    let scope = Arc::clone(&context.scope);
    let view = View { scope: &scope, yaml: &[], defaults: &root.variables, job: &[], environment: None };
    let owner = RuleOwner { job: None, keyword: "workflow:rules" };
    match first_match(rules, &view, owner, context)? {
        None => Ok(Err("no rule of `workflow:rules` matches".to_owned())),
        Some((number, rule, reasons)) if rule.when == Some(None) => {
            let why = reasons.explain(&view);
            Ok(Err(format!("rule {number} of `workflow:rules` has `when: never`: {why}")))
        }
        Some((_, rule, _)) => {
            overlay(&mut workflow.variables, &rule.variables);
            workflow.cancel_on_job_failure = rule.cancel_on_job_failure.unwrap_or(workflow.cancel_on_job_failure);
            Ok(Ok(workflow))
        }
    }
}

fn first_match<'r>(
    rules: &'r [Rule],
    view: &View<'_>,
    owner: RuleOwner<'_>,
    context: &mut Context<'_>,
) -> Result<Option<(usize, &'r Rule, Reasons)>, Reported> {
    for (number, rule) in (1..).zip(rules) {
        if let Some(reasons) = rule.clause.holds(view, &SourceTree::Project, owner, context)? {
            return Ok(Some((number, rule, reasons)));
        }
    }
    Ok(None)
}

/// The values that the matching rule overrides in a job.
struct RuleEffects<'r> {
    decision: Decision,
    rule: Option<&'r Rule>,
}

/// The jobs of the pipeline, and the jobs that rules exclude from it.
pub struct Decided {
    /// In the order of the configuration.
    pub jobs: Vec<Job>,
    pub absent: Vec<Absent>,
}

/// Applies rules to all jobs.
pub fn jobs(
    jobs: &ExpandedJobs<'_>,
    workflow: &Workflow,
    has_workflow_rules: bool,
    context: &mut Context<'_>,
) -> Decided {
    let mut decided = Decided { jobs: Vec::with_capacity(jobs.all.len()), absent: Vec::new() };
    check_given_variables(context);
    let mut total = 0;
    for expanded in jobs.all.values() {
        let draft = jobs.draft(expanded);
        let inherited: Option<Vec<Variable>> = match &draft.inherit_variables {
            Inherit::All => None,
            inherit => {
                Some(workflow.variables.iter().filter(|variable| inherit.takes(&variable.key)).cloned().collect())
            }
        };
        let defaults = inherited.as_deref().unwrap_or(&workflow.variables);
        let mut predefined = predefined(expanded, draft);
        let mut own = draft.variables.clone();
        overlay(&mut own, &expand::matrix_variables(&expanded.combination, draft.job.at));
        let scope = Arc::clone(&context.scope);
        let name = draft.environment.as_ref().map(|node| {
            let view = View { scope: &scope, yaml: &own, defaults, job: &predefined, environment: None };
            view.expand(&node.get("name").and_then(Node::printed).unwrap_or_default())
        });
        if let (Some(node), Some(name)) = (&draft.environment, &name) {
            predefined.extend(environment_variables(node, name));
        }
        let view = View { scope: &scope, yaml: &own, defaults, job: &predefined, environment: name.as_deref() };
        let Ok(effects) = effects(draft, &view, has_workflow_rules, context) else { continue };
        if let Decision::Left(why) = effects.decision {
            decided.absent.push(Absent { name: Arc::clone(&expanded.name), at: draft.job.at, why });
            continue;
        }
        total += defaults.len() + own.len();
        if total > MAX_VARIABLES {
            let message = format!("all jobs together have more than {MAX_VARIABLES} variables");
            context.error(Class::TooBig, draft.job.at, None, message);
            break;
        }
        let mut variables = defaults.to_vec();
        overlay(&mut variables, &own);
        let job = finish(jobs, expanded, effects, variables, context);
        // Consecutive jobs often have the same variables; one check is enough for them.
        if !decided.jobs.last().is_some_and(|previous| same_variables(previous, &job)) {
            check_variables(&job, &scope, context);
        }
        decided.jobs.push(job);
    }
    merge_absent(&mut decided, jobs);
    decided
}

/// If all jobs of a `parallel` are excluded, lists them once, by their common name.
fn merge_absent(decided: &mut Decided, jobs: &ExpandedJobs<'_>) {
    let mut left: Map<&Arc<str>, usize> = Map::default();
    for absent in &decided.absent {
        let expanded = &jobs.all[&absent.name];
        if expanded.instance.is_some() {
            *left.entry(&jobs.draft(expanded).job.name).or_default() += 1;
        }
    }
    let whole = |expanded: &Expanded| {
        let group = &jobs.draft(expanded).job.name;
        expanded.instance.is_some_and(|instance| left.get(group) == Some(&instance.total))
    };
    let mut merged: Vec<Absent> = Vec::with_capacity(decided.absent.len());
    for absent in &decided.absent {
        let expanded = &jobs.all[&absent.name];
        let name = if whole(expanded) { &jobs.draft(expanded).job.name } else { &absent.name };
        if merged.last().is_none_or(|last| last.name != *name) {
            merged.push(Absent { name: Arc::clone(name), ..absent.clone() });
        }
    }
    decided.absent = merged;
}

/// Predefined variables that rules may refer to.
fn predefined(job: &Expanded, draft: &Draft) -> Vec<(&'static str, Arc<str>)> {
    let mut variables: Vec<(&'static str, Arc<str>)> = vec![
        ("CI_JOB_NAME", Arc::clone(&job.name)),
        ("CI_JOB_NAME_SLUG", slug(&job.name).into()),
        ("CI_JOB_GROUP_NAME", Arc::clone(&draft.job.name)),
        ("CI_JOB_STAGE", Arc::clone(&draft.job.stage)),
    ];
    if matches!(draft.when, Some(When::Manual | When::Delayed)) {
        variables.push(("CI_JOB_MANUAL", "true".into()));
    }
    variables.extend(nodes(job.instance));
    variables
}

/// Predefined variables of an environment that rules may refer to; the URL is as written.
fn environment_variables(node: &Node, name: &str) -> impl Iterator<Item = (&'static str, Arc<str>)> {
    let text = |key: &str| node.get(key).and_then(Node::printed);
    let url = text("url").map(|url| ("CI_ENVIRONMENT_URL", url));
    let variables = [
        ("CI_ENVIRONMENT_NAME", name.into()),
        ("CI_ENVIRONMENT_ACTION", text("action").unwrap_or_else(|| "start".into())),
        ("CI_ENVIRONMENT_TIER", text("deployment_tier").unwrap_or_else(|| environment_tier(name).into())),
    ];
    variables.into_iter().chain(url)
}

fn effects<'d>(
    draft: &'d Draft,
    view: &View<'_>,
    has_workflow_rules: bool,
    context: &mut Context<'_>,
) -> Result<RuleEffects<'d>, Reported> {
    let name = &draft.job.name;
    let Some(rules) = &draft.rules else {
        return by_policy(draft, view, has_workflow_rules, context)
            .map(|decision| RuleEffects { decision, rule: None });
    };
    let owner = RuleOwner { job: Some(name), keyword: "rules" };
    let Some((number, rule, reasons)) = first_match(rules, view, owner, context)? else {
        let count = rules.len();
        let why = if count == 0 { "`rules` is empty".to_owned() } else { format!("none of its {count} rules matches") };
        return Ok(RuleEffects { decision: Decision::Left(why), rule: None });
    };
    let is_left = rule.when == Some(None);
    let why = if is_left || context.request.explains { reasons.explain(view) } else { String::new() };
    let decision = if is_left {
        Decision::Left(format!("rule {number} says {}: {why}", rule::result(rule)))
    } else {
        Decision::Rule { number, at: rule.at, why }
    };
    Ok(RuleEffects { decision, rule: Some(rule) })
}

fn by_policy(
    draft: &Draft,
    view: &View<'_>,
    has_workflow_rules: bool,
    context: &mut Context<'_>,
) -> Result<Decision, Reported> {
    let name = &draft.job.name;
    let only = match &draft.only {
        Some(only) => Some(only.clone().with_default_refs()),
        None if has_workflow_rules => None,
        None => Some(OnlyExcept::branches_and_tags()),
    };
    let mut reasons = Vec::new();
    if let Some(only) = only {
        for (holds, why) in only.parts(view, RuleOwner { job: Some(name), keyword: "only" }, context)? {
            if !holds {
                return Ok(Decision::Left(format!("`only`: {why}")));
            }
            reasons.push(why);
        }
    }
    if let Some(except) = &draft.except {
        let parts = except.parts(view, RuleOwner { job: Some(name), keyword: "except" }, context)?;
        if let Some((_, why)) = parts.into_iter().find(|(holds, _)| *holds) {
            return Ok(Decision::Left(format!("`except`: {why}")));
        }
    }
    if draft.only.is_none() && draft.except.is_none() {
        return Ok(Decision::NoRules);
    }
    Ok(Decision::Only(reasons.join("; ")))
}

fn finish(
    jobs: &ExpandedJobs<'_>,
    expanded: &Expanded,
    effects: RuleEffects<'_>,
    mut variables: Vec<Variable>,
    context: &mut Context<'_>,
) -> Job {
    let draft = jobs.draft(expanded);
    let mut job = draft.job.clone();
    job.name = Arc::clone(&expanded.name);
    job.parallel = expanded.instance;
    job.stage_index = jobs.stage(expanded);
    job.needs.clone_from(&expanded.needs);
    job.dependencies.clone_from(&expanded.dependencies);
    job.when = draft.when.unwrap_or(When::OnSuccess);
    // By default a manual job may fail; `when: manual` of a rule does not change that default.
    let optional = if job.when == When::Manual { AllowFailure::Yes } else { AllowFailure::No };
    job.allow_failure = draft.allow_failure.clone().unwrap_or(optional);
    job.decision = effects.decision;
    if let Some(rule) = effects.rule {
        overlay(&mut variables, &rule.variables);
        if let Some(Some(when)) = rule.when {
            job.when = when;
            job.start_in = None;
        }
        if rule.start_in.is_some() {
            job.start_in.clone_from(&rule.start_in);
        }
        if let Some(allow_failure) = &rule.allow_failure {
            job.allow_failure = allow_failure.clone();
        }
        if let Some(needs) = &rule.needs {
            job.needs = jobs.needs(expanded, needs, context);
        }
        job.interruptible = rule.interruptible.or(job.interruptible);
    }
    job.variables = variables;
    if let Some(caches) = &job.cache {
        let mut reader = KeywordReader { context, job: Some(&job.group) };
        job.cache_keys = cache_keys(caches, &mut reader);
    }
    if let Some(node) = &draft.environment {
        job.environment = Some(environment(node, &job, context));
    }
    job
}

fn environment(node: &Node, job: &Job, context: &Context<'_>) -> Environment {
    let text = |key: &str| node.get(key).and_then(Node::printed);
    let name = env::expand_for_server(&context.scope, job, &text("name").unwrap_or_default());
    let tier = text("deployment_tier").unwrap_or_else(|| environment_tier(&name).into());
    Environment {
        node: node.clone(),
        slug: environment_slug(&name),
        name,
        action: text("action").unwrap_or_else(|| "start".into()),
        tier: tier.to_string(),
        url: text("url"),
    }
}

fn same_variables(a: &Job, b: &Job) -> bool {
    let same = |(a, b): (&Variable, &Variable)| {
        Arc::ptr_eq(&a.value, &b.value) && Arc::ptr_eq(&a.key, &b.key) && a.raw == b.raw
    };
    a.variables.len() == b.variables.len() && a.variables.iter().zip(&b.variables).all(same)
}

/// Checks that the needed jobs are in the pipeline, drops optional needs that are not, and checks for cycles.
pub fn settle_needs(decided: &mut Decided, jobs: &ExpandedJobs<'_>, context: &mut Context<'_>) {
    let present: Set<Arc<str>> = decided.jobs.iter().map(|job| Arc::clone(&job.name)).collect();
    for job in &mut decided.jobs {
        let Some(mut needs) = job.needs.take() else { continue };
        let missing = needs.iter().find(|need| !need.optional && !present.contains(&need.job));
        if let Some(missing) = missing.filter(|missing| jobs.all.contains_key(&missing.job)) {
            let message = format!(
                "`needs` names `{}`, which rules keep out of this pipeline; \
                 make the need `optional: true` or give both the same rules",
                missing.job
            );
            let at = need_at(jobs, job, &missing.job);
            context.error(Class::NeedsExcluded, at, Some(&job.group), message);
        }
        needs.retain(|need| present.contains(&need.job));
        job.needs = Some(needs);
    }
    let graph: Index<Arc<str>, Vec<Arc<str>>> = decided
        .jobs
        .iter()
        .filter_map(|job| Some((Arc::clone(&job.name), job.needs.as_ref()?)))
        .map(|(name, needs)| (name, needs.iter().map(|need: &Need| Arc::clone(&need.job)).collect()))
        .collect();
    if let Some(cycle) = expand::cycle(&graph) {
        let names: Vec<&str> = cycle.iter().chain(cycle.first()).map(|name| &**name).collect();
        let job = &jobs.draft(&jobs.all[&cycle[0]]).job;
        let message = format!("`needs` form a cycle: {}", names.join(" needs "));
        context.error(Class::NeedsCycle, need_at(jobs, job, ""), Some(&job.name), message);
    }
}

/// The position of the name of a need; the position of the `needs` keyword if the name comes from a `parallel`.
fn need_at(jobs: &ExpandedJobs<'_>, job: &Job, name: &str) -> Origin {
    let draft = jobs.all.get(&job.name).map(|expanded| jobs.draft(expanded));
    let needs = draft.and_then(|draft| draft.needs.as_ref());
    let at = needs.and_then(|needs| {
        let exact = needs.jobs.iter().find(|need| &*need.job == name);
        exact.or(needs.jobs.first()).map(|need| need.at)
    });
    at.unwrap_or(job.at)
}

/// Checks that the job of `environment:on_stop` exists and has `action: stop`.
pub fn check_on_stop(jobs: &ExpandedJobs<'_>, context: &mut Context<'_>) {
    for draft in jobs.drafts {
        let Some(on_stop) = draft.environment.as_ref().and_then(|node| node.get("on_stop")) else { continue };
        let name = on_stop.printed().unwrap_or_default();
        let target = jobs.drafts.iter().find(|draft| draft.job.name == name);
        let value = |draft: &Draft, key: &str| draft.environment.as_ref().and_then(|node| node.get(key)).cloned();
        let why = match target {
            None if jobs.broken.contains(&name) => continue,
            None => "does not exist",
            Some(target) if value(target, "name") != value(draft, "name") => "does not have the same `environment`",
            Some(target) if value(target, "action").and_then(|action| action.printed()).as_deref() != Some("stop") => {
                "has no `environment:action: stop`"
            }
            Some(_) => continue,
        };
        let message = format!("`environment:on_stop` names `{name}`, which {why}");
        context.error(Class::OnStop, on_stop.at, Some(&draft.job.name), message);
    }
}
