//! Decides whether GitLab would create the pipeline, and which jobs it would have: evaluates `workflow:rules`, then the
//! rules of each job, and builds the jobs that the rules include.

use std::borrow::Cow;
use std::sync::Arc;

use super::configuration::Configuration;
use super::context::Context;
use super::draft::cache::cache_keys;
use super::draft::reader::KeywordReader;
use super::draft::scheduling::RuleWhen;
use super::draft::variables::overlay;
use super::draft::{Draft, Inherit};
use super::env;
use super::expand::{self, ExpandedJob, ExpandedJobs};
use super::hash::Map;
use super::job_graph;
use super::plan::{AbsentJob, AllowFailure, Decision, Environment, Job, Variable, When};
use super::predefined::node_variables;
use super::problem::{Class, Reported};
use super::rule_evaluation::{RuleResult, Workflow, WorkflowResult, evaluate_rules, evaluate_workflow};
use super::rules::rule::Rule;
use super::slug::{environment_slug, environment_tier, slug};
use super::syntax::Node;
use super::variable_checks::{check_given_variables, check_variables};
use super::variable_view::VariableView;

/// The number of variables that all jobs together may have.
const MAX_VARIABLES: usize = 2_000_000;

/// The pipeline that GitLab would create.
#[derive(Default)]
pub struct DecidedPipeline {
    /// Why GitLab would create no pipeline.
    pub not_created: Option<String>,
    /// `workflow:name`, expanded.
    pub name: Option<String>,
    /// In the order of the configuration.
    pub jobs: Vec<Job>,
    /// The jobs that rules exclude.
    pub absent: Vec<AbsentJob>,
    /// Whether the first failed job cancels the pipeline.
    pub cancel_on_job_failure: bool,
}

/// Applies all rules of the configuration.
pub fn decide(
    configuration: &Configuration,
    jobs: &ExpandedJobs<'_>,
    context: &mut Context<'_>,
) -> Result<DecidedPipeline, Reported> {
    let workflow = match evaluate_workflow(configuration, context)? {
        WorkflowResult::Created(workflow) => workflow,
        WorkflowResult::NotCreated(why) => {
            return Ok(DecidedPipeline { not_created: Some(why), ..DecidedPipeline::default() });
        }
    };
    let (mut present, absent) = decide_jobs(jobs, &workflow, context);
    job_graph::settle_needs(&mut present, jobs, context);
    if let Some(why) = lack_of_jobs(&present) {
        return Ok(DecidedPipeline { not_created: Some(why.to_owned()), absent, ..DecidedPipeline::default() });
    }
    let view = VariableView::of_pipeline(&context.shared_variables, &workflow.variables);
    let name = configuration.name.as_ref().map(|name| view.expand(name).trim().to_owned());
    Ok(DecidedPipeline {
        not_created: None,
        name: name.filter(|name| !name.is_empty()),
        jobs: present,
        absent,
        cancel_on_job_failure: workflow.cancel_on_job_failure,
    })
}

/// Why GitLab creates no pipeline with these jobs, if it does not.
fn lack_of_jobs(jobs: &[Job]) -> Option<&'static str> {
    if jobs.is_empty() {
        Some("rules exclude all jobs")
    } else if jobs.iter().all(|job| matches!(&*job.stage, ".pre" | ".post")) {
        Some("rules exclude all jobs outside of .pre and .post")
    } else {
        None
    }
}

