//! Files of other projects at a commit: fetched with git and the user's own credentials into a cache, then read from
//! the cache.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::local::checkout::{git, output};
use crate::pipeline::request::SourceError;
use crate::pipeline::syntax::MAX_FILE_SIZE;

use super::remote;

/// Fetches other projects.
#[derive(Clone, Debug)]
pub struct Fetcher {
    /// The cache directory: one repository per project.
    pub cache: PathBuf,
    /// The URL of `origin`.
    pub origin: Option<String>,
    /// Whether only the cache may be used.
    pub is_offline: bool,
}

impl Fetcher {
    /// The URL of another project, on the server of `origin` or on `host`.
    fn project_url(&self, project: &str, host: Option<&str>) -> Result<String, SourceError> {
        let no_origin = || {
            SourceError::Failed(format!(
                "{project} is on the project's server, and the checkout has no remote `origin`; map it to a directory \
                 with --map-project {project}=DIR"
            ))
        };
        let origin = self.origin.as_deref().ok_or_else(no_origin)?;
        let base = url_base(origin).ok_or_else(no_origin)?;
        Ok(match host {
            Some(host) if host_name(&base) != host_name(host) => format!("https://{host}/{project}.git"),
            _ => format!("{base}{project}.git"),
        })
    }

    fn repository(&self, url: &str) -> PathBuf {
        let name: String =
            url.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' }).collect();
        self.cache.join(name)
    }

    /// Resolves a reference of another project to a commit.
    pub fn resolve_commit(&self, project: &str, reference: &str) -> Result<String, SourceError> {
        let url = self.project_url(project, None)?;
        if is_commit(reference) {
            self.fetch_commit(&url, reference, reference)?;
            return Ok(reference.to_owned());
        }
        let known = self.references(&url)?;
        let wanted = [reference.to_owned(), format!("refs/heads/{reference}"), format!("refs/tags/{reference}")];
        let missing = || SourceError::Missing(format!("project {project} has no ref `{reference}`"));
        let sha = wanted.iter().find_map(|name| known.get(name)).ok_or_else(missing)?;
        self.fetch_commit(&url, sha, reference)?;
        Ok(sha.clone())
    }

    /// Resolves the reference of a component to a commit and a version.
    pub fn resolve_version(&self, host: &str, project: &str, reference: &str) -> Result<(String, String), SourceError> {
        let url = self.project_url(project, Some(host))?;
        if is_commit(reference) {
            self.fetch_commit(&url, reference, reference)?;
            return Ok((reference.to_owned(), reference.to_owned()));
        }
        let known = self.references(&url)?;
        let exact = ["refs/tags/", "refs/heads/"].iter().find_map(|prefix| known.get(&format!("{prefix}{reference}")));
        let found = exact.map(|sha| (sha.clone(), reference.to_owned())).or_else(|| newest_release(&known, reference));
        let missing = || SourceError::Missing(format!("component project {project} has no version `{reference}`"));
        let (sha, version) = found.ok_or_else(missing)?;
        self.fetch_commit(&url, &sha, &version)?;
        Ok((sha, version))
    }

    /// Reads a file of a cached commit.
    pub fn read_file(&self, project: &str, sha: &str, path: &str) -> Result<Vec<u8>, SourceError> {
        let repository = self.repository_with(project, sha)?;
        let mut command = git(&repository);
        command.args(["cat-file", "blob", &format!("{sha}:{path}")]);
        let mut content = output(command)
            .map_err(|_| SourceError::Missing(format!("`{path}` does not exist in {project} at {sha}")))?;
        content.truncate(MAX_FILE_SIZE + 1);
        Ok(content)
    }

    /// Lists the files of a cached commit.
    pub fn list_files(&self, project: &str, sha: &str) -> Result<Vec<String>, SourceError> {
        let mut command = git(&self.repository_with(project, sha)?);
        command.args(["ls-tree", "-r", "-z", "--name-only", sha]);
        let names = output(command).map_err(SourceError::Failed)?;
        let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }

    /// Fetches a URL.
    pub fn fetch_url(&self, url: &str) -> Result<Vec<u8>, SourceError> {
        let cached = self.cache.join("urls").join(crate::executor::docker::names::digest(url));
        if self.is_offline {
            return fs::read(&cached).map_err(|_| {
                SourceError::Failed(format!(
                    "{url} is not in the cache, and --offline is set; use --map-remote {url}=FILE"
                ))
            });
        }
        let body = remote::get(url, MAX_FILE_SIZE)?;
        let made = fs::create_dir_all(self.cache.join("urls")).and_then(|()| fs::write(&cached, &body));
        made.map_err(|error| SourceError::Failed(format!("{}: {error}", cached.display())))?;
        Ok(body)
    }

