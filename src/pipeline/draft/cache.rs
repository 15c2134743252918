//! Reads the keyword `cache`, and computes the keys of caches.

use super::reader::KeywordReader;
use crate::digest::hex;
use crate::pipeline::problem::Class;
use crate::pipeline::request::SourceError;
use crate::pipeline::syntax::Node;

const CACHE_KEYS: [&str; 7] = ["key", "paths", "untracked", "policy", "when", "fallback_keys", "unprotect"];

/// The number of caches that a job may have, as on GitLab.
const MAX_CACHES: usize = 4;

/// The number of entries in `fallback_keys`, as on GitLab.
const MAX_FALLBACK_KEYS: usize = 5;

/// The key of a cache without `key`, and the hash of a key whose files do not exist.
const DEFAULT_KEY: &str = "default";

/// The size of the hash in a key, in bytes.
const KEY_HASH_SIZE: usize = 20;

impl KeywordReader<'_, '_> {
    /// Normalises `cache` to a list of mappings.
    pub fn caches(&mut self, node: &Node) -> Option<Node> {
        let single = std::slice::from_ref(node);
        let items = match node.list() {
            Some(_) => self.context.flatten(node, "cache", self.job)?,
            None => single.to_vec(),
        };
        if items.len() > MAX_CACHES {
            let message = format!("`cache` has {} entries; up to {MAX_CACHES} are allowed", items.len());
            return self.error(Class::CacheLimit, node.at, message);
        }
        items.iter().try_for_each(|item| self.cache(item))?;
        // `cache: {}` means no cache.
        let filled = items.into_iter().filter(|item| item.mapping().is_some_and(|mapping| !mapping.is_empty()));
        Some(Node::list_at(filled.collect(), node.at))
    }

    fn cache(&mut self, node: &Node) -> Option<()> {
        self.check_mapping(node, "cache", &CACHE_KEYS)?;
        if let Some(paths) = node.get("paths") {
            self.flat_texts(paths, "cache:paths")?;
        }
        for key in ["untracked", "unprotect"] {
            if let Some(value) = node.get(key) {
                self.boolean(value, &format!("cache:{key}"))?;
            }
        }
        if let Some(policy) = node.get("policy") {
            // The runner expands variables in the policy.
            if policy.text().is_none_or(|policy| !policy.contains('$')) {
                self.one_of(policy, "cache:policy", &["pull-push", "pull", "push"])?;
            }
        }
        if let Some(when) = node.get("when") {
            self.upload_when(when, "cache:when")?;
        }
        if let Some(keys) = node.get("fallback_keys") {
            let count = self.flat_texts(keys, "cache:fallback_keys")?.len();
            if count > MAX_FALLBACK_KEYS {
                return self.bad_count(keys, "cache:fallback_keys", count, &format!("up to {MAX_FALLBACK_KEYS}"));
            }
        }
        match node.get("key") {
            Some(key) if key.mapping().is_some() => self.key_of_files(key),
            Some(key) => self.cache_key(key, "cache:key"),
            None => Some(()),
        }
    }

    /// Refuses a key that is a path, also a percent-encoded one, as GitLab does.
    fn cache_key(&mut self, key: &Node, keyword: &str) -> Option<()> {
        let text = self.text(key, keyword)?.to_ascii_lowercase();
        let decoded = text.replace("%2f", "/").replace("%2e", ".");
        match decoded.contains('/') || decoded == "." || decoded == ".." {
            true => self.bad_value(key, keyword, "text without `/` that is neither `.` nor `..`"),
            false => Some(()),
        }
    }

    fn key_of_files(&mut self, key: &Node) -> Option<()> {
        self.check_mapping(key, "cache:key", &["files", "files_commits", "prefix"])?;
        let lists: Vec<(&str, &Node)> =
            ["files", "files_commits"].into_iter().filter_map(|name| Some((name, key.get(name)?))).collect();
        let [(name, list)] = lists.as_slice() else {
            return self.missing_key(key, "cache:key", "either `files` or `files_commits`");
        };
        let keyword_path = format!("cache:key:{name}");
        let count = self.flat_texts(list, &keyword_path)?.len();
        if !(1..=2).contains(&count) {
            return self.bad_count(list, &keyword_path, count, "1 to 2");
        }
        key.get("prefix").map_or(Some(()), |prefix| self.cache_key(prefix, "cache:key:prefix"))
    }
}

/// The key of each cache. A key with `files` or `files_commits` is computed; a file that cannot be read gives a
/// warning.
pub fn cache_keys(caches: &Node, reader: &mut KeywordReader<'_, '_>) -> Vec<String> {
    caches.list().unwrap_or_default().iter().map(|cache| cache_key(cache, reader)).collect()
}

fn cache_key(cache: &Node, reader: &mut KeywordReader<'_, '_>) -> String {
    let Some(key) = cache.get("key") else { return DEFAULT_KEY.to_owned() };
    if key.mapping().is_none() {
        return key.printed().map_or_else(String::new, |text| text.to_string());
    }
    let sources = reader.context.request.sources;
    let (files, commits) = (key.get("files"), key.get("files_commits"));
    let Some(paths) = files.or(commits) else { return DEFAULT_KEY.to_owned() };
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut has_file = false;
    for path in paths.list().unwrap_or_default().iter().filter_map(Node::text) {
        let path = path.trim_start_matches('/');
        let id = if files.is_some() { sources.content_id(path) } else { sources.last_commit(path) };
        match id {
            Ok(Some(id)) => {
                has_file = true;
                hash.update(id.as_bytes());
                hash.update(b"\0");
            }
            Ok(None) => {}
            Err(SourceError::Missing(why) | SourceError::Failed(why)) => {
                let message = format!("`cache:key` ignores `{path}`, which cannot be read: {why}");
                reader.context.report.warn(key.at, reader.job, message);
            }
        }
    }
    let name = if has_file { hex(&hash.finish().as_ref()[..KEY_HASH_SIZE]) } else { DEFAULT_KEY.to_owned() };
    match key.get("prefix").and_then(Node::printed) {
        Some(prefix) => format!("{prefix}-{name}"),
        None => name,
    }
}
