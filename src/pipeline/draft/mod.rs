//! Reads a job as written in the file: checks each keyword. `parallel`, rules and needs are resolved later.

pub mod deploy;
pub mod images;
pub mod inherit;
pub mod needs;
pub mod parallel;
pub mod reader;
pub mod scheduling;
pub mod server;
pub mod storage;
pub mod variables;

use std::sync::Arc;

pub use self::inherit::Inherit;
use self::needs::{Name, Needs};
use self::parallel::Parallel;
use self::reader::KeywordReader;
use super::context::Context;
use super::plan::{AllowFailure, Decision, Job, Trigger, Variable, VariableLevel, When};
use super::problem::Class;
use super::rules::policy::OnlyExcept;
use super::rules::rule::Rule;
use super::suggest::did_you_mean;
use super::syntax::{Mapping, MappingEntry, Node, Origin, Value};

/// Keywords of jobs, sorted for binary search.
const JOB_KEYS: [&str; 39] = [
    "after_script",
    "allow_failure",
    "artifacts",
    "before_script",
    "cache",
    "coverage",
    "dast_configuration",
    "dependencies",
    "environment",
    "except",
    "extends",
    "hooks",
    "id_tokens",
    "identity",
    "image",
    "inherit",
    "inputs",
    "interruptible",
    "manual_confirmation",
    "needs",
    "only",
    "pages",
    "parallel",
    "publish",
    "release",
    "resource_group",
    "retry",
    "rules",
    "run",
    "script",
    "secrets",
    "services",
    "stage",
    "start_in",
    "tags",
    "timeout",
    "trigger",
    "variables",
    "when",
];

/// Keywords of jobs with `trigger`, sorted for binary search.
const TRIGGER_KEYS: [&str; 15] = [
    "allow_failure",
    "environment",
    "except",
    "extends",
    "inherit",
    "interruptible",
    "needs",
    "only",
    "parallel",
    "resource_group",
    "rules",
    "stage",
    "trigger",
    "variables",
    "when",
];

/// Keywords that `default` may hold.
pub const DEFAULT_KEYS: [&str; 13] = [
    "after_script",
    "artifacts",
    "before_script",
    "cache",
    "hooks",
    "id_tokens",
    "identity",
    "image",
    "interruptible",
    "retry",
    "services",
    "tags",
    "timeout",
];

/// A job as written in the file.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The parts of the job that do not depend on other jobs.
    pub job: Job,
    /// Where `stage` is written.
    pub stage_at: Origin,
    /// `when` as written.
    pub when: Option<When>,
    /// `allow_failure` as written.
    pub allow_failure: Option<AllowFailure>,
    pub variables: Vec<Variable>,
    /// Which default variables the job inherits.
    pub inherit_variables: Inherit,
    pub needs: Option<Needs>,
    pub dependencies: Option<Vec<Name>>,
    pub parallel: Option<Parallel>,
    pub rules: Option<Arc<Vec<Rule>>>,
    pub only: Option<OnlyExcept>,
    pub except: Option<OnlyExcept>,
    pub environment: Option<Node>,
}

impl Draft {
    fn new(name: &Arc<str>, at: Origin, definition: Node) -> Self {
        let job = Job {
            name: Arc::clone(name),
            group: Arc::clone(name),
            at,
            stage: "test".into(),
            stage_index: 0,
            when: When::OnSuccess,
            start_in: None,
            allow_failure: AllowFailure::No,
            manual_confirmation: None,
            script: None,
            before_script: None,
            after_script: None,
            image: None,
            services: None,
            variables: Vec::new(),
            needs: None,
            dependencies: None,
            tags: None,
            resource_group: None,
            coverage: None,
            interruptible: None,
            pre_get_sources_script: None,
            retry: None,
            timeout: None,
            artifacts: None,
            cache: None,
            cache_keys: Vec::new(),
            environment: None,
            trigger: None,
            id_tokens: Vec::new(),
            secrets: Vec::new(),
            parallel: None,
            decision: Decision::NoRules,
            run: false,
            definition,
            from_default: Vec::new(),
        };
        Self {
            job,
            stage_at: at,
            when: None,
            allow_failure: None,
            variables: Vec::new(),
            inherit_variables: Inherit::All,
            needs: None,
            dependencies: None,
            parallel: None,
            rules: None,
            only: None,
            except: None,
            environment: None,
        }
    }