    /// Fetches a template of GitLab from the project's own server.
    pub fn fetch_template(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let host = self.origin.as_deref().and_then(web_url).unwrap_or_else(|| "https://gitlab.com".to_owned());
        let key = name.strip_suffix(".gitlab-ci.yml").unwrap_or(name);
        let url = format!("{host}/api/v4/templates/gitlab_ci_ymls/{}", crate::http::escape(key, b""));
        let body = self.fetch_url(&url).map_err(|error| match error {
            SourceError::Failed(_) if self.is_offline => SourceError::Failed(format!(
                "{url} is not in the cache, and --offline is set; use --map-template DIR to read GitLab's templates"
            )),
            error => error,
        })?;
        let response: serde_json::Value = serde_json::from_slice(&body)
            .map_err(|_| SourceError::Failed(format!("{url} did not return a template")))?;
        let content = response.get("content").and_then(serde_json::Value::as_str);
        content
            .map(|content| content.as_bytes().to_vec())
            .ok_or_else(|| SourceError::Missing(format!("{host} has no template `{name}`")))
    }

    /// The cached repository that contains a commit of a project.
    fn repository_with(&self, project: &str, sha: &str) -> Result<PathBuf, SourceError> {
        let ending =
            format!("{}.git", project.replace(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-'), "_"));
        let entries = fs::read_dir(&self.cache).into_iter().flatten().flatten();
        let candidates = entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().ends_with(&ending));
        let missing = || SourceError::Failed(format!("commit {sha} of {project} is not in the cache"));
        candidates.into_iter().find(|path| has_commit(path, sha)).ok_or_else(missing)
    }

    /// The references of a repository with their commits; from the cache when offline.
    fn references(&self, url: &str) -> Result<BTreeMap<String, String>, SourceError> {
        let cached = self.repository(url).with_extension("refs");
        let text = if self.is_offline {
            fs::read(&cached).map_err(|_| not_in_cache(url))?
        } else {
            let mut command = git_for_server(Path::new("/"));
            command.args(["ls-remote", "--", url]);
            let text = output(command).map_err(|why| cannot_fetch(url, &why))?;
            let made = fs::create_dir_all(&self.cache).and_then(|()| fs::write(&cached, &text));
            made.map_err(|error| SourceError::Failed(format!("{}: {error}", cached.display())))?;
            text
        };
        let mut references = BTreeMap::new();
        for line in String::from_utf8_lossy(&text).lines() {
            let Some((sha, name)) = line.split_once('\t') else { continue };
            // `tag^{}` is the commit of an annotated tag.
            let name = name.strip_suffix("^{}").map_or_else(|| name.to_owned(), str::to_owned);
            references.insert(name, sha.to_owned());
        }
        Ok(references)
    }

    /// Fetches a commit into the cache.
    fn fetch_commit(&self, url: &str, sha: &str, reference: &str) -> Result<(), SourceError> {
        let repository = self.repository(url);
        if has_commit(&repository, sha) {
            return Ok(());
        }
        if self.is_offline {
            return Err(not_in_cache(url));
        }
        fs::create_dir_all(&repository).map_err(|error| cannot_fetch(url, &error.to_string()))?;
        let mut command = git(&repository);
        command.args(["init", "--quiet", "--bare"]);
        output(command).map_err(|why| cannot_fetch(url, &why))?;
        let fetch = |object: &str| {
            let mut command = git_for_server(&repository);
            command.args(["fetch", "--quiet", "--depth=1", "--no-tags", "--", url, object]);
            output(command)
        };
        // Some servers refuse to send a commit by its id; then the reference is fetched.
        fetch(sha).or_else(|_| fetch(reference)).map_err(|why| cannot_fetch(url, &why))?;
        match has_commit(&repository, sha) {
            true => Ok(()),
            false => Err(cannot_fetch(url, &format!("the server has no commit {sha}"))),
        }
    }
}

fn not_in_cache(url: &str) -> SourceError {
    SourceError::Failed(format!(
        "{url} is not in the cache, and --offline is set; use --map-project or --map-component to read a directory"
    ))
}

fn cannot_fetch(url: &str, why: &str) -> SourceError {
    SourceError::Failed(format!("{url} cannot be fetched: {}", why.lines().last().unwrap_or(why)))
}

/// A git command that contacts a server with the user's own credentials. It fails if the server stalls, and without a
/// terminal it does not ask for credentials.
fn git_for_server(directory: &Path) -> Command {
    let mut command = git(directory);
    command.args(["-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=30"]);
    if !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        command.env("GIT_TERMINAL_PROMPT", "0").stdin(std::process::Stdio::null());
    }
    command
}

