//! Reads a job as written in the file: checks each keyword, and collects the values in a [`Draft`].
//!
//! [`Draft::read`] is the way in. [`reader::KeywordReader`] has the checks that many keywords share; each other file adds
//! methods to it for some keywords, and [`keywords`] has the table from keyword to method. Later steps expand `parallel`,
//! evaluate rules and resolve needs.

mod artifacts;
pub mod cache;
mod environment;
mod images;
mod inherit;
mod keywords;
pub mod needs;
pub mod parallel;
pub mod reader;
pub mod scheduling;
mod secrets;
mod server;
mod trigger;
pub mod variables;

use std::sync::Arc;

pub use self::inherit::Inherit;
use self::keywords::JobKind;
use self::needs::{Needs, WrittenName};
use self::parallel::Parallel;
use self::reader::KeywordReader;
use super::context::Context;
use super::plan::{AllowFailure, Decision, Job, Variable, When};
use super::problem::Class;
use super::rules::policy::OnlyExcept;
use super::rules::rule::Rule;
use super::syntax::{Mapping, MappingEntry, Node, Origin, YamlValue};

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
    pub dependencies: Option<Vec<WrittenName>>,
    pub parallel: Option<Parallel>,
    pub rules: Option<Arc<Vec<Rule>>>,
    pub only: Option<OnlyExcept>,
    pub except: Option<OnlyExcept>,
    pub environment: Option<Node>,
}

impl Draft {
    fn new(name: &Arc<str>, at: Origin, definition: Node) -> Self {
        Self {
            job: job_without_keywords(name, at, definition),
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
                "its value is {}, not a mapping with script, run or trigger; to define a template, begin its name with a dot",
                entry.node.kind()
            );
            return reader.error(Class::NotAMapping, at, message);
        };
        let kind = if entry.node.get("trigger").is_some() { JobKind::Trigger } else { JobKind::Script };
        reader.check_keys(own, kind, at)?;
        let (inherited, inherit_variables) = reader.inherit(entry.node.get("inherit"))?;
        let (definition, from_default) = definition(own, defaults, &inherited, kind);
        let definition = Arc::new(definition);
        let node = Node { value: YamlValue::Mapping(Arc::clone(&definition)), at: entry.node.at };
        let mut draft = Self::new(name, at, node);
        draft.inherit_variables = inherit_variables;
        draft.job.from_default = from_default;
        let mut has_identity = true;
        for (key, entry) in definition.iter() {
            // A problem in one keyword must not hide problems in others. But without `stage` or `parallel`, later
            // steps cannot tell which jobs exist, and would report follow-on problems.
            let read = reader.read_keyword(key, &entry.node, &mut draft);
            if read.is_none() && matches!(&**key, "stage" | "parallel") {
                has_identity = false;
            }
        }
        if let Some(mirrored) = draft.mirrored_pipeline() {
            draft.job.trigger = reader.trigger(&mirrored);
        }
        draft.job.artifacts = reader.with_published_directory(name, &draft.job.definition, draft.job.artifacts.take());
        reader.check_combinations(&draft, at);
        has_identity.then_some(draft)
    }

    /// The project whose pipeline the job mirrors (`needs:pipeline`), if the job has nothing to run.
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

    /// Checks the keywords in `default`. The jobs report only what they inherit, so a keyword that no job inherits is
    /// checked here.
    pub fn check_defaults(defaults: &Mapping, context: &mut Context<'_>) {
        let mut reader = KeywordReader { context, job: None };
        let mut draft =
            Self::new(&"default".into(), Origin::default(), Node::mapping_at(Mapping::default(), Origin::default()));
        for (key, entry) in defaults.iter().filter(|(_, entry)| !entry.node.is_null()) {
            let _ = reader.read_keyword(key, &entry.node, &mut draft);
        }
    }
}

/// A job with GitLab's default for each keyword.
fn job_without_keywords(name: &Arc<str>, at: Origin, definition: Node) -> Job {
    Job {
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
    }
}

/// Merges the job's own keywords with the inherited ones of `default`; also returns the names of the latter.
fn definition(own: &Mapping, defaults: &Mapping, inherited: &Inherit, kind: JobKind) -> (Mapping, Vec<Arc<str>>) {
    let mut merged = Mapping::with_capacity_and_hasher(own.len() + defaults.len(), Default::default());
    let mut from_default = Vec::new();
    for (key, entry) in own.iter().filter(|(_, entry)| !entry.node.is_null()) {
        merged.insert(Arc::clone(key), entry.clone());
    }
    for (key, entry) in defaults.iter().filter(|(key, entry)| !entry.node.is_null() && inherited.takes(key)) {
        if !merged.contains_key(key) && (kind == JobKind::Script || &**key == "interruptible") {
            merged.insert(Arc::clone(key), entry.clone());
            from_default.push(Arc::clone(key));
        }
    }
    (merged, from_default)
}
