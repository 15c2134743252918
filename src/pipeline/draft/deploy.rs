//! Reads the keywords `environment`, `trigger`, `id_tokens`, `secrets` and `coverage`.

use std::sync::Arc;

use super::reader::KeywordReader;
use crate::pipeline::include::entry::INCLUDE_KEYS;
use crate::pipeline::plan::{SecretVariable, Trigger, TriggerForward, TriggerStrategy};
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::{Mapping, MappingEntry, Node};

const ENVIRONMENT_KEYS: [&str; 7] =
    ["name", "url", "action", "auto_stop_in", "on_stop", "kubernetes", "deployment_tier"];

const KUBERNETES_KEYS: [&str; 5] = ["namespace", "agent", "flux_resource_path", "managed_resources", "dashboard"];

const MAX_INCLUDES: usize = 3;

/// The longest URL of an environment, and the longest path of a project.
const MAX_URL_LENGTH: usize = 255;

/// A mapping with one key.
fn mapping_with(key: &str, node: &Node) -> Node {
    let entry = MappingEntry { key_at: node.at, node: node.clone() };
    Node::mapping_at(Mapping::from_iter([(key.into(), entry)]), node.at)
}

impl KeywordReader<'_, '_> {
    /// Normalises `environment` to a mapping with `name`.
    pub fn environment(&mut self, node: &Node) -> Option<Node> {
        if node.text().is_some_and(|name| !name.is_empty()) {
            self.environment_name(node, "environment")?;
            return Some(mapping_with("name", node));
        }
        if node.mapping().is_none() {
            return self.bad(node, "environment", "a name or a mapping with `name`");
        }
        self.mapping(node, "environment", &ENVIRONMENT_KEYS)?;
        match node.get("name") {
            Some(name) => self.environment_name(name, "environment:name")?,
            None => return self.bad(node, "environment", "a name or a mapping with `name`"),
        }
        if let Some(url) = node.get("url")
            && self.text(url, "environment:url")?.chars().count() > MAX_URL_LENGTH
        {
            return self.bad(url, "environment:url", &format!("up to {MAX_URL_LENGTH} characters"));
        }
        for key in ["on_stop", "auto_stop_in", "deployment_tier"] {
            if let Some(value) = node.get(key) {
                self.text(value, &format!("environment:{key}"))?;
            }
        }
        if let Some(kubernetes) = node.get("kubernetes") {
            self.environment_kubernetes(kubernetes)?;
        }
        if let Some(action) = node.get("action") {
            self.one_of(action, "environment:action", &["start", "stop", "prepare", "verify", "access"])?;
        }
        for key in ["on_stop", "auto_stop_in"] {
            if node.get(key).is_some() {
                let message = format!("`environment:{key}` has no effect; only a GitLab server stops environments");
                self.context.report.warn(node.at, self.job, message);
            }
        }
        Some(node.clone())
    }

    fn environment_name(&mut self, node: &Node, keyword: &str) -> Option<()> {
        let name = self.text(node, keyword)?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_/${}. -".contains(c);
        if name.is_empty() || name.starts_with('/') || name.ends_with('/') || !name.chars().all(allowed) {
            let wanted = "a name of letters, digits, blanks and `-_/${}.`, without `/` at the ends";
            return self.bad(node, keyword, wanted);
        }
        Some(())
    }

    fn environment_kubernetes(&mut self, node: &Node) -> Option<()> {
        let place = "environment:kubernetes";
        self.mapping(node, place, &KUBERNETES_KEYS)?;
        if node.mapping()?.is_empty() {
            return self.bad(node, place, "a mapping with at least one key");
        }
        for key in ["agent", "namespace", "flux_resource_path"] {
            if let Some(value) = node.get(key) {
                self.text(value, &format!("{place}:{key}"))?;
            }
        }
        let given = |key: &str| node.get(key).and_then(Node::text).is_some_and(|text| !text.is_empty());
        let managed = node.get("managed_resources").and_then(|managed| managed.get("enabled"));
        let needs_agent = given("flux_resource_path")
            || node.get("dashboard").is_some()
            || managed.and_then(Node::boolean) == Some(true);
        if needs_agent && !given("agent") {
            let message = "`flux_resource_path`, `dashboard` and `managed_resources:enabled` of `environment:kubernetes` need `agent`";
            return self.error(Class::BadValue, node.at, message);
        }
        if given("flux_resource_path") && !given("namespace") {
            let message = "`environment:kubernetes:flux_resource_path` needs `namespace`";
            return self.error(Class::BadValue, node.at, message);
        }
        Some(())
    }

