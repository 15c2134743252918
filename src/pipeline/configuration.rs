//! Reads the merged configuration: its top-level keywords, and all other entries as jobs.

use std::collections::HashSet;
use std::sync::Arc;

use super::context::Context;
use super::draft::reader::KeywordReader;
use super::draft::{DEFAULT_KEYS, Draft};
use super::plan::{Variable, VariableLevel};
use super::problem::Class;
use super::rules::rule::Rule;
use super::suggest::did_you_mean;
use super::syntax::{Mapping, MappingEntry, Node, Origin};

/// The maximum length of a job name in characters, as on GitLab.
pub const MAX_JOB_NAME_LENGTH: usize = 255;

/// Top-level keywords.
const GLOBAL_KEYS: [&str; 10] = [
    "default",
    "image",
    "services",
    "before_script",
    "after_script",
    "cache",
    "stages",
    "variables",
    "workflow",
    "include",
];

/// Top-level keywords that are deprecated forms of keywords in `default`.
const DEPRECATED_DEFAULTS: [&str; 5] = ["image", "services", "before_script", "after_script", "cache"];

/// The values of the top-level keywords, and the jobs as written.
pub struct Configuration {
    /// In order; `.pre` is first and `.post` is last.
    pub stages: Vec<Arc<str>>,
    /// Top-level variables.
    pub variables: Vec<Variable>,
    /// `workflow:name`
    pub name: Option<Arc<str>>,
    /// `workflow:rules`
    pub rules: Option<Vec<Rule>>,
    /// `workflow:auto_cancel:on_job_failure: all`
    pub cancel_on_job_failure: bool,
    /// Visible jobs without problems.
    pub drafts: Vec<Draft>,
    /// Names of jobs with problems.
    pub broken: HashSet<Arc<str>>,
}

impl Configuration {
    /// Reads the configuration. `broken` are names with problems that are already reported.
    pub fn read(node: &Node, broken: HashSet<Arc<str>>, context: &mut Context<'_>) -> Self {
        let mut configuration = Self {
            stages: Vec::new(),
            variables: Vec::new(),
            name: None,
            rules: None,
            cancel_on_job_failure: false,
            drafts: Vec::new(),
            broken,
        };
        let empty = Arc::default();
        let mapping = node.mapping().unwrap_or(&empty);
        let stages = read_stages(node.get("stages"), context);
        // Stages that cannot be read are reported once, not for every job.
        let declared: Option<HashSet<Arc<str>>> = stages.map(|stages| {
            configuration.stages = with_edges(stages);
            configuration.stages.iter().cloned().collect()
        });
        if let Some(variables) = node.get("variables") {
            let mut reader = KeywordReader { context, job: None };
            configuration.variables = reader.variables(variables, VariableLevel::Default, "variables");
        }
        if let Some(workflow) = node.get("workflow") {
            let _ = configuration.read_workflow(workflow, context);
        }
        let defaults = read_defaults(mapping, context);
        Draft::check_defaults(&defaults, context);
        configuration.read_jobs(mapping, declared.as_ref(), &defaults, context);
        check_templates(mapping, context);
        configuration.check_visible_jobs(node.at, context);
        configuration
    }

    fn read_workflow(&mut self, node: &Node, context: &mut Context<'_>) -> Option<()> {
        let mut reader = KeywordReader { context, job: None };
        reader.check_mapping(node, "workflow", &["rules", "name", "auto_cancel"])?;
        if let Some(name) = node.get("name") {
            self.name = reader.text(name, "workflow:name");
        }
        if let Some(cancel) = node.get("auto_cancel") {
            self.cancel_on_job_failure = reader.auto_cancel(cancel, "workflow:auto_cancel")?.unwrap_or(false);
        }
        if let Some(rules) = node.get("rules") {
            self.rules = reader.workflow_rules(rules);
        }
        Some(())
    }

    fn read_jobs(
        &mut self,
        mapping: &Mapping,
        stages: Option<&HashSet<Arc<str>>>,
        defaults: &Mapping,
        context: &mut Context<'_>,
    ) {
        let is_job = |name: &str| !is_template(name) && !GLOBAL_KEYS.contains(&name);
        self.drafts.reserve(mapping.len());
        for (name, entry) in mapping.iter().filter(|(name, _)| is_job(name)) {
            match read_job(name, entry, defaults, stages, context) {
                Some(draft) => self.drafts.push(draft),
                None => {
                    self.broken.insert(Arc::clone(name));
                }
            }
        }
    }

    /// Reports a configuration without visible jobs. If another problem is reported, the lack of jobs may be its
    /// consequence, and is not reported.
    fn check_visible_jobs(&self, at: Origin, context: &mut Context<'_>) {
        let has_visible_job = !self.drafts.is_empty() || self.broken.iter().any(|name| !is_template(name));
        if !has_visible_job && context.report.problems.is_empty() {
            let message = "the configuration has no visible job; write a mapping with `script` whose name does not begin with a dot";
            context.error(Class::NoVisibleJob, at, None, message);
        }
    }
}

