//! Reads the keyword `artifacts`.

use super::reader::KeywordReader;
use crate::pipeline::duration;
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::Node;

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

/// The maximum length of `artifacts:expose_as` in characters.
const MAX_TITLE_LENGTH: usize = 100;

const WHENS: [&str; 3] = ["on_success", "on_failure", "always"];

impl KeywordReader<'_, '_> {
    /// Checks `artifacts`.
    pub fn artifacts(&mut self, node: &Node) -> Option<Node> {
        self.check_mapping(node, "artifacts", &ARTIFACT_KEYS)?;
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
            self.check_mapping(reports, "artifacts:reports", &REPORT_KEYS)?;
            for (key, entry) in reports.mapping()?.iter().filter(|(_, entry)| !entry.node.is_null()) {
                let keyword_path = format!("artifacts:reports:{key}");
                if &**key == "coverage_report" {
                    self.coverage_report(&entry.node, &keyword_path)?;
                } else {
                    self.text_or_flat_texts(&entry.node, &keyword_path)?;
                }
            }
        }
        Some(node.clone())
    }

    fn coverage_report(&mut self, node: &Node, keyword: &str) -> Option<()> {
        self.check_mapping(node, keyword, &["coverage_format", "path"])?;
        match (node.get("coverage_format"), node.get("path")) {
            (Some(format), Some(path)) => {
                self.one_of(format, &format!("{keyword}:coverage_format"), &["cobertura", "jacoco"])?;
                self.text(path, &format!("{keyword}:path")).map(|_| ())
            }
            _ => self.missing_key(node, keyword, "`coverage_format` and `path`"),
        }
    }

    /// Checks the title of a link to artifacts: plain words, for paths without wildcards.
    fn expose_as(&mut self, title: &Node, paths: Option<&Node>) -> Option<()> {
        let keyword = "artifacts:expose_as";
        let text = self.short_text(title, keyword, MAX_TITLE_LENGTH)?;
        let is_plain = |c: char| c.is_alphanumeric() || "_- ".contains(c);
        if !text.chars().all(is_plain) || text.starts_with(['-', ' ']) {
            return self.bad_value(title, keyword, "letters, digits, `-`, `_` and blanks");
        }
        let paths = paths.and_then(Node::list).filter(|paths| !paths.is_empty());
        match paths.filter(|paths| paths.iter().all(|path| path.text().is_some_and(|path| !path.contains('*')))) {
            Some(_) => Some(()),
            None => self.error(Class::BadValue, title.at, "`artifacts:expose_as` needs `artifacts:paths` without `*`"),
        }
    }

    /// Checks how long a server keeps artifacts or pages: a duration, or `never`.
    pub fn expire_in(&mut self, node: &Node, keyword: &str) -> Option<()> {
        let text = self.text(node, keyword)?;
        if text.eq_ignore_ascii_case("never") || &*text == "0" || duration::parse(&text).is_some() {
            return Some(());
        }
        self.bad_value(node, keyword, "a duration such as `1 week`, or `never`")
    }

    /// Reads `when` of artifacts or a cache.
    pub fn upload_when(&mut self, node: &Node, keyword: &str) -> Option<()> {
        match node.text() {
            Some(when) if WHENS.contains(&&**when) => Some(()),
            _ => {
                let value = node.printed().unwrap_or_else(|| node.kind().into());
                let message = format!("`{keyword}` must be one of {}, not `{value}`", WHENS.join(", "));
                self.error(Class::BadWhen, node.at, message)
            }
        }
    }
}