    pub fn trigger(&mut self, node: &Node) -> Option<Trigger> {
        let keys = ["project", "branch", "include", "strategy", "forward", "inputs"];
        let node = if node.text().is_some() { mapping_with("project", node) } else { node.clone() };
        self.mapping(&node, "trigger", &keys)?;
        let strategy = match node.get("strategy") {
            None => TriggerStrategy::None,
            Some(strategy) => match &*self.one_of(strategy, "trigger:strategy", &["depend", "mirror"])? {
                "mirror" => TriggerStrategy::Mirror,
                _ => TriggerStrategy::Depend,
            },
        };
        let forward = match node.get("forward") {
            None => TriggerForward { yaml_variables: true, pipeline_variables: false },
            Some(forward) => self.forward(forward)?,
        };
        match (node.get("project"), node.get("include")) {
            (Some(project), None) => {
                let project = self.short_text(project, "trigger:project", MAX_URL_LENGTH)?;
                if let Some(branch) = node.get("branch") {
                    self.text(branch, "trigger:branch")?;
                }
                if let Some(inputs) = node.get("inputs").filter(|inputs| inputs.mapping().is_none()) {
                    return self.bad(inputs, "trigger:inputs", "a mapping of names and values");
                }
                Some(Trigger::Project { project, strategy, forward, node })
            }
            (None, Some(include)) => {
                let include = self.trigger_includes(include)?;
                let mut mapping = (**node.mapping()?).clone();
                mapping.get_mut("include")?.node = include.clone();
                let node = Node::mapping_at(mapping, node.at);
                Some(Trigger::Child { include, strategy, forward, node })
            }
            (Some(_), Some(_)) => self.bad(&node, "trigger", "either `project` or `include`"),
            (None, None) => self.bad(&node, "trigger", "a project, or a mapping with `project` or `include`"),
        }
    }

    fn forward(&mut self, node: &Node) -> Option<TriggerForward> {
        self.mapping(node, "trigger:forward", &["yaml_variables", "pipeline_variables"])?;
        let mut flag = |key: &str, default: bool| match node.get(key) {
            Some(value) => self.boolean(value, &format!("trigger:forward:{key}")),
            None => Some(default),
        };
        Some(TriggerForward {
            yaml_variables: flag("yaml_variables", true)?,
            pipeline_variables: flag("pipeline_variables", false)?,
        })
    }

    fn trigger_includes(&mut self, node: &Node) -> Option<Node> {
        let items = self.context.flatten(node, "trigger:include", self.job)?;
        if items.is_empty() || items.len() > MAX_INCLUDES {
            return self.bad(node, "trigger:include", &format!("1 to {MAX_INCLUDES} files"));
        }
        let mut out = Vec::with_capacity(items.len());
        for item in &items {
            if let Some(text) = item.text() {
                let remote = text.starts_with("https://") || text.starts_with("http://");
                out.push(mapping_with(if remote { "remote" } else { "local" }, item));
                continue;
            }
            self.mapping(item, "trigger:include", &INCLUDE_KEYS)?;
            if item.get("artifact").is_some() && item.get("job").is_none() {
                return self.bad(item, "trigger:include:artifact", "`job`, the job that made the artifact");
            }
            if item.get("project").is_some() && item.get("file").is_none() {
                return self.error(Class::BadValue, item.at, "`trigger:include:project` needs `file`");
            }
            out.push(item.clone());
        }
        Some(Node::list_at(out, node.at))
    }

    /// Reads the names of `id_tokens`.
    pub fn id_tokens(&mut self, node: &Node) -> Option<Vec<Arc<str>>> {
        let Some(mapping) = node.mapping() else { return self.bad(node, "id_tokens", "a mapping") };
        for (key, entry) in mapping.iter() {
            let place = format!("id_tokens:{key}");
            self.mapping(&entry.node, &place, &["aud"])?;
            match entry.node.get("aud") {
                Some(aud) => self.text_or_flat_texts(aud, &format!("{place}:aud"))?,
                None => return self.bad(&entry.node, &place, "`aud`"),
            };
        }
        let message = "`id_tokens`: only a GitLab server signs tokens; set variables of these names to local values";
        self.context.report.warn(node.at, self.job, message);
        Some(mapping.keys().cloned().collect())
    }

    /// Reads the names of `secrets`, and whether the job gets a file.
    pub fn secrets(&mut self, node: &Node) -> Option<Vec<SecretVariable>> {
        let Some(mapping) = node.mapping() else { return self.bad(node, "secrets", "a mapping") };
        let mut secrets = Vec::with_capacity(mapping.len());
        for (key, entry) in mapping.iter() {
            if entry.node.mapping().is_none() {
                return self.bad(&entry.node, &format!("secrets:{key}"), "a mapping that names a vault");
            }
            let file = match entry.node.get("file") {
                Some(file) => self.boolean(file, &format!("secrets:{key}:file"))?,
                None => true,
            };
            secrets.push(SecretVariable { key: Arc::clone(key), file });
        }
        let message = "`secrets`: secrets are not fetched from vaults; set variables of these names to local values";
        self.context.report.warn(node.at, self.job, message);
        Some(secrets)
    }

    /// Checks the pattern of `coverage`; the result keeps its slashes.
    pub fn coverage(&mut self, node: &Node) -> Option<Arc<str>> {
        let text = self.text(node, "coverage")?;
        match crate::pipeline::pattern::RegexPattern::between_slashes(&text) {
            Some(Ok(_)) => Some(text),
            Some(Err(why)) => self.error(Class::BadValue, node.at, format!("`coverage: {text}` cannot be used: {why}")),
            None => self.bad(node, "coverage", "a pattern between slashes"),
        }
    }
}
