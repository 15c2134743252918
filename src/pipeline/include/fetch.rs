//! Fetches the files of an `include` entry.

use base64::Engine as _;
use ring::digest::{SHA256, digest};

use super::entry::{IncludeEntry, IncludeLocation};
use super::{Component, Fetched, Loader, classified};
use crate::pipeline::pattern::RegexPattern;
use crate::pipeline::problem::Class;
use crate::pipeline::request::{ComponentVersion, SourceError, SourceTree};

impl Loader<'_, '_> {
    /// Fetches the files. Files with a problem are reported and left out.
    pub fn fetch(&mut self, entry: &IncludeEntry, tree: &Option<SourceTree>) -> Vec<Fetched> {
        let sources = self.context.request.sources;
        match &entry.location {
            IncludeLocation::Local(path) => match tree {
                Some(tree) => self.fetch_local(entry, path, &tree.clone()),
                None => Vec::new(),
            },
            IncludeLocation::Project { project, reference, files } => {
                let shown = reference.as_deref().map_or_else(|| project.clone(), |name| format!("{project}@{name}"));
                match sources.project(project, reference.as_deref()) {
                    Ok(tree) => {
                        files.iter().flat_map(|path| self.fetch_from_tree(entry, path, &tree, &shown)).collect()
                    }
                    Err(error) => self.report_failure(entry, &format!("project {shown}"), error),
                }
            }
            IncludeLocation::Remote { url, integrity } => match sources.remote(url) {
                Ok(bytes)
                    if integrity.as_deref().is_none_or(|expected| self.is_intact(entry, url, expected, &bytes)) =>
                {
                    vec![Fetched { name: url.clone(), bytes, tree: None, component: None }]
                }
                Ok(_) => Vec::new(),
                Err(error) => self.report_failure(entry, url, error),
            },
            IncludeLocation::Template(name) => match sources.template(name) {
                Ok(bytes) => vec![Fetched { name: format!("template:{name}"), bytes, tree: None, component: None }],
                Err(error) => self.report_failure(entry, &format!("template {name}"), error),
            },
            IncludeLocation::Component(address) => self.fetch_component(entry, address),
            IncludeLocation::Artifact { job, path } => match sources.artifact(job, path) {
                Ok(bytes) => {
                    vec![Fetched {
                        name: format!("{job}:{path}"),
                        bytes,
                        tree: Some(SourceTree::Project),
                        component: None,
                    }]
                }
                Err(error) => self.report_failure(entry, &format!("{path} from the artifacts of job `{job}`"), error),
            },
        }
    }

    /// Fetches files of the same tree. `*` does not match a slash, `**` does.
    fn fetch_local(&mut self, entry: &IncludeEntry, path: &str, tree: &SourceTree) -> Vec<Fetched> {
        let tree_name = match tree {
            SourceTree::Project => String::new(),
            SourceTree::Commit { project, sha } => format!("{project}@{sha}"),
        };
        if !path.contains('*') {
            return self.fetch_from_tree(entry, path, tree, &tree_name);
        }
        let escaped = regex_lite::escape(path.trim_start_matches('/'));
        let pattern = escaped.replace(r"\*\*", ".*").replace(r"\*", "[^/]*");
        let paths = match self.context.file_lists.all(tree) {
            Ok(paths) => paths,
            Err(error) => return self.report_failure(entry, path, error),
        };
        let Ok(pattern) = RegexPattern::compile(&format!("^{pattern}$"), "s") else { return Vec::new() };
        let matching: Vec<&String> = paths.iter().filter(|path| pattern.is_match(path)).collect();
        if matching.is_empty() {
            self.context.report.warn(entry.at, None, format!("`include:local: {path}` matches no file"));
        }
        matching.into_iter().flat_map(|path| self.fetch_from_tree(entry, path, tree, &tree_name)).collect()
    }

    fn fetch_from_tree(
        &mut self,
        entry: &IncludeEntry,
        path: &str,
        tree: &SourceTree,
        tree_name: &str,
    ) -> Vec<Fetched> {
        let path = path.trim_start_matches('/');
        let name = if tree_name.is_empty() { path.to_owned() } else { format!("{tree_name}:{path}") };
        match self.context.request.sources.read(tree, path) {
            Ok(bytes) => vec![Fetched { name, bytes, tree: Some(tree.clone()), component: None }],
            Err(error) => self.report_failure(entry, &name, error),
        }
    }

    fn fetch_component(&mut self, entry: &IncludeEntry, address: &str) -> Vec<Fetched> {
        let parts = address.rsplit_once('@').and_then(|(path, reference)| {
            let (host, path) = path.split_once('/')?;
            let (project, name) = path.rsplit_once('/')?;
            let complete = [host, project, name, reference].iter().all(|part| !part.is_empty());
            complete.then_some((host, project, name, reference))
        });
        let Some((host, project, name, reference)) = parts else {
            let message = format!("`include:component: {address}` must have the form host/project/name@version");
            self.context.error(Class::IncludeSyntax, entry.at, None, message);
            return Vec::new();
        };
        let facts = &self.context.request.facts;
        let own = project == self.context.project.path && reference == facts.sha;
        let version = if own {
            Ok(ComponentVersion { tree: SourceTree::Project, sha: facts.sha.clone(), version: reference.to_owned() })
        } else {
            self.context.request.sources.component(host, project, reference)
        };
        let version = match version {
            Ok(version) => version,
            Err(error) => return self.report_failure(entry, &format!("component {address}"), error),
        };
        let sources = self.context.request.sources;
        let mut read = sources.read(&version.tree, &format!("templates/{name}.yml"));
        if matches!(read, Err(SourceError::Missing(_))) {
            read = sources.read(&version.tree, &format!("templates/{name}/template.yml"));
        }
        match read {
            Ok(bytes) => {
                let component = Component {
                    name: name.to_owned(),
                    sha: version.sha,
                    version: version.version,
                    reference: reference.to_owned(),
                };
                vec![Fetched { name: address.to_owned(), bytes, tree: Some(version.tree), component: Some(component) }]
            }
            Err(SourceError::Missing(_)) => {
                let why = format!("the project has neither templates/{name}.yml nor templates/{name}/template.yml");
                self.report_failure(entry, &format!("component {address}"), SourceError::Missing(why))
            }
            Err(error) => self.report_failure(entry, &format!("component {address}"), error),
        }
    }

    fn is_intact(&mut self, entry: &IncludeEntry, url: &str, expected: &str, bytes: &[u8]) -> bool {
        let hash = base64::engine::general_purpose::STANDARD.encode(digest(&SHA256, bytes));
        if expected.strip_prefix("sha256-") == Some(&hash) {
            return true;
        }
        let message = format!("{url} has the hash sha256-{hash}, but `integrity` is {expected}");
        self.context.error(Class::IncludeIntegrity, entry.at, None, message);
        false
    }

    /// Reports a file that cannot be included. The result is empty.
    fn report_failure(&mut self, entry: &IncludeEntry, what: &str, error: SourceError) -> Vec<Fetched> {
        let (class, why) = classified(error);
        self.context.error(class, entry.at, None, format!("{what} cannot be included: {why}"));
        Vec::new()
    }
}
