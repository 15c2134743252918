//! Reads the keywords `environment`, `trigger`, and those that only a GitLab server acts on.

use std::sync::Arc;

use super::reader::KeywordReader;
use crate::pipeline::plan::{SecretVariable, Trigger, TriggerForward, TriggerStrategy};
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::{Mapping, MappingEntry, Node};

const ENVIRONMENT_KEYS: [&str; 7] =
    ["name", "url", "action", "auto_stop_in", "on_stop", "kubernetes", "deployment_tier"];

const INCLUDES_LIMIT: usize = 3;

/// A mapping with one key.
fn wrap(key: &str, node: &Node) -> Node {
    let entry = MappingEntry { key_at: node.at, node: node.clone() };
    Node::mapping_at(Mapping::from_iter([(key.into(), entry)]), node.at)
}

impl KeywordReader<'_, '_> {
    /// Normalises `environment` to a mapping with `name`.
    pub fn environment(&mut self, node: &Node) -> Option<Node> {
        if node.text().is_some_and(|name| !name.is_empty()) {
            return Some(wrap("name", node));
        }
        if node.mapping().is_none() {
            return self.bad(node, "environment", "a name or a mapping with `name`");
        }
        self.mapping(node, "environment", &ENVIRONMENT_KEYS)?;
        match node.get("name") {
            Some(name) => self.text(name, "environment:name")?,
            None => return self.bad(node, "environment", "a name or a mapping with `name`"),
        };
        for key in ["url", "on_stop", "auto_stop_in"] {
            if let Some(value) = node.get(key) {
                self.printed(value, &format!("environment:{key}"))?;
            }
        }
        if let Some(action) = node.get("action") {
            self.one_of(action, "environment:action", &["start", "stop", "prepare", "verify", "access"])?;
        }
        if let Some(tier) = node.get("deployment_tier") {
            let tiers = ["production", "staging", "testing", "development", "other"];
            self.one_of(tier, "environment:deployment_tier", &tiers)?;
        }
        for key in ["on_stop", "auto_stop_in"] {
            if node.get(key).is_some() {
                let message = format!("`environment:{key}` has no effect; only a GitLab server stops environments");
                self.context.report.warn(node.at, self.job, message);
            }
        }
        Some(node.clone())
    }

    pub fn trigger(&mut self, node: &Node) -> Option<Trigger> {
        let keys = ["project", "branch", "include", "strategy", "forward", "inputs"];
        let node = if node.text().is_some() { wrap("project", node) } else { node.clone() };
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
                let project = self.text(project, "trigger:project")?;
                if let Some(branch) = node.get("branch") {
                    self.printed(branch, "trigger:branch")?;
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
        if items.is_empty() || items.len() > INCLUDES_LIMIT {
            return self.bad(node, "trigger:include", &format!("1 to {INCLUDES_LIMIT} files"));
        }
        let mut out = Vec::with_capacity(items.len());
        for item in &items {
            if let Some(text) = item.text() {
                let remote = text.starts_with("https://") || text.starts_with("http://");
                out.push(wrap(if remote { "remote" } else { "local" }, item));
                continue;
            }
            let keys =
                ["local", "project", "ref", "file", "remote", "template", "component", "artifact", "job", "inputs"];
            self.mapping(item, "trigger:include", &keys)?;
            if item.get("artifact").is_some() && item.get("job").is_none() {
                return self.bad(item, "trigger:include:artifact", "`job`, the job that made the artifact");
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
                Some(aud) => self.text_or_texts(aud, &format!("{place}:aud"))?,
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

    /// Checks a keyword that only a GitLab server acts on, and warns that the keyword has no effect.
    pub fn server_only(&mut self, key: &str, node: &Node) -> Option<()> {
        let valid = match key {
            "release" => node.get("tag_name").is_some() && node.get("description").is_some(),
            "pages" => node.boolean().is_some() || node.mapping().is_some(),
            "publish" | "identity" => node.text().is_some(),
            _ => node.mapping().is_some(),
        };
        if !valid {
            let wanted = match key {
                "release" => "a mapping with `tag_name` and `description`",
                "pages" => "true, false or a mapping",
                "publish" | "identity" => "text",
                _ => "a mapping",
            };
            return self.bad(node, key, wanted);
        }
        let message = format!("`{key}` has no effect; only a GitLab server acts on this keyword");
        self.context.report.warn(node.at, self.job, message);
        Some(())
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
