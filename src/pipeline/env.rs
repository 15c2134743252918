//! Computes the variables of a job: combines all levels and expands them by the server's rules.

use std::sync::Arc;

use super::JobRun;
use super::hash::Index;
use super::plan::{EnvVariable, Job, Plan, Trigger, TriggerForward, When};
use super::predefined::nodes;
use super::request::{
    CommitFacts, Content, GivenInput, GivenVariable, InputValue, PipelineSource, PlanRequest, Sources,
};
use super::slug::slug;
use super::syntax::Node;
use super::variables::{PipelineVariables, UnknownReference, expand_all, expand_text};

/// The configuration file of a project, by GitLab's default.
const CONFIGURATION: &str = ".gitlab-ci.yml";

/// `CI_JOB_TIMEOUT` in seconds for a job without a timeout.
const TIMEOUT: u64 = 3600;

type Levels = Index<Arc<str>, EnvVariable>;

impl Plan {
    /// All variables of a job, predefined ones included, after the server's expansion. References to file variables and
    /// to `raw` variables are left for the runner to expand.
    pub fn env(&self, job: &Job, run: &JobRun) -> Vec<EnvVariable> {
        expand_all(levels(&self.scope, job, run)).into_values().collect()
    }

    /// The variables that the job's script sees: [`Self::env`] after the runner's expansion.
    pub fn env_of_script(&self, job: &Job, run: &JobRun) -> Vec<EnvVariable> {
        let expanded = expand_all(levels(&self.scope, job, run));
        let value = |name: &str| expanded.get(name).map(|variable| variable.value.clone()).unwrap_or_default();
        let final_value = |variable: &EnvVariable| {
            if variable.raw { variable.value.clone() } else { crate::payload::expand::expand(&variable.value, &value) }
        };
        expanded.values().map(|variable| EnvVariable { value: final_value(variable), ..variable.clone() }).collect()
    }

    /// [`Self::env_of_script`] for output: masked values are replaced, also inside other values.
    pub fn printable_env(&self, job: &Job, run: &JobRun) -> Vec<EnvVariable> {
        let mut variables = self.env_of_script(job, run);
        let secrets: Vec<String> =
            variables.iter().filter(|variable| variable.masked).map(|variable| variable.value.clone()).collect();
        for variable in &mut variables {
            variable.value = match variable.masked {
                true => MASK.to_owned(),
                false => masked(std::mem::take(&mut variable.value), secrets.iter().map(String::as_str)),
            };
        }
        variables
    }

    /// Replaces the values of masked variables in a text.
    pub fn mask(&self, text: &str) -> String {
        let given = self.scope.project.iter().chain(self.scope.pipeline.values());
        masked(text.to_owned(), given.filter(|variable| variable.masked).map(|variable| variable.value.as_str()))
    }

    /// Expands the variables of a job in `text` as the server does (for `resource_group`, `tags`, triggers, …). Unknown
    /// names become empty.
    pub fn expand(&self, job: &Job, text: &str) -> String {
        expand_for_server(&self.scope, job, text)
    }

    /// The variables that a trigger job passes to the downstream pipeline; they are pipeline variables there.
    fn downstream_variables(
        &self,
        job: &Job,
        parent: &PlanRequest<'_>,
        dotenv: Vec<(String, String)>,
    ) -> Vec<GivenVariable> {
        let Some(Trigger::Child { forward, .. } | Trigger::Project { forward, .. }) = &job.trigger else {
            return Vec::new();
        };
        let TriggerForward { yaml_variables, pipeline_variables } = *forward;
        let run = JobRun { dotenv, ..JobRun::default() };
        let levels = levels(&self.scope, job, &run);
        // Later ones override earlier ones.
        let mut passed: Vec<GivenVariable> = Vec::new();
        if yaml_variables {
            passed.extend(job.variables.iter().map(|variable| GivenVariable {
                key: variable.key.to_string(),
                value: variable.value.to_string(),
                raw: variable.raw,
                ..GivenVariable::default()
            }));
        }
        if pipeline_variables {
            passed.extend(run.dotenv.iter().map(|(key, value)| GivenVariable {
                key: key.clone(),
                value: value.clone(),
                ..GivenVariable::default()
            }));
            passed.extend(parent.pipeline_variables.iter().cloned());
        }
        let mut files: Vec<GivenVariable> = Vec::new();
        for variable in passed.iter_mut().filter(|variable| !variable.raw && !variable.file) {
            variable.value = expand_once(&variable.value, &levels, &mut files);
        }
        // The file variables that values refer to; a variable that is passed itself takes precedence.
        files.extend(passed);
        files
    }

