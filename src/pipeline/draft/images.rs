//! Reads the keywords `image` and `services`.

use super::reader::KeywordReader;
use crate::pipeline::syntax::Node;

const IMAGE_KEYS: [&str; 5] = ["name", "entrypoint", "pull_policy", "docker", "kubernetes"];

const SERVICE_KEYS: [&str; 8] =
    ["name", "alias", "entrypoint", "command", "variables", "pull_policy", "docker", "kubernetes"];

/// The maximum length of an image's name in characters, as on GitLab.
const MAX_NAME_LENGTH: usize = 65_535;

/// The maximum length of `docker:platform` in characters, as on GitLab.
const MAX_PLATFORM_LENGTH: usize = 64;

/// The maximum length of `docker:user` and `kubernetes:user` in characters, as on GitLab.
const MAX_USER_LENGTH: usize = 255;

impl KeywordReader<'_, '_> {
    /// Normalises an image to a mapping with `name`.
    pub fn image(&mut self, node: &Node) -> Option<Node> {
        self.named_image(node, "image", &IMAGE_KEYS)
    }

    /// Normalises services to a list of mappings with `name`.
    pub fn services(&mut self, node: &Node) -> Option<Node> {
        if node.list().is_none() {
            return self.bad_value(node, "services", "a list");
        }
        let items = self.context.flatten(node, "services", self.job)?;
        let services: Option<Vec<Node>> =
            items.iter().map(|item| self.named_image(item, "services", &SERVICE_KEYS)).collect();
        Some(Node::list_at(services?, node.at))
    }

    fn named_image(&mut self, node: &Node, keyword: &str, keys: &[&str]) -> Option<Node> {
        if node.text().is_some_and(|name| !name.is_empty()) {
            return Some(Node::mapping_of("name", node));
        }
        if node.mapping().is_none() {
            return self.bad_value(node, keyword, "a name or a mapping with `name`");
        }
        self.check_mapping(node, keyword, keys)?;
        match node.get("name") {
            Some(name) => self.short_text(name, &format!("{keyword}:name"), MAX_NAME_LENGTH)?,
            None => return self.missing_key(node, keyword, "`name`"),
        };
        for key in keys {
            if let Some(value) = node.get(key) {
                self.check_image_value(value, &format!("{keyword}:{key}"), key)?;
            }
        }
        Some(node.clone())
    }

    /// Checks the value of `key`, one of the keys of an image or a service.
    fn check_image_value(&mut self, node: &Node, keyword: &str, key: &str) -> Option<()> {
        match key {
            "entrypoint" => self.flat_texts(node, keyword).map(|_| ()),
            "command" => self.text_or_flat_texts(node, keyword).map(|_| ()),
            "alias" => self.text(node, keyword).map(|_| ()),
            "pull_policy" => self.check_pull_policy(node, keyword),
            "docker" => self.check_docker(node, keyword),
            "kubernetes" => self.check_kubernetes(node, keyword),
            "variables" => self.check_scalars(node, keyword),
            // The caller has checked `name`.
            _ => Some(()),
        }
    }

    fn check_pull_policy(&mut self, node: &Node, keyword: &str) -> Option<()> {
        if node.list().is_some_and(<[Node]>::is_empty) {
            return self.bad_value(node, keyword, "at least one policy");
        }
        let single = std::slice::from_ref(node);
        let mut policies = node.list().unwrap_or(single).iter();
        policies.try_for_each(|policy| self.one_of(policy, keyword, &["always", "never", "if-not-present"]).map(|_| ()))
    }

    fn check_docker(&mut self, node: &Node, keyword: &str) -> Option<()> {
        self.check_mapping(node, keyword, &["platform", "user"])?;
        for (key, limit) in [("platform", MAX_PLATFORM_LENGTH), ("user", MAX_USER_LENGTH)] {
            if let Some(value) = node.get(key) {
                self.short_text(value, &format!("{keyword}:{key}"), limit)?;
            }
        }
        Some(())
    }

    fn check_kubernetes(&mut self, node: &Node, keyword: &str) -> Option<()> {
        self.check_mapping(node, keyword, &["user"])?;
        match node.get("user").filter(|user| user.integer().is_none()) {
            Some(user) => self.short_text(user, &format!("{keyword}:user"), MAX_USER_LENGTH).map(|_| ()),
            None => Some(()),
        }
    }

    fn check_scalars(&mut self, node: &Node, keyword: &str) -> Option<()> {
        let Some(mapping) = node.mapping() else {
            return self.bad_value(node, keyword, "a mapping of names and values");
        };
        mapping.values().try_for_each(|entry| self.printed(&entry.node, keyword).map(|_| ()))
    }
}
