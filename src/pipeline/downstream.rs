//! The requests for downstream pipelines, which trigger jobs start: child pipelines, and pipelines of other projects.

use super::env::{JobRun, UnexpandedEnv, unexpanded_env};
use super::plan::{Job, Plan, Trigger, TriggerForward};
use super::request::{
    CommitFacts, ConfigurationStart, DEFAULT_FILE, GivenInput, GivenVariable, InputValue, PipelineSource, PlanRequest,
    Sources,
};
use super::syntax::Node;
use super::variable_references::replace_references;

impl Plan {
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
        let env = unexpanded_env(&self.shared_variables, job, &run);
        // Later entries override earlier ones.
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
            variable.value = expand_once(&variable.value, &env, &mut files);
        }
        // The file variables that values refer to come first, so that variables that the job passes override them.
        files.extend(passed);
        files
    }

    /// The request for the child pipeline of a trigger job; `None` for any other job. `dotenv` are the variables from
    /// reports of jobs before it. The caller sets the pipeline id of the child.
    pub fn child_request<'a>(
        &self,
        job: &Job,
        parent: &PlanRequest<'a>,
        dotenv: Vec<(String, String)>,
    ) -> Option<PlanRequest<'a>> {
        let Some(Trigger::Child { include, .. }) = &job.trigger else { return None };
        Some(PlanRequest {
            start: ConfigurationStart::Includes { include: include.clone(), files: self.files.clone() },
            source: PipelineSource {
                name: "parent_pipeline".to_owned(),
                merge_request: parent.source.merge_request.clone(),
            },
            facts: parent.facts.clone(),
            pipeline_variables: self.downstream_variables(job, parent, dotenv),
            project_variables: parent.project_variables.clone(),
            predefined: parent.predefined.clone(),
            inputs: Vec::new(),
            unknown_keywords: parent.unknown_keywords,
            explains: false,
            sources: parent.sources,
        })
    }
    /// The request for the pipeline of another project that a trigger job starts, with the facts and files of a
    /// checkout of that project. `None` for any other job.
    pub fn downstream_request<'a>(
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
            start: ConfigurationStart::File(DEFAULT_FILE.to_owned()),
            source: PipelineSource { name: "pipeline".to_owned(), merge_request: None },
            facts,
            pipeline_variables: self.downstream_variables(job, parent, dotenv),
            project_variables: Vec::new(),
            predefined: parent.predefined.clone(),
            inputs: inputs.collect(),
            unknown_keywords: parent.unknown_keywords,
            explains: false,
            sources,
        })
    }
}

/// Expands the references in a value that a downstream pipeline gets, but not those in the values that replace them:
/// the downstream pipeline expands the rest. Unknown names become empty. References to file variables are kept, and the
/// file variables are added to `files`.
fn expand_once(text: &str, env: &UnexpandedEnv, files: &mut Vec<GivenVariable>) -> String {
    replace_references(text, |name, reference| match env.get(name) {
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
