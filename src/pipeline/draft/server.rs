//! Reads the keywords that only a GitLab server acts on. A local run checks them as GitLab does, and warns.

use std::sync::Arc;

use super::reader::KeywordReader;
use crate::pipeline::file::declaration::read_inputs;
use crate::pipeline::hash::Index;
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::{Mapping, MappingEntry, Node};

const RELEASE_KEYS: [&str; 8] =
    ["tag_name", "tag_message", "name", "description", "ref", "released_at", "milestones", "assets"];

const LINK_KEYS: [&str; 4] = ["name", "url", "filepath", "link_type"];

/// The maximum length of the texts of a release in characters.
const MAX_TEXT_LENGTH: usize = 1 << 20;

/// The directory that a job publishes with `pages` unless the file names another.
const DEFAULT_PAGES_DIRECTORY: &str = "public";

impl KeywordReader<'_, '_> {
    /// Checks a keyword that only a GitLab server acts on, and warns that the keyword has no effect.
    pub fn server_only(&mut self, key: &str, node: &Node) -> Option<()> {
        match key {
            "release" => self.release(node)?,
            "pages" => self.pages(node)?,
            "inputs" => self.job_inputs(node)?,
            "publish" | "identity" => {
                self.text(node, key)?;
            }
            _ => {
                if node.mapping().is_none() {
                    return self.bad_value(node, key, "a mapping");
                }
            }
        }
        let message = format!("`{key}` has no effect; only a GitLab server acts on this keyword");
        self.context.report.warn(node.at, self.job, message);
        Some(())
    }

    fn release(&mut self, node: &Node) -> Option<()> {
        self.check_mapping(node, "release", &RELEASE_KEYS)?;
        for key in ["tag_name", "description"] {
            match node.get(key) {
                Some(value) => self.short_text(value, &format!("release:{key}"), MAX_TEXT_LENGTH)?,
                None => return self.missing_key(node, "release", "`tag_name` and `description`"),
            };
        }
        for key in ["tag_message", "released_at"] {
            if let Some(value) = node.get(key) {
                self.text(value, &format!("release:{key}"))?;
            }
        }
        if let Some(milestones) = node.get("milestones") {
            self.text_or_flat_texts(milestones, "release:milestones")?;
        }
        let Some(assets) = node.get("assets") else { return Some(()) };
        self.check_mapping(assets, "release:assets", &["links"])?;
        let Some(links) = assets.get("links").and_then(Node::list).filter(|links| !links.is_empty()) else {
            return self.missing_key(assets, "release:assets", "`links`, a list of at least one link");
        };
        for link in links {
            self.check_mapping(link, "release:assets:links", &LINK_KEYS)?;
            if link.get("name").is_none() || link.get("url").is_none() {
                let message = "an entry of `release:assets:links` must contain `name` and `url`";
                return self.error(Class::BadValue, link.at, message);
            }
            for (key, entry) in link.mapping()?.iter() {
                self.text(&entry.node, &format!("release:assets:links:{key}"))?;
            }
        }
        Some(())
    }

    fn pages(&mut self, node: &Node) -> Option<()> {
        if node.boolean().is_some() {
            return Some(());
        }
        if node.mapping().is_none() {
            return self.bad_value(node, "pages", "true, false or a mapping");
        }
        self.check_mapping(node, "pages", &["path_prefix", "expire_in", "publish"])?;
        for key in ["path_prefix", "publish"] {
            if let Some(value) = node.get(key) {
                self.text(value, &format!("pages:{key}"))?;
            }
        }
        match node.get("expire_in").filter(|value| value.text().is_none_or(|text| !text.contains('$'))) {
            Some(value) => self.expire_in(value, "pages:expire_in"),
            None => Some(()),
        }
    }

    /// Checks `inputs` of a job. GitLab reads them as the inputs of a file, but each must have a default and no rules.
    fn job_inputs(&mut self, node: &Node) -> Option<()> {
        let Some(mapping) = node.mapping() else { return self.bad_value(node, "inputs", "a mapping") };
        for (name, entry) in mapping.iter() {
            let keyword_path = format!("inputs:{name}");
            self.check_mapping(&entry.node, &keyword_path, &["default", "description", "options", "regex", "type"])?;
            if entry.node.get("default").is_none() {
                return self.missing_key(&entry.node, &keyword_path, "`default`");
            }
        }
        read_inputs(node, &mut Index::default(), &mut self.context.report);
        Some(())
    }

    /// Checks `publish`, and adds the published directory of a job with pages to its artifacts.
    pub fn with_published_directory(&mut self, name: &str, definition: &Node, artifacts: Option<Node>) -> Option<Node> {
        let pages = definition.get("pages");
        let publish = definition.get("publish");
        let is_given = |node: &Node| node.boolean() == Some(true) || node.mapping().is_some_and(|own| !own.is_empty());
        if !pages.is_some_and(is_given) && (name != "pages" || pages.and_then(Node::boolean) == Some(false)) {
            if let Some(publish) = publish {
                self.error::<()>(Class::BadValue, publish.at, "`publish` is allowed only in a job with `pages`");
            }
            return artifacts;
        }
        let nested = pages.and_then(|pages| pages.get("publish"));
        if let (Some(_), Some(publish)) = (nested, publish) {
            self.error::<()>(Class::BadValue, publish.at, "`publish` and `pages:publish` exclude each other");
        }
        let path: Arc<str> =
            nested.or(publish).and_then(Node::text).cloned().unwrap_or_else(|| DEFAULT_PAGES_DIRECTORY.into());
        let at = artifacts.as_ref().map_or(definition.at, |artifacts| artifacts.at);
        let mut mapping: Mapping =
            artifacts.as_ref().and_then(Node::mapping).map(|own| (**own).clone()).unwrap_or_default();
        let mut paths = mapping.get("paths").and_then(|entry| entry.node.list()).unwrap_or_default().to_vec();
        if !paths.iter().any(|present| present.text() == Some(&path)) {
            paths.push(Node::text_at(path, at));
        }
        mapping.insert("paths".into(), MappingEntry { key_at: at, node: Node::list_at(paths, at) });
        Some(Node::mapping_at(mapping, at))
    }
}