    /// Reads a job. A keyword with a problem is reported and skipped. `None`: the entry cannot be read as a job.
    pub fn read(name: &Arc<str>, entry: &MappingEntry, defaults: &Mapping, context: &mut Context<'_>) -> Option<Self> {
        let at = entry.key_at;
        let mut reader = KeywordReader { context, job: Some(name) };
        let Some(own) = entry.node.mapping() else {
            let message = format!(
                "it is {}, not a mapping with script, run or trigger; names of templates begin with a dot",
                entry.node.kind()
            );
            return reader.error(Class::NotAMapping, at, message);
        };
        let trigger = entry.node.get("trigger").is_some();
        reader.check_keys(own, trigger, at)?;
        let (inherited, inherit_variables) = reader.inherit(entry.node.get("inherit"))?;
        let (definition, from_default) = definition(own, defaults, &inherited, trigger);
        let definition = Arc::new(definition);
        let node = Node { value: Value::Mapping(Arc::clone(&definition)), at: entry.node.at };
        let mut draft = Self::new(name, at, node);
        draft.inherit_variables = inherit_variables;
        draft.job.from_default = from_default;
        let mut identity = Some(());
        for (key, entry) in definition.iter() {
            // A problem in one keyword must not hide problems in others. But without `stage` or `parallel`, the set of
            // jobs is unknown.
            let read = reader.keyword(key, &entry.node, &mut draft);
            if read.is_none() && matches!(&**key, "stage" | "parallel") {
                identity = None;
            }
        }
        if let Some(mirrored) = draft.mirrored_pipeline() {
            draft.job.trigger = reader.trigger(&mirrored);
        }
        draft.job.artifacts = reader.published(name, &draft.job.definition, draft.job.artifacts.take());
        reader.check_whole(&draft, at);
        identity.map(|()| draft)
    }

    /// For a job that only mirrors the pipeline of another project (`needs:pipeline`), that project.
    fn mirrored_pipeline(&self) -> Option<Node> {
        let definition = &self.job.definition;
        if ["script", "run", "trigger"].into_iter().any(|key| definition.get(key).is_some()) {
            return None;
        }
        let needs = definition.get("needs")?;
        let single = std::slice::from_ref(needs);
        let mut items = needs.list().unwrap_or(single).iter().filter(|item| item.get("job").is_none());
        let pipeline = items.find_map(|item| item.get("pipeline")).filter(|pipeline| pipeline.text().is_some());
        pipeline.cloned()
    }

    pub fn check_defaults(defaults: &Mapping, context: &mut Context<'_>) {
        let mut reader = KeywordReader { context, job: None };
        let mut draft =
            Self::new(&"default".into(), Origin::default(), Node::mapping_at(Mapping::default(), Origin::default()));
        for (key, entry) in defaults.iter().filter(|(_, entry)| !entry.node.is_null()) {
            let _ = reader.keyword(key, &entry.node, &mut draft);
        }
    }
}

/// Merges the job's own keywords with the inherited ones of `default`; also returns the names of the latter.
fn definition(own: &Mapping, defaults: &Mapping, inherited: &Inherit, trigger: bool) -> (Mapping, Vec<Arc<str>>) {
    let mut merged = Mapping::with_capacity_and_hasher(own.len() + defaults.len(), Default::default());
    let mut from_default = Vec::new();
    for (key, entry) in own.iter().filter(|(_, entry)| !entry.node.is_null()) {
        merged.insert(Arc::clone(key), entry.clone());
    }
    for (key, entry) in defaults.iter().filter(|(key, entry)| !entry.node.is_null() && inherited.takes(key)) {
        if !merged.contains_key(key) && (!trigger || &**key == "interruptible") {
            merged.insert(Arc::clone(key), entry.clone());
            from_default.push(Arc::clone(key));
        }
    }
    (merged, from_default)
}

