//! Computes the variables of a job: combines all levels and expands them by the server's rules.

use std::sync::Arc;
use std::time::Duration;

use super::expansion::{UnknownReference, expand_all, expand_text};
use super::hash::Index;
use super::plan::{EnvSource, EnvVariable, Job, Plan, When};
use super::predefined::node_variables;
use super::request::GivenVariable;
use super::slug::slug;
use super::variable_references::has_reference;
use super::variables::SharedVariables;

/// `CI_JOB_TIMEOUT` for a job without a timeout: GitLab's default for a project.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);

/// Facts about one run of a job, which the caller provides.
#[derive(Clone, Debug, Default)]
pub struct JobRun {
    /// `CI_JOB_ID`
    pub id: u64,
    /// `CI_JOB_STARTED_AT`, ISO 8601.
    pub started_at: String,
    /// Variables from dotenv reports of earlier jobs. Later entries override earlier ones.
    pub dotenv: Vec<(String, String)>,
    /// Predefined variables such as `CI_PROJECT_DIR`. They override those of the planner.
    pub predefined: Vec<(String, String)>,
}

/// The unexpanded variables of a job by name; each has the value of the level with the highest precedence.
pub type UnexpandedEnv = Index<Arc<str>, EnvVariable>;

impl Plan {
    /// All variables of a job, predefined ones included, after the server's expansion. References to file variables and
    /// to `raw` variables are left for the runner to expand.
    pub fn env(&self, job: &Job, run: &JobRun) -> Vec<EnvVariable> {
        expand_all(unexpanded_env(&self.shared_variables, job, run)).into_values().collect()
    }

    /// The variables that the job's script sees: [`Self::env`] after the runner's expansion.
    pub fn env_of_script(&self, job: &Job, run: &JobRun) -> Vec<EnvVariable> {
        let expanded = expand_all(unexpanded_env(&self.shared_variables, job, run));
        let value = |name: &str| expanded.get(name).map(|variable| variable.value.clone()).unwrap_or_default();
        let value_in_script = |variable: &EnvVariable| {
            if variable.raw { variable.value.clone() } else { crate::payload::expand::expand(&variable.value, &value) }
        };
        expanded.values().map(|variable| EnvVariable { value: value_in_script(variable), ..variable.clone() }).collect()
    }

    /// [`Self::env_of_script`] for output: masked values are replaced, also inside other values.
    pub fn printable_env(&self, job: &Job, run: &JobRun) -> Vec<EnvVariable> {
        let mut variables = self.env_of_script(job, run);
        let secrets: Vec<String> =
            variables.iter().filter(|variable| variable.masked).map(|variable| variable.value.clone()).collect();
        for variable in &mut variables {
            variable.value = match variable.masked {
                true => MASK.to_owned(),
                false => mask_values(std::mem::take(&mut variable.value), secrets.iter().map(String::as_str)),
            };
        }
        variables
    }

    /// Replaces the values of masked variables in a text.
    pub fn mask(&self, text: &str) -> String {
        let given = self.shared_variables.project.iter().chain(self.shared_variables.pipeline.values());
        mask_values(text.to_owned(), given.filter(|variable| variable.masked).map(|variable| variable.value.as_str()))
    }

    /// Expands the variables of a job in `text` as the server does (for `resource_group`, `tags`, triggers, …). Unknown
    /// names become empty.
    pub fn expand(&self, job: &Job, text: &str) -> String {
        expand_for_server(&self.shared_variables, job, text)
    }
}

/// The replacement of a masked value.
const MASK: &str = "[MASKED]";

/// The minimum length, in bytes, of a value that is masked. A shorter value can occur in unrelated text, and GitLab
/// does not accept it for a masked variable.
const MIN_MASKED_LENGTH: usize = 4;

fn mask_values<'a>(mut text: String, secrets: impl Iterator<Item = &'a str>) -> String {
    for secret in secrets.filter(|secret| secret.len() >= MIN_MASKED_LENGTH) {
        if text.contains(secret) {
            text = text.replace(secret, MASK);
        }
    }
    text
}

/// Expands the variables of a job in a text; unknown names become empty.
pub fn expand_for_server(shared: &SharedVariables, job: &Job, text: &str) -> String {
    if !has_reference(text) {
        return text.to_owned();
    }
    expand_text(text, &unexpanded_env(shared, job, &JobRun::default()), UnknownReference::Emptied)
}

