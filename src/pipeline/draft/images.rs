//! Reads the keywords `image` and `services`.

use super::reader::KeywordReader;
use crate::pipeline::syntax::{Mapping, MappingEntry, Node};

const IMAGE_KEYS: [&str; 5] = ["name", "entrypoint", "pull_policy", "docker", "kubernetes"];

const SERVICE_KEYS: [&str; 8] =
    ["name", "alias", "entrypoint", "command", "variables", "pull_policy", "docker", "kubernetes"];

const MAX_NAME_LENGTH: usize = 65_535;

impl KeywordReader<'_, '_> {
    /// Normalises an image to a mapping with `name`.
    pub fn image(&mut self, node: &Node) -> Option<Node> {
        self.named_image(node, "image", &IMAGE_KEYS)
    }

    /// Normalises services to a list of mappings with `name`.
    pub fn services(&mut self, node: &Node) -> Option<Node> {
        if node.list().is_none() {
            return self.bad(node, "services", "a list");
        }
        let items = self.context.flatten(node, "services", self.job)?;
        let services: Option<Vec<Node>> =
            items.iter().map(|item| self.named_image(item, "services", &SERVICE_KEYS)).collect();
        Some(Node::list_at(services?, node.at))
    }

    fn named_image(&mut self, node: &Node, keyword: &str, keys: &[&str]) -> Option<Node> {
        if node.text().is_some_and(|name| !name.is_empty()) {
            let entry = MappingEntry { key_at: node.at, node: node.clone() };
            return Some(Node::mapping_at(Mapping::from_iter([("name".into(), entry)]), node.at));
        }
        if node.mapping().is_none() {
            return self.bad(node, keyword, "a name or a mapping with `name`");
        }
        self.mapping(node, keyword, keys)?;
        match node.get("name") {
            Some(name) => self.short_text(name, &format!("{keyword}:name"), MAX_NAME_LENGTH)?,
            None => return self.bad(node, keyword, "a name or a mapping with `name`"),
        };
        if let Some(entrypoint) = node.get("entrypoint") {
            self.flat_texts(entrypoint, &format!("{keyword}:entrypoint"))?;
        }
        if let Some(command) = node.get("command") {
            self.text_or_flat_texts(command, &format!("{keyword}:command"))?;
        }
        if let Some(alias) = node.get("alias") {
            self.text(alias, &format!("{keyword}:alias"))?;
        }
        if let Some(policy) = node.get("pull_policy") {
            let place = format!("{keyword}:pull_policy");
            let single = std::slice::from_ref(policy);
            if policy.list().is_some_and(<[Node]>::is_empty) {
                return self.bad(policy, &place, "one policy at least");
            }
            for item in policy.list().unwrap_or(single) {
                self.one_of(item, &place, &["always", "never", "if-not-present"])?;
            }
        }
        if let Some(docker) = node.get("docker") {
            self.mapping(docker, &format!("{keyword}:docker"), &["platform", "user"])?;
            for (key, limit) in [("platform", 64), ("user", 255)] {
                if let Some(value) = docker.get(key) {
                    self.short_text(value, &format!("{keyword}:docker:{key}"), limit)?;
                }
            }
        }
        if let Some(kubernetes) = node.get("kubernetes") {
            self.mapping(kubernetes, &format!("{keyword}:kubernetes"), &["user"])?;
            if let Some(user) = kubernetes.get("user").filter(|user| user.integer().is_none()) {
                self.short_text(user, &format!("{keyword}:kubernetes:user"), 255)?;
            }
        }
        if let Some(variables) = node.get("variables") {
            self.mapping_of_scalars(variables, &format!("{keyword}:variables"))?;
        }
        Some(node.clone())
    }

    fn mapping_of_scalars(&mut self, node: &Node, keyword: &str) -> Option<()> {
        let Some(mapping) = node.mapping() else { return self.bad(node, keyword, "a mapping of names and values") };
        mapping.values().try_for_each(|entry| self.printed(&entry.node, keyword).map(|_| ()))
    }
}