/// The jobs of the pipeline, and the jobs that rules exclude.
fn decide_jobs(jobs: &ExpandedJobs<'_>, workflow: &Workflow, context: &mut Context<'_>) -> (Vec<Job>, Vec<AbsentJob>) {
    check_given_variables(context);
    let mut present: Vec<Job> = Vec::with_capacity(jobs.all.len());
    let mut absent = Vec::new();
    let mut variable_count = 0;
    for expanded in jobs.all.values() {
        let at = jobs.draft(expanded).job.at;
        let Ok(decision) = decide_job(expanded, jobs, workflow, context) else { continue };
        let job = match decision {
            JobDecision::Included(job) => *job,
            JobDecision::Excluded(why) => {
                absent.push(AbsentJob { name: Arc::clone(&expanded.name), at, why });
                continue;
            }
        };
        variable_count += job.variables.len();
        if variable_count > MAX_VARIABLES {
            let message = format!("all jobs together have more than {MAX_VARIABLES} variables");
            context.error(Class::TooBig, at, None, message);
            break;
        }
        // Consecutive jobs often have the same variables; one check is enough for them.
        if !present.last().is_some_and(|previous| has_same_variables(previous, &job)) {
            check_variables(&job, context);
        }
        present.push(job);
    }
    (present, group_absent(&absent, jobs))
}

/// Whether the pipeline includes a job.
enum JobDecision {
    Included(Box<Job>),
    /// Rules exclude the job, for this reason.
    Excluded(String),
}

/// Evaluates the rules of a job, and builds the job if they include it.
fn decide_job(
    expanded: &ExpandedJob,
    jobs: &ExpandedJobs<'_>,
    workflow: &Workflow,
    context: &mut Context<'_>,
) -> Result<JobDecision, Reported> {
    let draft = jobs.draft(expanded);
    let defaults = inherited_variables(&draft.inherit_variables, &workflow.variables);
    let mut own = draft.variables.clone();
    overlay(&mut own, &expand::matrix_variables(&expanded.combination, draft.job.at));
    let mut predefined = predefined_for_rules(expanded, draft);
    let shared = Arc::clone(&context.shared_variables);
    let environment = draft.environment.as_ref().map(|node| {
        let view =
            VariableView { shared: &shared, own: &own, defaults: &defaults, job: &predefined, environment: None };
        view.expand(&node.get("name").and_then(Node::printed).unwrap_or_default())
    });
    if let (Some(node), Some(name)) = (&draft.environment, &environment) {
        predefined.extend(environment_variables(node, name));
    }
    let environment = environment.as_deref();
    let view = VariableView { shared: &shared, own: &own, defaults: &defaults, job: &predefined, environment };
    let (decision, rule) = match evaluate_rules(draft, &view, workflow, context)? {
        RuleResult::Included { decision, rule } => (decision, rule),
        RuleResult::Excluded(why) => return Ok(JobDecision::Excluded(why)),
    };
    let mut variables = defaults.into_owned();
    overlay(&mut variables, &own);
    let mut job = job_of_draft(jobs, expanded, decision, variables);
    if let Some(rule) = rule {
        apply_rule(&mut job, rule, expanded, jobs, context);
    }
    add_computed_values(&mut job, draft, context);
    Ok(JobDecision::Included(Box::new(job)))
}

/// The default variables that a job with this `inherit:variables` has.
fn inherited_variables<'v>(inherit: &Inherit, defaults: &'v [Variable]) -> Cow<'v, [Variable]> {
    match inherit {
        Inherit::All => defaults.into(),
        inherit => defaults.iter().filter(|variable| inherit.takes(&variable.key)).cloned().collect(),
    }
}

/// Predefined variables of the job that rules may refer to.
fn predefined_for_rules(job: &ExpandedJob, draft: &Draft) -> Vec<(&'static str, Arc<str>)> {
    let mut variables: Vec<(&'static str, Arc<str>)> = vec![
        ("CI_JOB_NAME", Arc::clone(&job.name)),
        ("CI_JOB_NAME_SLUG", slug(&job.name).into()),
        ("CI_JOB_GROUP_NAME", Arc::clone(&draft.job.name)),
        ("CI_JOB_STAGE", Arc::clone(&draft.job.stage)),
    ];
    if matches!(draft.when, Some(When::Manual | When::Delayed)) {
        variables.push(("CI_JOB_MANUAL", "true".into()));
    }
    variables.extend(node_variables(job.instance));
    variables
}