    /// The request for the child pipeline of a trigger job; `None` for any other job. `dotenv` are the variables from
    /// reports of jobs before it. The caller sets the pipeline id of the child.
    pub fn child<'a>(
        &self,
        job: &Job,
        parent: &PlanRequest<'a>,
        dotenv: Vec<(String, String)>,
    ) -> Option<PlanRequest<'a>> {
        let Some(Trigger::Child { include, .. }) = &job.trigger else { return None };
        Some(PlanRequest {
            content: Content::Includes { include: include.clone(), files: self.files.clone() },
            source: PipelineSource {
                name: "parent_pipeline".to_owned(),
                merge_request: parent.source.merge_request.clone(),
            },
            facts: parent.facts.clone(),
            pipeline_variables: self.downstream_variables(job, parent, dotenv),
            project_variables: parent.project_variables.clone(),
            predefined: parent.predefined.clone(),
            inputs: Vec::new(),
            lax: parent.lax,
            explains: false,
            sources: parent.sources,
        })
    }
}

impl Plan {
    /// The request for the pipeline of another project that a trigger job starts, with the facts and files of a
    /// checkout of that project. `None` for any other job.
    pub fn downstream<'a>(
        &self,
        job: &Job,
        parent: &PlanRequest<'_>,
        dotenv: Vec<(String, String)>,
        facts: CommitFacts,
        sources: &'a dyn Sources,
    ) -> Option<PlanRequest<'a>> {
        let Some(Trigger::Project { node, .. }) = &job.trigger else { return None };
        let inputs = node.get("inputs").and_then(Node::mapping).into_iter().flat_map(|inputs| inputs.iter());
        let inputs = inputs
            .map(|(key, entry)| GivenInput { key: key.to_string(), value: InputValue::Typed(entry.node.clone()) });
        Some(PlanRequest {
            content: Content::File(CONFIGURATION.to_owned()),
            source: PipelineSource { name: "pipeline".to_owned(), merge_request: None },
            facts,
            pipeline_variables: self.downstream_variables(job, parent, dotenv),
            project_variables: Vec::new(),
            predefined: parent.predefined.clone(),
            inputs: inputs.collect(),
            lax: parent.lax,
            explains: false,
            sources,
        })
    }
}

/// The replacement of a masked value.
const MASK: &str = "[MASKED]";

/// The minimum length, in bytes, of a value that is masked. A shorter value can occur in unrelated text, and GitLab
/// does not accept it for a masked variable.
const MASKED_LEAST: usize = 4;

fn masked<'a>(mut text: String, secrets: impl Iterator<Item = &'a str>) -> String {
    for secret in secrets.filter(|secret| secret.len() >= MASKED_LEAST) {
        if text.contains(secret) {
            text = text.replace(secret, MASK);
        }
    }
    text
}

/// Expands the variables of a job in a text; unknown names become empty.
pub fn expand_for_server(scope: &PipelineVariables, job: &Job, text: &str) -> String {
    if !super::variables::has_reference(text) {
        return text.to_owned();
    }
    expand_text(text, &levels(scope, job, &JobRun::default()), UnknownReference::Emptied)
}

/// Expands the references in a value that a downstream pipeline gets, but not those in the values that replace them:
/// the downstream pipeline expands the rest. Unknown names become empty. References to file variables are kept, and the
/// file variables are added to `files`.
fn expand_once(text: &str, levels: &Levels, files: &mut Vec<GivenVariable>) -> String {
    super::variables::replace(text, |name, reference| match levels.get(name) {
        None => String::new(),
        Some(variable) if variable.file => {
            files.push(GivenVariable {
                key: variable.key.to_string(),
                value: variable.value.clone(),
                file: true,
                masked: variable.masked,
                raw: variable.raw,
                ..GivenVariable::default()
            });
            reference.to_owned()
        }
        Some(variable) => variable.value.clone(),
    })
}

