//! Reads the keyword `environment`.

use super::reader::KeywordReader;
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::Node;

const ENVIRONMENT_KEYS: [&str; 7] =
    ["name", "url", "action", "auto_stop_in", "on_stop", "kubernetes", "deployment_tier"];

const KUBERNETES_KEYS: [&str; 5] = ["namespace", "agent", "flux_resource_path", "managed_resources", "dashboard"];

/// The maximum length of a URL in characters, as on GitLab.
const MAX_URL_LENGTH: usize = 255;

impl KeywordReader<'_, '_> {
    /// Normalises `environment` to a mapping with `name`.
    pub fn environment(&mut self, node: &Node) -> Option<Node> {
        if node.text().is_some_and(|name| !name.is_empty()) {
            self.environment_name(node, "environment")?;
            return Some(Node::mapping_of("name", node));
        }
        if node.mapping().is_none() {
            return self.bad_value(node, "environment", "a name or a mapping with `name`");
        }
        self.check_mapping(node, "environment", &ENVIRONMENT_KEYS)?;
        match node.get("name") {
            Some(name) => self.environment_name(name, "environment:name")?,
            None => return self.missing_key(node, "environment", "`name`"),
        }
        if let Some(url) = node.get("url") {
            let text = self.text(url, "environment:url")?;
            self.check_length(url, "environment:url", &text, MAX_URL_LENGTH)?;
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
            return self.bad_value(node, keyword, wanted);
        }
        Some(())
    }

    fn environment_kubernetes(&mut self, node: &Node) -> Option<()> {
        let keyword_path = "environment:kubernetes";
        self.check_mapping(node, keyword_path, &KUBERNETES_KEYS)?;
        if node.mapping()?.is_empty() {
            return self.bad_value(node, keyword_path, "a mapping with at least one key");
        }
        for key in ["agent", "namespace", "flux_resource_path"] {
            if let Some(value) = node.get(key) {
                self.text(value, &format!("{keyword_path}:{key}"))?;
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
}
