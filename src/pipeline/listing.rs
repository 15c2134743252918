//! A plan as JSON, for `--list --json`. Other tools rely on these fields.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;

use super::env::JobRun;
use super::plan::{AllowFailure, Job, Plan, Retry, Trigger};
use super::problem::Problem;
use super::syntax::Node;

/// A whole plan.
pub struct Listing<'a> {
    pub plan: &'a Plan,
    /// The facts about the run of a job, with its index, for `env`.
    pub run: &'a dyn Fn(usize, &Job) -> JobRun,
}

impl Serialize for Listing<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let plan = self.plan;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("created", &plan.not_created.is_none())?;
        map.serialize_entry("pipeline_name", &plan.pipeline_name.as_ref().map(|name| plan.mask(name)))?;
        let stages: Vec<&str> = plan.stages.iter().map(|stage| &**stage).collect();
        map.serialize_entry("stages", &stages)?;
        map.serialize_entry("jobs", &Jobs(self))?;
        let absent: Vec<&str> = plan.absent.iter().map(|absent| &*absent.name).collect();
        map.serialize_entry("absent", &absent)?;
        let warning = |warning: &super::plan::Warning| {
            json!({
                "file": &*warning.file,
                "line": warning.line,
                "job": warning.job.as_deref(),
                "message": warning.message,
            })
        };
        let warnings: Vec<serde_json::Value> = plan.warnings.iter().map(warning).collect();
        map.serialize_entry("warnings", &warnings)?;
        map.end()
    }
}

struct Jobs<'a>(&'a Listing<'a>);

impl Serialize for Jobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Listing { plan, run } = self.0;
        let jobs = plan.jobs.iter().enumerate();
        serializer.collect_seq(jobs.map(|(index, job)| JobListing { plan, job, run: run(index, job) }))
    }
}

struct JobListing<'a> {
    plan: &'a Plan,
    job: &'a Job,
    run: JobRun,
}

impl Serialize for JobListing<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let job = self.job;
        let texts = |list: &Option<Vec<std::sync::Arc<str>>>| -> Option<Vec<String>> {
            list.as_ref().map(|list| list.iter().map(ToString::to_string).collect())
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &*job.name)?;
        map.serialize_entry("stage", &*job.stage)?;
        map.serialize_entry("when", job.when.word())?;
        map.serialize_entry("allow_failure", &allow_failure(&job.allow_failure))?;
        map.serialize_entry("script", &texts(&job.script))?;
        map.serialize_entry("before_script", &texts(&job.before_script))?;
        map.serialize_entry("after_script", &texts(&job.after_script))?;
        map.serialize_entry("image", &job.image)?;
        map.serialize_entry("services", &job.services)?;
        map.serialize_entry("variables", &Pairs(job.variables.iter().map(|v| (&*v.key, &*v.value)).collect()))?;
        let env = self.plan.printable_env(job, &self.run);
        map.serialize_entry("env", &Pairs(env.iter().map(|v| (&*v.key, v.value.as_str())).collect()))?;
        map.serialize_entry("needs", &job.needs.as_ref().map(|needs| {
            let need = |need: &super::plan::Need| json!({"job": &*need.job, "artifacts": need.artifacts, "optional": need.optional});
            needs.iter().map(need).collect::<Vec<_>>()
        }))?;
        map.serialize_entry("dependencies", &texts(&job.dependencies))?;
        map.serialize_entry("tags", &texts(&job.tags))?;
        map.serialize_entry("resource_group", &job.resource_group.as_deref())?;
        map.serialize_entry("coverage", &job.coverage.as_deref())?;
        map.serialize_entry("interruptible", &job.interruptible)?;
        map.serialize_entry("start_in", &job.start_in.as_ref().map(|delay| &*delay.text))?;
        let hooks = texts(&job.pre_get_sources_script).map(|lines| json!({"pre_get_sources_script": lines}));
        map.serialize_entry("hooks", &hooks)?;
        map.serialize_entry("retry", &job.retry.as_ref().map(|retry_of| retry(retry_of, &job.definition)))?;
        map.serialize_entry("timeout", &job.timeout.map(|timeout| timeout.as_secs()))?;
        map.serialize_entry("artifacts", &job.artifacts)?;
        match &job.cache {
            Some(caches) => map.serialize_entry("cache", caches)?,
            None => map.serialize_entry("cache", &[(); 0])?,
        }
        map.serialize_entry("environment", &job.environment.as_ref().map(|environment| &environment.node))?;
        let trigger = job.trigger.as_ref().map(|(Trigger::Child { node, .. } | Trigger::Project { node, .. })| node);
        map.serialize_entry("trigger", &trigger)?;
        map.serialize_entry("manual_confirmation", &job.manual_confirmation.as_deref())?;
        map.end()
    }
}

struct Pairs<'a>(Vec<(&'a str, &'a str)>);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

fn allow_failure(value: &AllowFailure) -> serde_json::Value {
    match value {
        AllowFailure::No => json!(false),
        AllowFailure::Yes => json!(true),
        AllowFailure::ExitCodes(codes) => json!({ "exit_codes": codes }),
    }
}

/// `retry` with only the keys that the file gives.
fn retry(retry: &Retry, definition: &Node) -> serde_json::Value {
    let written = definition.get("retry");
    let mut map = serde_json::Map::new();
    if written.is_none_or(|node| node.mapping().is_none() || node.get("max").is_some()) {
        map.insert("max".into(), retry.max.into());
    }
    if let Some(when) = &retry.when {
        map.insert("when".into(), when.iter().map(|reason| &**reason).collect());
    }
    if let Some(codes) = &retry.exit_codes {
        map.insert("exit_codes".into(), json!(codes));
    }
    map.into()
}

/// Problems as JSON.
pub fn problems_as_json(problems: &[Problem]) -> serde_json::Value {
    let problem = |problem: &Problem| {
        json!({
            "class": problem.class,
            "file": &*problem.file,
            "line": problem.line,
            "job": problem.job.as_deref(),
            "message": problem.message,
        })
    };
    json!({ "errors": problems.iter().map(problem).collect::<Vec<_>>() })
}
