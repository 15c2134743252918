//! Reads the keyword `trigger`.

use super::reader::KeywordReader;
use crate::pipeline::include::entry::{INCLUDE_KEYS, is_url};
use crate::pipeline::plan::{Trigger, TriggerForward, TriggerStrategy};
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::Node;

const TRIGGER_KEYS: [&str; 6] = ["project", "branch", "include", "strategy", "forward", "inputs"];

/// The number of files that make up the configuration of a child pipeline, as on GitLab.
const MAX_INCLUDES: usize = 3;

/// The maximum length of a project's path in characters, as on GitLab.
const MAX_PROJECT_LENGTH: usize = 255;

impl KeywordReader<'_, '_> {
    /// Reads `trigger`, a project or a mapping.
    pub fn trigger(&mut self, node: &Node) -> Option<Trigger> {
        let node = if node.text().is_some() { Node::mapping_of("project", node) } else { node.clone() };
        self.check_mapping(&node, "trigger", &TRIGGER_KEYS)?;
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
                let project = self.short_text(project, "trigger:project", MAX_PROJECT_LENGTH)?;
                if let Some(branch) = node.get("branch") {
                    self.text(branch, "trigger:branch")?;
                }
                if let Some(inputs) = node.get("inputs").filter(|inputs| inputs.mapping().is_none()) {
                    return self.bad_value(inputs, "trigger:inputs", "a mapping of names and values");
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
            (Some(_), Some(_)) => {
                self.error(Class::BadValue, node.at, "`trigger:project` and `trigger:include` exclude each other")
            }
            (None, None) => self.missing_key(&node, "trigger", "`project` or `include`"),
        }
    }

    fn forward(&mut self, node: &Node) -> Option<TriggerForward> {
        self.check_mapping(node, "trigger:forward", &["yaml_variables", "pipeline_variables"])?;
        let mut flag = |key: &str, default: bool| match node.get(key) {
            Some(value) => self.boolean(value, &format!("trigger:forward:{key}")),
            None => Some(default),
        };
        Some(TriggerForward {
            yaml_variables: flag("yaml_variables", true)?,
            pipeline_variables: flag("pipeline_variables", false)?,
        })
    }

    /// Normalises `trigger:include` to a list of mappings.
    fn trigger_includes(&mut self, node: &Node) -> Option<Node> {
        let items = self.context.flatten(node, "trigger:include", self.job)?;
        if items.is_empty() || items.len() > MAX_INCLUDES {
            return self.bad_count(node, "trigger:include", items.len(), &format!("1 to {MAX_INCLUDES}"));
        }
        let mut out = Vec::with_capacity(items.len());
        for item in &items {
            if let Some(text) = item.text() {
                out.push(Node::mapping_of(if is_url(text) { "remote" } else { "local" }, item));
                continue;
            }
            self.check_mapping(item, "trigger:include", &INCLUDE_KEYS)?;
            if item.get("artifact").is_some() && item.get("job").is_none() {
                let message = "`trigger:include:artifact` needs `job`, the name of the job with the artifact";
                return self.error(Class::BadValue, item.at, message);
            }
            if item.get("project").is_some() && item.get("file").is_none() {
                return self.error(Class::BadValue, item.at, "`trigger:include:project` needs `file`");
            }
            out.push(item.clone());
        }
        Some(Node::list_at(out, node.at))
    }
}
