//! Reads the keywords `artifacts` and `cache`.

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
    "junit",
    "license_scanning",
    "load_performance",
    "lsif",
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

const MAX_CACHES: usize = 4;

/// The longest title in `artifacts:expose_as`.
const MAX_TITLE_LENGTH: usize = 100;

const WHENS: [&str; 3] = ["on_success", "on_failure", "always"];

impl KeywordReader<'_, '_> {
    /// Checks `artifacts`.
    pub fn artifacts(&mut self, node: &Node) -> Option<Node> {
        self.mapping(node, "artifacts", &ARTIFACT_KEYS)?;
        for key in ["paths", "exclude"] {
            if let Some(paths) = node.get(key) {
                self.flat_texts(paths, &format!("artifacts:{key}"))?;
            }
        }
        if let Some(when) = node.get("when") {
            self.upload_when(when, "artifacts:when")?;
        }
        for key in ["untracked", "public"] {
            if let Some(value) = node.get(key) {
                self.boolean(value, &format!("artifacts:{key}"))?;
            }
        }
        if let Some(name) = node.get("name") {
            self.text(name, "artifacts:name")?;
        }
        if let Some(access) = node.get("access") {
            self.one_of(access, "artifacts:access", &["none", "developer", "maintainer", "all"])?;
            if node.get("public").is_some() {
                let message = "`artifacts:public` and `artifacts:access` exclude each other";
                return self.error(Class::BadValue, node.at, message);
            }
        }
        if let Some(title) = node.get("expose_as") {
            self.expose_as(title, node.get("paths"))?;
        }
        if let Some(value) = node.get("expire_in") {
            self.expire_in(value, "artifacts:expire_in")?;
        }
        if let Some(reports) = node.get("reports") {
            self.mapping(reports, "artifacts:reports", &REPORT_KEYS)?;
            for (key, entry) in reports.mapping()?.iter().filter(|(_, entry)| !entry.node.is_null()) {
                let place = format!("artifacts:reports:{key}");
                if &**key == "coverage_report" {
                    self.coverage_report(&entry.node, &place)?;
                } else {
                    self.text_or_flat_texts(&entry.node, &place)?;
                }
            }
        }
        Some(node.clone())
    }

    fn coverage_report(&mut self, node: &Node, keyword: &str) -> Option<()> {
        self.mapping(node, keyword, &["coverage_format", "path"])?;
        match (node.get("coverage_format"), node.get("path")) {
            (Some(format), Some(path)) => {
                self.one_of(format, &format!("{keyword}:coverage_format"), &["cobertura", "jacoco"])?;
                self.text(path, &format!("{keyword}:path")).map(|_| ())
            }
            _ => self.bad(node, keyword, "`coverage_format` and `path`"),
        }
    }

    /// The title of a link to artifacts: plain words, for paths without wildcards.
    fn expose_as(&mut self, title: &Node, paths: Option<&Node>) -> Option<()> {
        let place = "artifacts:expose_as";
        let text = self.short_text(title, place, MAX_TITLE_LENGTH)?;
        let is_plain = |c: char| c.is_alphanumeric() || "_- ".contains(c);
        if !text.chars().all(is_plain) || text.starts_with(['-', ' ']) {
            return self.bad(title, place, "letters, digits, `-`, `_` and blanks");
        }
        let paths = paths.and_then(Node::list).filter(|paths| !paths.is_empty());
        match paths.filter(|paths| paths.iter().all(|path| path.text().is_some_and(|path| !path.contains('*')))) {
            Some(_) => Some(()),
            None => self.error(Class::BadValue, title.at, "`artifacts:expose_as` needs `artifacts:paths` without `*`"),
        }
    }

    /// How long a server keeps something: a duration, or `never`.
    pub fn expire_in(&mut self, node: &Node, keyword: &str) -> Option<()> {
        let text = self.text(node, keyword)?;
        if text.eq_ignore_ascii_case("never") || &*text == "0" || duration::parse(&text).is_some() {
            return Some(());
        }
        self.bad(node, keyword, "a duration such as `1 week`, or `never`")
    }

    fn upload_when(&mut self, node: &Node, keyword: &str) -> Option<()> {
        match node.text() {
            Some(when) if WHENS.contains(&&**when) => Some(()),
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
        self.mapping(node, "cache", &CACHE_KEYS)?;
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
        if let Some(keys) = node.get("fallback_keys")
            && self.flat_texts(keys, "cache:fallback_keys")?.len() > 5
        {
            return self.bad(keys, "cache:fallback_keys", "up to 5 keys");
        }
        match node.get("key") {
            Some(key) if key.mapping().is_some() => self.key_of_files(key),
            Some(key) => self.cache_key(key, "cache:key"),
            None => Some(()),
        }
    }

    /// GitLab refuses keys that are paths, also percent-encoded ones.
    fn cache_key(&mut self, key: &Node, keyword: &str) -> Option<()> {
        let text = self.text(key, keyword)?.to_ascii_lowercase();
        let decoded = text.replace("%2f", "/").replace("%2e", ".");
        match decoded.contains('/') || decoded == "." || decoded == ".." {
            true => self.bad(key, keyword, "text without `/` that is neither `.` nor `..`"),
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
        let count = self.flat_texts(list, &place)?.len();
        if !(1..=2).contains(&count) {
            return self.bad(list, &place, "one or two paths");
        }
        key.get("prefix").map_or(Some(()), |prefix| self.cache_key(prefix, "cache:key:prefix"))
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
        let path = path.trim_start_matches('/');
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