fn has_commit(repository: &Path, sha: &str) -> bool {
    if !repository.is_dir() {
        return false;
    }
    let mut command = git(repository);
    command.args(["cat-file", "-e", &format!("{sha}^{{commit}}")]);
    output(command).is_ok()
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The part of a URL before the project's path; `None` for a local path.
fn url_base(url: &str) -> Option<String> {
    if let Some((scheme, rest)) = url.split_once("://") {
        let host = rest.split('/').next().filter(|host| !host.is_empty())?;
        return Some(format!("{scheme}://{host}/"));
    }
    let (host, _) = url.split_once(':').filter(|(host, _)| !host.contains('/'))?;
    Some(format!("{host}:"))
}

/// The name of the host in `https://user@host:443/`, `user@host:` or `host:443`.
fn host_name(base: &str) -> &str {
    let authority = base.split_once("://").map_or(base, |(_, rest)| rest).split('/').next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.split(':').next().unwrap_or(host)
}

/// Scheme and host of the server's web pages.
fn web_url(url: &str) -> Option<String> {
    let base = url_base(url)?;
    if base.starts_with("http") {
        return Some(crate::job::sources::without_credentials(&base).trim_end_matches('/').to_owned());
    }
    let host = base.trim_start_matches("ssh://").trim_end_matches(['/', ':']);
    let host = host.rsplit('@').next()?.split(':').next()?;
    Some(format!("https://{host}"))
}

/// The newest release that matches a partial version or `~latest`.
fn newest_release(references: &BTreeMap<String, String>, wanted: &str) -> Option<(String, String)> {
    let numbers = |text: &str| -> Option<Vec<u64>> { text.split('.').map(|part| part.parse().ok()).collect() };
    let prefix = if wanted == "~latest" { Vec::new() } else { numbers(wanted)? };
    let releases = references.iter().filter_map(|(name, sha)| {
        let tag = name.strip_prefix("refs/tags/")?;
        let version = numbers(tag.strip_prefix('v').unwrap_or(tag)).filter(|version| version.len() == 3)?;
        version.starts_with(&prefix).then_some((version, sha, tag))
    });
    releases.max_by(|a, b| a.0.cmp(&b.0)).map(|(_, sha, tag)| (sha.clone(), tag.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn project_urls_are_on_the_server_of_origin() {
        let fetcher = |origin: &str| Fetcher { cache: "/c".into(), origin: Some(origin.to_owned()), is_offline: false };
        for (origin, url) in [
            ("https://git.example.test:8443/team/app.git", "https://git.example.test:8443/group/tools.git"),
            ("git@git.example.test:team/app.git", "git@git.example.test:group/tools.git"),
            ("ssh://git@git.example.test:2222/team/app", "ssh://git@git.example.test:2222/group/tools.git"),
        ] {
            assert_eq!(fetcher(origin).project_url("group/tools", None).expect("a URL"), url);
        }
        assert!(fetcher("/srv/git/app.git").project_url("group/tools", None).is_err());
        for (origin, host, url) in [
            ("https://git.a.test:8443/x/y", "git.a.test:8443", "https://git.a.test:8443/p/q.git"),
            ("git@git.a.test:x/y", "git.a.test", "git@git.a.test:p/q.git"),
            ("https://git.a.test/x/y", "a.test", "https://a.test/p/q.git"),
            ("https://a.test/x/y", "git.a.test", "https://git.a.test/p/q.git"),
        ] {
            assert_eq!(fetcher(origin).project_url("p/q", Some(host)).expect("a URL"), url);
        }
        assert_eq!(
            fetcher("git@a.test:x/y.git").project_url("p/q", Some("b.test")).expect("a URL"),
            "https://b.test/p/q.git"
        );
        assert_eq!(web_url("ssh://git@a.test:2222/x").as_deref(), Some("https://a.test"));
        assert_eq!(web_url("https://u:p@a.test/x").as_deref(), Some("https://a.test"));
    }

    #[test]
    fn a_partial_version_resolves_to_its_newest_release() {
        let names = ["1.2.3", "1.10.0", "v2.0.1", "2.1.0-rc1", "nightly"];
        let known = names.iter().map(|name| (format!("refs/tags/{name}"), format!("sha of {name}"))).collect();
        let resolved = |wanted: &str| newest_release(&known, wanted).map(|(_, version)| version);
        assert_eq!(resolved("1").as_deref(), Some("1.10.0"));
        assert_eq!(resolved("1.2").as_deref(), Some("1.2.3"));
        assert_eq!(resolved("~latest").as_deref(), Some("v2.0.1"));
        assert_eq!(resolved("3"), None);
    }
}