impl KeywordReader<'_, '_> {
    fn check_keys(&mut self, own: &Mapping, trigger: bool, at: Origin) -> Option<()> {
        let given = |key: &str| own.get(key).is_some_and(|entry| !entry.node.is_null());
        if trigger && (given("script") || given("run")) {
            let other = if given("script") { "script" } else { "run" };
            return self.error(Class::ScriptAndTrigger, at, format!("`{other}` and `trigger` exclude each other"));
        }
        let known: &[&str] = if trigger { &TRIGGER_KEYS } else { &JOB_KEYS };
        for (key, entry) in own.iter().filter(|(key, _)| known.binary_search(&&***key).is_err()) {
            let message = if trigger && JOB_KEYS.contains(&&**key) {
                format!("a job with `trigger` cannot have `{key}`")
            } else {
                format!("unknown keyword `{key}`{}", did_you_mean(key, known))
            };
            self.context.report.unknown_of(entry.key_at, self.job, message);
        }
        Some(())
    }

    fn keyword(&mut self, key: &str, node: &Node, draft: &mut Draft) -> Option<()> {
        let job = &mut draft.job;
        match key {
            "script" => job.script = Some(self.commands(node, key)?),
            "before_script" => job.before_script = Some(self.commands(node, key)?),
            "after_script" => job.after_script = Some(self.commands(node, key)?),
            "stage" => {
                job.stage = self.text(node, key)?;
                draft.stage_at = node.at;
            }
            "image" => job.image = Some(self.image(node)?),
            "services" => job.services = Some(self.services(node)?),
            "variables" => draft.variables = self.variables(node, VariableLevel::Job, key),
            "rules" => draft.rules = Some(Arc::new(self.rules(node)?)),
            "only" => draft.only = Some(self.policy(node, key)?),
            "except" => draft.except = Some(self.policy(node, key)?),
            "when" => draft.when = self.when(node, key, false)?,
            "start_in" => job.start_in = Some(self.start_in(node, key)?),
            "allow_failure" => draft.allow_failure = Some(self.allow_failure(node)?),
            "manual_confirmation" => job.manual_confirmation = Some(self.text(node, key)?),
            "needs" => draft.needs = Some(self.needs(node, key)?),
            "dependencies" => draft.dependencies = Some(self.dependencies(node)?),
            "parallel" => draft.parallel = Some(self.parallel(node)?),
            "retry" => job.retry = Some(self.retry(node)?),
            "timeout" => job.timeout = Some(self.timeout(node)?),
            "artifacts" => job.artifacts = Some(self.artifacts(node)?),
            "cache" => job.cache = Some(self.caches(node)?),
            "coverage" => job.coverage = Some(self.coverage(node)?),
            "hooks" => {
                self.mapping(node, key, &["pre_get_sources_script"])?;
                if let Some(commands) = node.get("pre_get_sources_script") {
                    job.pre_get_sources_script = Some(self.commands(commands, "hooks:pre_get_sources_script")?);
                }
            }
            "tags" => job.tags = Some(self.tags(node)?),
            "interruptible" => job.interruptible = Some(self.boolean(node, key)?),
            "resource_group" => job.resource_group = Some(self.text(node, key)?),
            "environment" => draft.environment = Some(self.environment(node)?),
            "trigger" => {
                let trigger = self.trigger(node)?;
                if let Trigger::Project { project, .. } = &trigger
                    && !self.context.request.sources.runs_pipelines_of(project)
                {
                    let message = format!(
                        "`trigger`: a local run starts the pipeline of {project} only from a checkout: add --map-project \
                         {project}=DIR"
                    );
                    self.context.report.warn(node.at, self.job, message);
                }
                job.trigger = Some(trigger);
            }
            "id_tokens" => job.id_tokens = self.id_tokens(node)?,
            "secrets" => job.secrets = self.secrets(node)?,
            "release" | "pages" | "publish" | "identity" | "dast_configuration" | "inputs" => {
                self.server_only(key, node)?;
            }
            "run" => {
                if node.list().is_none() && node.text().is_none() {
                    return self.bad(node, key, "a list of steps");
                }
                job.run = true;
                let message = "`run`: a local run cannot run steps; the job fails when it starts";
                self.context.report.warn(node.at, self.job, message);
            }
            // `extends` and `inherit` are already applied; unknown keywords are already reported.
            _ => {}
        }
        Some(())
    }

