//! The keywords of a job: reads each into the job's draft, and checks them against each other.

use std::sync::Arc;

use super::Draft;
use super::parallel::Parallel;
use super::reader::KeywordReader;
use crate::pipeline::pattern::RegexPattern;
use crate::pipeline::plan::{AllowFailure, Trigger, VariableLevel, When};
use crate::pipeline::problem::Class;
use crate::pipeline::suggest::did_you_mean;
use crate::pipeline::syntax::{Mapping, Node, Origin};

/// Keywords of jobs that run commands, sorted for binary search.
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
const TRIGGER_JOB_KEYS: [&str; 15] = [
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

/// Which keywords a job may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// The job runs commands.
    Script,
    /// The job starts another pipeline.
    Trigger,
}

impl KeywordReader<'_, '_> {
    /// Reports unknown keywords, and `script` beside `trigger`.
    pub fn check_keys(&mut self, own: &Mapping, kind: JobKind, at: Origin) -> Option<()> {
        let given = |key: &str| own.get(key).is_some_and(|entry| !entry.node.is_null());
        if kind == JobKind::Trigger && (given("script") || given("run")) {
            let other = if given("script") { "script" } else { "run" };
            return self.error(Class::ScriptAndTrigger, at, format!("`{other}` and `trigger` exclude each other"));
        }
        let known: &[&str] = match kind {
            JobKind::Script => &JOB_KEYS,
            JobKind::Trigger => &TRIGGER_JOB_KEYS,
        };
        for (key, entry) in own.iter().filter(|(key, _)| known.binary_search(&&***key).is_err()) {
            let message = if kind == JobKind::Trigger && JOB_KEYS.contains(&&**key) {
                format!("a job with `trigger` cannot have `{key}`")
            } else {
                format!("unknown keyword `{key}`{}", did_you_mean(key, known))
            };
            // An unknown keyword does not prevent the reading of the others.
            let _ = self.context.report.unknown_keyword_of(entry.key_at, self.job, message);
        }
        Some(())
    }

    /// Reads a keyword. `None`: there is a problem, which is already reported.
    pub fn read_keyword(&mut self, key: &str, node: &Node, draft: &mut Draft) -> Option<()> {
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
            "when" => draft.when = Some(self.job_when(node)?),
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
            "hooks" => job.pre_get_sources_script = self.hooks(node)?,
            "tags" => job.tags = Some(self.tags(node)?),
            "interruptible" => job.interruptible = Some(self.boolean(node, key)?),
            "resource_group" => job.resource_group = Some(self.text(node, key)?),
            "environment" => draft.environment = Some(self.environment(node)?),
            "trigger" => job.trigger = Some(self.job_trigger(node)?),
            "id_tokens" => job.id_tokens = self.id_tokens(node)?,
            "secrets" => job.secrets = self.secrets(node)?,
            "release" | "pages" | "publish" | "identity" | "dast_configuration" | "inputs" => {
                self.server_only(key, node)?;
            }
            "run" => {
                self.run_steps(node)?;
                job.run = true;
            }
            // `extends` and `inherit` are already applied; unknown keywords are already reported.
            _ => {}
        }
        Some(())
    }

    /// Reads `hooks`: the commands of `pre_get_sources_script`, if given.
    fn hooks(&mut self, node: &Node) -> Option<Option<Vec<Arc<str>>>> {
        self.check_mapping(node, "hooks", &["pre_get_sources_script"])?;
        Some(match node.get("pre_get_sources_script") {
            Some(commands) => Some(self.commands(commands, "hooks:pre_get_sources_script")?),
            None => None,
        })
    }

    /// Reads `trigger`; a warning if the user must add an option for the pipeline to start.
    fn job_trigger(&mut self, node: &Node) -> Option<Trigger> {
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
        Some(trigger)
    }

    /// Checks the pattern of `coverage`; the result keeps its slashes.
    pub fn coverage(&mut self, node: &Node) -> Option<Arc<str>> {
        let text = self.text(node, "coverage")?;
        match RegexPattern::between_slashes(&text) {
            Some(Ok(_)) => Some(text),
            Some(Err(why)) => self.error(Class::BadValue, node.at, format!("`coverage: {text}` cannot be used: {why}")),
            None => self.bad_value(node, "coverage", "a pattern between slashes"),
        }
    }

    /// Checks `run`, which a local run cannot execute.
    fn run_steps(&mut self, node: &Node) -> Option<()> {
        if node.list().is_none() && node.text().is_none() {
            return self.bad_value(node, "run", "a list of steps");
        }
        let message = "`run`: a local run cannot run steps; the job fails when it starts";
        self.context.report.warn(node.at, self.job, message);
        Some(())
    }

    /// Checks rules that concern several keywords, as far as each keyword was read.
    pub fn check_combinations(&mut self, draft: &Draft, at: Origin) {
        let job = &draft.job;
        let given = |key: &str| job.definition.get(key).is_some();
        let own = |key: &str| given(key) && !job.from_default.iter().any(|name| &**name == key);
        let is_blank = job.definition.get("script").and_then(Node::text).is_some_and(|text| text.trim().is_empty());
        let has_script = !is_blank && job.script.as_ref().is_some_and(|lines| !lines.is_empty());
        let is_readable = given("script") == job.script.is_some();
        let is_trigger = job.trigger.is_some() || given("trigger");
        let mut wrong = |class, message: &str| self.error::<()>(class, at, message);
        if !has_script && is_readable && !is_trigger && !given("run") && !is_script_misspelled(&job.definition) {
            wrong(Class::MissingScript, "`script` is missing or empty; a job needs script, run or trigger");
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
    use super::super::DEFAULT_KEYS;
    use super::*;

    #[test]
    fn keyword_tables_are_sorted_for_binary_search() {
        assert!(JOB_KEYS.is_sorted() && TRIGGER_JOB_KEYS.is_sorted());
        assert!(TRIGGER_JOB_KEYS.iter().chain(&DEFAULT_KEYS).all(|key| JOB_KEYS.contains(key)));
    }
}
