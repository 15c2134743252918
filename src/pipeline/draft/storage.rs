//! Reads the keywords `artifacts` and `cache`.

use std::sync::Arc;

use super::reader::KeywordReader;
use crate::digest::hex;
use crate::pipeline::duration;
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::{Node, Origin};

const ARTIFACT_KEYS: [&str; 10] =
    ["name", "untracked", "paths", "exclude", "reports", "when", "expire_in", "expose_as", "public", "access"];

const REPORT_KEYS: [&str; 26] = [
    "accessibility",
    "annotations",
    "api_fuzzing",
    "browser_performance",
    "cluster_image_scanning",
    "codequality",
    "container_scanning",
    "coverage_fuzzing",
    "coverage_report",
    "cyclonedx",
    "dast",
    "dependency_scanning",
    "dotenv",
    "dotnet",
    "junit",
    "license_scanning",
    "load_performance",
    "metrics",
    "performance",
    "repository_xray",
    "requirements",
    "requirements_v2",
    "sast",
    "secret_detection",
    "terraform",
    "sarif",
];

const CACHE_KEYS: [&str; 7] = ["key", "paths", "untracked", "policy", "when", "fallback_keys", "unprotect"];

const CACHES_LIMIT: usize = 4;

const WHENS: [&str; 3] = ["on_success", "on_failure", "always"];

impl KeywordReader<'_, '_> {
    /// Checks `artifacts`.
    pub fn artifacts(&mut self, node: &Node) -> Option<Node> {
        self.mapping(node, "artifacts", &ARTIFACT_KEYS)?;
        for key in ["paths", "exclude"] {
            if let Some(paths) = node.get(key) {
                self.texts(paths, &format!("artifacts:{key}"))?;
            }
        }
        if let Some(when) = node.get("when") {
            self.when_of(when, "artifacts:when")?;
        }
        for key in ["untracked", "public"] {
            if let Some(value) = node.get(key) {
                self.boolean(value, &format!("artifacts:{key}"))?;
            }
        }
        for key in ["name", "expose_as", "access"] {
            if let Some(value) = node.get(key) {
                self.printed(value, &format!("artifacts:{key}"))?;
            }
        }
        if let Some(value) = node.get("expire_in") {
            let text = self.printed(value, "artifacts:expire_in")?;
            if !["never", "0"].contains(&&*text) && duration::parse(&text).is_none() {
                return self.bad(value, "artifacts:expire_in", "a duration such as `1 week`, or `never`");
            }
        }
        if let Some(reports) = node.get("reports") {
            self.mapping(reports, "artifacts:reports", &REPORT_KEYS)?;
            if let Some(dotenv) = reports.get("dotenv") {
                self.text_or_texts(dotenv, "artifacts:reports:dotenv")?;
            }
        }
        Some(node.clone())
    }

    fn when_of(&mut self, node: &Node, keyword: &str) -> Option<()> {
        match node.text() {
            Some(when) if WHENS.contains(&&**when) || when.contains('$') => Some(()),
            _ => {
                let value = node.printed().unwrap_or_else(|| node.kind().into());
                let message = format!("`{keyword}` must be one of {}, not `{value}`", WHENS.join(", "));
                self.error(Class::BadWhen, node.at, message)
            }
        }
    }

    /// Normalises `cache` to a list of mappings.
    pub fn caches(&mut self, node: &Node) -> Option<Node> {
        let single = std::slice::from_ref(node);
        let items = match node.list() {
            Some(_) => self.context.flatten(node, "cache", self.job)?,
            None => single.to_vec(),
        };
        if items.len() > CACHES_LIMIT {
            let message = format!("`cache` has {} entries; up to {CACHES_LIMIT} are allowed", items.len());
            return self.error(Class::CacheLimit, node.at, message);
        }
        items.iter().try_for_each(|item| self.cache(item))?;
        // `cache: {}` means no cache.
        let filled = items.into_iter().filter(|item| item.mapping().is_some_and(|mapping| !mapping.is_empty()));
        Some(Node::list_at(filled.collect(), node.at))
    }