/// Whether an entry with this name is a template: other entries can use it, and the pipeline does not contain it.
fn is_template(name: &str) -> bool {
    name.starts_with('.')
}

/// Reports empty templates.
fn check_templates(mapping: &Mapping, context: &mut Context<'_>) {
    let is_blank = |node: &Node| {
        node.is_null()
            || node.text().is_some_and(|text| text.trim().is_empty())
            || node.list().is_some_and(<[Node]>::is_empty)
            || node.mapping().is_some_and(|mapping| mapping.is_empty())
    };
    for (name, entry) in mapping.iter().filter(|(name, entry)| is_template(name) && is_blank(&entry.node)) {
        let message = format!("the template `{name}` is empty; give it content or remove it");
        context.error(Class::BadValue, entry.key_at, None, message);
    }
}

/// Reads a job, whose stage must be one of `stages` if those are known. `None`: there is a problem, which is already
/// reported.
fn read_job(
    name: &Arc<str>,
    entry: &MappingEntry,
    defaults: &Mapping,
    stages: Option<&HashSet<Arc<str>>>,
    context: &mut Context<'_>,
) -> Option<Draft> {
    if name.trim().is_empty() || name.chars().count() > MAX_JOB_NAME_LENGTH {
        let message = format!("the name of a job must have 1 to {MAX_JOB_NAME_LENGTH} characters");
        context.error(Class::JobName, entry.key_at, None, message);
        return None;
    }
    if ["true", "false", "nil"].contains(&&**name) {
        context.report.warn(entry.key_at, Some(name), format!("the job name `{name}` looks like a YAML value"));
    }
    // A misplaced or misspelled keyword looks like a job that is not a mapping.
    if entry.node.mapping().is_none() {
        let hint = did_you_mean(name, &GLOBAL_KEYS);
        if !hint.is_empty() {
            context.report.unknown_keyword(entry.key_at, format!("unknown keyword `{name}`{hint}"));
            return None;
        }
    }
    if ["spec", "pages:deploy"].contains(&&**name) {
        context.error(
            Class::JobName,
            entry.key_at,
            None,
            format!("`{name}` is reserved by GitLab and cannot be a job"),
        );
        return None;
    }
    let draft = Draft::read(name, entry, defaults, context)?;
    if let Some(stages) = stages.filter(|stages| !stages.contains(&draft.job.stage)) {
        let mut names: Vec<&str> = stages.iter().map(|stage| &**stage).collect();
        names.sort_unstable();
        let hint = did_you_mean(&draft.job.stage, &names);
        let hint = if hint.is_empty() { format!("; the stages are {}", names.join(", ")) } else { hint };
        let message = format!("the stage `{}` is not declared in `stages`{hint}", draft.job.stage);
        context.error(Class::UnknownStage, draft.stage_at, Some(name), message);
        return None;
    }
    Some(draft)
}

/// The declared stages; `None`: they cannot be read, which is reported.
fn read_stages(node: Option<&Node>, context: &mut Context<'_>) -> Option<Vec<Arc<str>>> {
    match node {
        Some(node) => KeywordReader { context, job: None }.nested_texts(node, "stages"),
        None => Some(["build", "test", "deploy"].map(Into::into).to_vec()),
    }
}

/// Puts `.pre` first and `.post` last.
fn with_edges(declared: Vec<Arc<str>>) -> Vec<Arc<str>> {
    let mut stages: Vec<Arc<str>> = vec![".pre".into()];
    let mut seen: HashSet<Arc<str>> = [".pre".into(), ".post".into()].into();
    stages.extend(declared.into_iter().filter(|stage| seen.insert(Arc::clone(stage))));
    stages.push(".post".into());
    stages
}

/// Reads `default`, merged with its deprecated top-level forms.
fn read_defaults(mapping: &Mapping, context: &mut Context<'_>) -> Mapping {
    let mut defaults = Mapping::default();
    if let Some(entry) = mapping.get("default").filter(|entry| !entry.node.is_null()) {
        let mut reader = KeywordReader { context, job: None };
        if reader.check_mapping(&entry.node, "default", &DEFAULT_KEYS).is_some()
            && let Some(own) = entry.node.mapping()
        {
            defaults = own.iter().filter(|(key, _)| DEFAULT_KEYS.contains(&&***key)).map(clone_entry).collect();
        }
    }
    for key in DEPRECATED_DEFAULTS {
        let Some(entry) = mapping.get(key).filter(|entry| !entry.node.is_null()) else { continue };
        if defaults.get(key).is_some_and(|present| !present.node.is_null()) {
            let message = format!("`{key}` is both at the top level and in `default`; keep the one in `default`");
            context.error(Class::DefaultConflict, entry.key_at, None, message);
            continue;
        }
        defaults.insert(key.into(), entry.clone());
    }
    defaults
}

fn clone_entry((key, entry): (&Arc<str>, &MappingEntry)) -> (Arc<str>, MappingEntry) {
    (Arc::clone(key), entry.clone())
}