/// Predefined variables of an environment that rules may refer to. Variables in the URL are not expanded.
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

/// The job with the values of its draft, before a rule overrides some of them.
fn job_of_draft(jobs: &ExpandedJobs<'_>, expanded: &ExpandedJob, decision: Decision, variables: Vec<Variable>) -> Job {
    let draft = jobs.draft(expanded);
    let mut job = draft.job.clone();
    job.name = Arc::clone(&expanded.name);
    job.parallel = expanded.instance;
    job.stage_index = jobs.stage(expanded);
    job.needs.clone_from(&expanded.needs);
    job.dependencies.clone_from(&expanded.dependencies);
    job.when = draft.when.unwrap_or(When::OnSuccess);
    // By default a manual job may fail; `when: manual` of a rule does not change that default.
    let default = if job.when == When::Manual { AllowFailure::Yes } else { AllowFailure::No };
    job.allow_failure = draft.allow_failure.clone().unwrap_or(default);
    job.decision = decision;
    job.variables = variables;
    job
}

/// Overrides values of the job with those of the matching rule.
fn apply_rule(job: &mut Job, rule: &Rule, expanded: &ExpandedJob, jobs: &ExpandedJobs<'_>, context: &mut Context<'_>) {
    overlay(&mut job.variables, &rule.variables);
    if let Some(RuleWhen::Run(when)) = rule.when {
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
        job.needs = jobs.resolve_needs(expanded, needs, context);
    }
    job.interruptible = rule.interruptible.or(job.interruptible);
}

/// Adds the values that depend on the job's final variables: the keys of its caches, and its environment.
fn add_computed_values(job: &mut Job, draft: &Draft, context: &mut Context<'_>) {
    if let Some(caches) = &job.cache {
        let mut reader = KeywordReader { context, job: Some(&job.group) };
        job.cache_keys = cache_keys(caches, &mut reader);
    }
    if let Some(node) = &draft.environment {
        job.environment = Some(environment(node, job, context));
    }
}

fn environment(node: &Node, job: &Job, context: &Context<'_>) -> Environment {
    let text = |key: &str| node.get(key).and_then(Node::printed);
    let name = env::expand_for_server(&context.shared_variables, job, &text("name").unwrap_or_default());
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

fn has_same_variables(a: &Job, b: &Job) -> bool {
    let is_same = |(a, b): (&Variable, &Variable)| {
        Arc::ptr_eq(&a.value, &b.value) && Arc::ptr_eq(&a.key, &b.key) && a.raw == b.raw
    };
    a.variables.len() == b.variables.len() && a.variables.iter().zip(&b.variables).all(is_same)
}

/// If all jobs of a `parallel` are excluded, lists them once, by their common name.
fn group_absent(absent: &[AbsentJob], jobs: &ExpandedJobs<'_>) -> Vec<AbsentJob> {
    let mut counts: Map<&Arc<str>, usize> = Map::default();
    for job in absent {
        let expanded = &jobs.all[&job.name];
        if expanded.instance.is_some() {
            *counts.entry(&jobs.draft(expanded).job.name).or_default() += 1;
        }
    }
    let is_whole_group_absent = |expanded: &ExpandedJob| {
        let group = &jobs.draft(expanded).job.name;
        expanded.instance.is_some_and(|instance| counts.get(group) == Some(&instance.total))
    };
    let mut grouped: Vec<AbsentJob> = Vec::with_capacity(absent.len());
    for job in absent {
        let expanded = &jobs.all[&job.name];
        let name = if is_whole_group_absent(expanded) { &jobs.draft(expanded).job.name } else { &job.name };
        if grouped.last().is_none_or(|last| last.name != *name) {
            grouped.push(AbsentJob { name: Arc::clone(name), ..job.clone() });
        }
    }
    grouped
}