    fn cache(&mut self, node: &Node) -> Option<()> {
        self.mapping(node, "cache", &CACHE_KEYS)?;
        if let Some(paths) = node.get("paths") {
            self.texts(paths, "cache:paths")?;
        }
        for key in ["untracked", "unprotect"] {
            if let Some(value) = node.get(key) {
                self.boolean(value, &format!("cache:{key}"))?;
            }
        }
        if let Some(policy) = node.get("policy") {
            self.one_of(policy, "cache:policy", &["pull-push", "pull", "push"])?;
        }
        if let Some(when) = node.get("when") {
            self.when_of(when, "cache:when")?;
        }
        if let Some(keys) = node.get("fallback_keys")
            && self.texts(keys, "cache:fallback_keys")?.len() > 5
        {
            return self.bad(keys, "cache:fallback_keys", "up to 5 keys");
        }
        match node.get("key") {
            Some(key) if key.mapping().is_some() => self.key_of_files(key),
            Some(key) => self.cache_key(key),
            None => Some(()),
        }
    }

    /// GitLab refuses keys that are paths, also percent-encoded ones.
    fn cache_key(&mut self, key: &Node) -> Option<()> {
        let text = self.printed(key, "cache:key")?.to_ascii_lowercase();
        let decoded = text.replace("%2f", "/").replace("%2e", ".");
        match decoded.contains('/') || !decoded.is_empty() && decoded.chars().all(|c| c == '.') {
            true => self.bad(key, "cache:key", "text without `/` that is more than dots"),
            false => Some(()),
        }
    }

    fn key_of_files(&mut self, key: &Node) -> Option<()> {
        self.mapping(key, "cache:key", &["files", "files_commits", "prefix"])?;
        let lists: Vec<(&str, &Node)> =
            ["files", "files_commits"].into_iter().filter_map(|name| Some((name, key.get(name)?))).collect();
        let [(name, list)] = lists.as_slice() else {
            return self.bad(key, "cache:key", "text, or a mapping with either `files` or `files_commits`");
        };
        let place = format!("cache:key:{name}");
        let count = self.texts(list, &place)?.len();
        if !(1..=2).contains(&count) {
            return self.bad(list, &place, "one or two paths");
        }
        Some(())
    }
}

/// The key of each cache, computed from files where the configuration says so; a warning for each key that cannot be
/// computed.
pub fn cache_keys(caches: &Node, reader: &mut KeywordReader<'_, '_>) -> Vec<String> {
    caches.list().unwrap_or_default().iter().map(|cache| cache_key(cache, reader)).collect()
}

fn cache_key(cache: &Node, reader: &mut KeywordReader<'_, '_>) -> String {
    let Some(key) = cache.get("key") else { return "default".to_owned() };
    if key.mapping().is_none() {
        return key.printed().map_or_else(String::new, |text| text.to_string());
    }
    let sources = reader.context.request.sources;
    let (paths, by_commit) = match key.get("files") {
        Some(paths) => (paths, false),
        None => match key.get("files_commits") {
            Some(paths) => (paths, true),
            None => return "default".to_owned(),
        },
    };
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut found = false;
    for path in paths.list().unwrap_or_default().iter().filter_map(Node::text) {
        let path: &Arc<str> = path;
        let id = if by_commit { sources.last_commit(path) } else { sources.content_id(path) };
        match id {
            Ok(Some(id)) => {
                found = true;
                hash.update(id.as_bytes());
                hash.update(b"\0");
            }
            Ok(None) => {}
            Err(error) => {
                let at: Origin = key.at;
                let why = format!("the key of a cache cannot be computed from `{path}`: {error:?}");
                reader.context.report.warn(at, reader.job, why);
            }
        }
    }
    let name = if found { hex(&hash.finish().as_ref()[..20]) } else { "default".to_owned() };
    match key.get("prefix").and_then(Node::printed) {
        Some(prefix) => format!("{prefix}-{name}"),
        None => name,
    }
}