    /// Checks rules that concern several keywords, as far as each keyword was read.
    fn check_whole(&mut self, draft: &Draft, at: Origin) {
        let job = &draft.job;
        let given = |key: &str| job.definition.get(key).is_some();
        let own = |key: &str| given(key) && !job.from_default.iter().any(|name| &**name == key);
        let is_blank = job.definition.get("script").and_then(Node::text).is_some_and(|text| text.trim().is_empty());
        let has_script = !is_blank && job.script.as_ref().is_some_and(|lines| !lines.is_empty());
        let is_readable = given("script") == job.script.is_some();
        let is_trigger = job.trigger.is_some() || given("trigger");
        let mut wrong = |class, message: &str| self.error::<()>(class, at, message);
        if !has_script && is_readable && !is_trigger && !given("run") && !is_script_misspelled(&job.definition) {
            wrong(Class::MissingScript, "there is no `script`; a job needs script, run or trigger");
        }
        for other in ["script", "before_script", "after_script"] {
            if job.run && own(other) {
                wrong(Class::ScriptAndTrigger, &format!("`{other}` and `run` exclude each other"));
            }
        }
        if is_trigger && draft.when == Some(When::Delayed) {
            wrong(Class::BadWhen, "a job with `trigger` cannot have `when: delayed`");
            return;
        }
        if is_trigger && matches!(draft.allow_failure, Some(AllowFailure::ExitCodes(_))) {
            wrong(Class::BadValue, "a job with `trigger` cannot have `allow_failure:exit_codes`");
        }
        if is_trigger && matches!(draft.parallel, Some(Parallel::Count(_))) {
            wrong(Class::BadValue, "`parallel` of a job with `trigger` takes a matrix, not a number");
        }
        for other in ["only", "except"] {
            if given("rules") && given(other) {
                wrong(Class::RulesWithOnly, &format!("`rules` and `{other}` exclude each other"));
            }
        }
        let delayed = draft.when == Some(When::Delayed);
        if is_trigger {
            return;
        }
        if given("start_in") && given("rules") {
            wrong(Class::StartIn, "`start_in` and `rules` exclude each other; write `start_in` into a rule");
        } else if given("start_in") && !delayed && given("when") == draft.when.is_some() {
            wrong(Class::StartIn, "`start_in` needs `when: delayed`");
        }
        if delayed && !given("start_in") {
            wrong(Class::StartIn, "`when: delayed` needs `start_in`");
        }
    }
}

/// If `script` is misspelled, only the unknown keyword is reported, not the missing `script`.
fn is_script_misspelled(definition: &Node) -> bool {
    let keys = definition.mapping().into_iter().flat_map(|mapping| mapping.keys());
    let mut unknown = keys.filter(|key| JOB_KEYS.binary_search(&&***key).is_err());
    unknown.any(|key| !did_you_mean(key, &["script", "trigger"]).is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyword_tables_are_sorted_for_binary_search() {
        assert!(JOB_KEYS.is_sorted() && TRIGGER_KEYS.is_sorted());
        assert!(TRIGGER_KEYS.iter().chain(&DEFAULT_KEYS).all(|key| JOB_KEYS.contains(key)));
    }
}