/// The unexpanded variables of all levels; for each name, the value of the level with the highest precedence.
fn levels(scope: &PipelineVariables, job: &Job, run: &JobRun) -> Levels {
    let mut levels = Levels::with_capacity_and_hasher(scope.predefined.len() + 48, Default::default());
    for (key, value) in &scope.predefined {
        predefined(&mut levels, Arc::clone(key), value.to_string());
    }
    add_job(&mut levels, job, run, scope);
    for (key, value) in &run.predefined {
        predefined(&mut levels, key.as_str().into(), value.clone());
    }
    for variable in &job.variables {
        let (key, value) = (Arc::clone(&variable.key), variable.value.to_string());
        set(&mut levels, EnvVariable { key, value, raw: variable.raw, ..EnvVariable::default() });
    }
    for (key, value) in &run.dotenv {
        set(&mut levels, EnvVariable { key: key.as_str().into(), value: value.clone(), ..EnvVariable::default() });
    }
    let environment = job.environment.as_ref().map(|environment| environment.name.as_str());
    let of_project = scope.project_names().filter_map(|name| scope.given(name, environment));
    for variable in of_project.chain(scope.pipeline.values()) {
        set(&mut levels, given(variable));
    }
    take_secrets(&mut levels, job);
    levels
}

/// Uses the caller's values for `id_tokens` and `secrets`, which only a server can provide. They are masked, and are
/// files where the job expects files.
fn take_secrets(levels: &mut Levels, job: &Job) {
    let tokens = job.id_tokens.iter().map(|key| (key, false));
    let secrets = job.secrets.iter().map(|secret| (&secret.key, secret.file));
    for (key, file) in tokens.chain(secrets) {
        if let Some(variable) = levels.get_mut(key).filter(|variable| variable.given) {
            variable.masked = true;
            variable.file |= file;
        }
    }
}

fn set(levels: &mut Levels, variable: EnvVariable) {
    levels.insert(Arc::clone(&variable.key), variable);
}

fn predefined(levels: &mut Levels, key: Arc<str>, value: String) {
    set(levels, EnvVariable { key, value, raw: true, predefined: true, ..EnvVariable::default() });
}

fn given(variable: &GivenVariable) -> EnvVariable {
    EnvVariable {
        key: variable.key.as_str().into(),
        value: variable.value.clone(),
        file: variable.file,
        masked: variable.masked,
        raw: variable.raw,
        predefined: false,
        given: true,
    }
}

/// Adds the predefined variables of the job.
fn add_job(levels: &mut Levels, job: &Job, run: &JobRun, scope: &PipelineVariables) {
    let mut add = |key: &str, value: String| predefined(levels, key.into(), value);
    let project = scope.predefined.get("CI_PROJECT_URL").map_or("", |url| url);
    add("CI_JOB_ID", run.id.to_string());
    add("CI_JOB_URL", format!("{project}/-/jobs/{}", run.id));
    add("CI_JOB_NAME", job.name.to_string());
    add("CI_JOB_NAME_SLUG", slug(&job.name));
    add("CI_JOB_GROUP_NAME", job.group.to_string());
    add("CI_JOB_STAGE", job.stage.to_string());
    add("CI_JOB_STATUS", "running".to_owned());
    add("CI_JOB_STARTED_AT", run.started_at.clone());
    add("CI_JOB_TIMEOUT", job.timeout.map_or(TIMEOUT, |timeout| timeout.as_secs()).to_string());
    if matches!(job.when, When::Manual | When::Delayed) {
        add("CI_JOB_MANUAL", "true".to_owned());
    }
    for (key, value) in nodes(job.parallel) {
        add(key, value.to_string());
    }
    if let Some(environment) = &job.environment {
        add("CI_ENVIRONMENT_NAME", environment.name.clone());
        add("CI_ENVIRONMENT_SLUG", environment.slug.clone());
        add("CI_ENVIRONMENT_ACTION", environment.action.to_string());
        add("CI_ENVIRONMENT_TIER", environment.tier.clone());
    }
    // These values may contain variables of the configuration.
    let mut expanded = |key: &str, value: &str| {
        set(levels, EnvVariable { key: key.into(), value: value.to_owned(), ..EnvVariable::default() });
    };
    if let Some(name) = job.image.as_ref().and_then(|image| image.get("name")).and_then(|name| name.printed()) {
        expanded("CI_JOB_IMAGE", &name);
    }
    if let Some(url) = job.environment.as_ref().and_then(|environment| environment.url.as_ref()) {
        expanded("CI_ENVIRONMENT_URL", url);
    }
}