/// Combines the variables of all levels, from the lowest to the highest precedence.
pub fn unexpanded_env(shared: &SharedVariables, job: &Job, run: &JobRun) -> UnexpandedEnv {
    let mut env = UnexpandedEnv::with_capacity_and_hasher(shared.predefined.len() + 48, Default::default());
    for (key, value) in &shared.predefined {
        predefined(&mut env, Arc::clone(key), value.to_string());
    }
    add_predefined(&mut env, job, run, shared);
    for (key, value) in &run.predefined {
        predefined(&mut env, key.as_str().into(), value.clone());
    }
    for variable in &job.variables {
        let (key, value) = (Arc::clone(&variable.key), variable.value.to_string());
        set(&mut env, EnvVariable { key, value, raw: variable.raw, ..EnvVariable::default() });
    }
    for (key, value) in &run.dotenv {
        set(&mut env, EnvVariable { key: key.as_str().into(), value: value.clone(), ..EnvVariable::default() });
    }
    let environment = job.environment.as_ref().map(|environment| environment.name.as_str());
    let of_project = shared.project_names().filter_map(|name| shared.given(name, environment));
    for variable in of_project.chain(shared.pipeline.values()) {
        set(&mut env, given(variable));
    }
    mark_secrets(&mut env, job);
    env
}

/// Masks the caller's values for `id_tokens` and `secrets`, and makes those files that the job expects as files. Only a
/// server could provide the real values.
fn mark_secrets(env: &mut UnexpandedEnv, job: &Job) {
    let tokens = job.id_tokens.iter().map(|key| (key, false));
    let secrets = job.secrets.iter().map(|secret| (&secret.key, secret.file));
    for (key, file) in tokens.chain(secrets) {
        if let Some(variable) = env.get_mut(key).filter(|variable| variable.source == EnvSource::Given) {
            variable.masked = true;
            variable.file |= file;
        }
    }
}

fn set(env: &mut UnexpandedEnv, variable: EnvVariable) {
    env.insert(Arc::clone(&variable.key), variable);
}

fn predefined(env: &mut UnexpandedEnv, key: Arc<str>, value: String) {
    set(env, EnvVariable { key, value, raw: true, source: EnvSource::Predefined, ..EnvVariable::default() });
}

fn given(variable: &GivenVariable) -> EnvVariable {
    EnvVariable {
        key: variable.key.as_str().into(),
        value: variable.value.clone(),
        file: variable.file,
        masked: variable.masked,
        raw: variable.raw,
        source: EnvSource::Given,
    }
}

/// Adds the predefined variables of the job.
fn add_predefined(env: &mut UnexpandedEnv, job: &Job, run: &JobRun, shared: &SharedVariables) {
    let mut add = |key: &str, value: String| predefined(env, key.into(), value);
    let project = shared.predefined.get("CI_PROJECT_URL").map_or("", |url| url);
    add("CI_JOB_ID", run.id.to_string());
    add("CI_JOB_URL", format!("{project}/-/jobs/{}", run.id));
    add("CI_JOB_NAME", job.name.to_string());
    add("CI_JOB_NAME_SLUG", slug(&job.name));
    add("CI_JOB_GROUP_NAME", job.group.to_string());
    add("CI_JOB_STAGE", job.stage.to_string());
    add("CI_JOB_STATUS", "running".to_owned());
    add("CI_JOB_STARTED_AT", run.started_at.clone());
    add("CI_JOB_TIMEOUT", job.timeout.unwrap_or(DEFAULT_TIMEOUT).as_secs().to_string());
    if matches!(job.when, When::Manual | When::Delayed) {
        add("CI_JOB_MANUAL", "true".to_owned());
    }
    for (key, value) in node_variables(job.parallel) {
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
        set(env, EnvVariable { key: key.into(), value: value.to_owned(), ..EnvVariable::default() });
    };
    if let Some(name) = job.image.as_ref().and_then(|image| image.get("name")).and_then(|name| name.printed()) {
        expanded("CI_JOB_IMAGE", &name);
    }
    if let Some(url) = job.environment.as_ref().and_then(|environment| environment.url.as_ref()) {
        expanded("CI_ENVIRONMENT_URL", url);
    }
}
