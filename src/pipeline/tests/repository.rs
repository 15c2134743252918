//! A real git repository as the source of facts and files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::pipeline::request::{Base, CommitFacts, ComponentVersion, SourceError, SourceTree, Sources};

pub struct Repository {
    pub root: tempfile::TempDir,
    /// Other projects by path and ref.
    pub projects: HashMap<(String, String), PathBuf>,
    /// Response bodies by URL.
    pub remotes: HashMap<String, Vec<u8>>,
    /// Components by project and reference.
    pub components: HashMap<(String, String), (ComponentVersion, PathBuf)>,
}

impl Repository {
    pub fn new(branch: &str) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let repository = Self { root, projects: HashMap::new(), remotes: HashMap::new(), components: HashMap::new() };
        repository.git(&["init", "-q", "-b", branch]);
        for (key, value) in [("user.name", "Dev"), ("user.email", "dev@example.test"), ("commit.gpgsign", "false")] {
            repository.git(&["config", key, value]);
        }
        repository
    }

    pub fn git(&self, arguments: &[&str]) -> String {
        self.try_git(arguments).unwrap_or_else(|why| panic!("git {arguments:?}: {why}"))
    }

    pub fn try_git(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("git").args(arguments).current_dir(self.root.path()).output().expect("git runs");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    pub fn facts(&self, tag: Option<&str>, default_branch: &str, before: Option<&str>) -> CommitFacts {
        let branch = self.git(&["symbolic-ref", "--short", "HEAD"]);
        CommitFacts {
            sha: self.git(&["rev-parse", "HEAD"]),
            message: self.git(&["log", "-1", "--format=%B"]),
            author: self.git(&["log", "-1", "--format=%an <%ae>"]),
            timestamp: self.git(&["log", "-1", "--format=%cI"]),
            branch: tag.is_none().then_some(branch),
            tag: tag.map(str::to_owned),
            default_branch: default_branch.to_owned(),
            before: before.map(|before| self.git(&["rev-parse", before])),
            remote: self.try_git(&["remote", "get-url", "origin"]).ok(),
            directory: "app".to_owned(),
            user_name: "Dev".to_owned(),
            user_email: "dev@example.test".to_owned(),
            pipeline_id: 1,
            created_at: "2026-01-02T03:04:05Z".to_owned(),
            ..CommitFacts::default()
        }
    }

    fn directory(&self, tree: &SourceTree) -> PathBuf {
        match tree {
            SourceTree::Project => self.root.path().to_owned(),
            SourceTree::Commit { sha, .. } => PathBuf::from(&**sha),
        }
    }
}

fn walk(directory: &Path, prefix: &str, out: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("an entry");
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            walk(&entry.path(), &format!("{name}/"), out);
        } else {
            out.push(name);
        }
    }
}

impl Sources for Repository {
    fn read(&self, tree: &SourceTree, path: &str) -> Result<Vec<u8>, SourceError> {
        std::fs::read(self.directory(tree).join(path)).map_err(|error| SourceError::Missing(error.to_string()))
    }

    fn files(&self, tree: &SourceTree) -> Result<Arc<Vec<String>>, SourceError> {
        let mut files = Vec::new();
        match tree {
            SourceTree::Project => files.extend(self.git(&["ls-files"]).lines().map(str::to_owned)),
            SourceTree::Commit { .. } => walk(&self.directory(tree), "", &mut files),
        }
        Ok(Arc::new(files))
    }

    fn project(&self, project: &str, reference: Option<&str>) -> Result<SourceTree, SourceError> {
        let key = (project.to_owned(), reference.unwrap_or("HEAD").to_owned());
        let path = self.projects.get(&key).ok_or_else(|| SourceError::Missing("no such project".to_owned()))?;
        Ok(SourceTree::Commit { project: project.into(), sha: path.to_string_lossy().into() })
    }

    fn remote(&self, url: &str) -> Result<Vec<u8>, SourceError> {
        self.remotes.get(url).cloned().ok_or_else(|| SourceError::Failed("404".to_owned()))
    }

    fn template(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        Err(SourceError::Missing(format!("no template {name}")))
    }

    fn component(&self, _host: &str, project: &str, reference: &str) -> Result<ComponentVersion, SourceError> {
        let key = (project.to_owned(), reference.to_owned());
        let component = self.components.get(&key).map(|(version, _)| version.clone());
        component.ok_or_else(|| SourceError::Missing("no such version".to_owned()))
    }

    fn artifact(&self, _job: &str, path: &str) -> Result<Vec<u8>, SourceError> {
        Err(SourceError::Missing(path.to_owned()))
    }

    fn changed(&self, base: &Base) -> Result<Arc<Vec<String>>, SourceError> {
        let base = match base {
            Base::Before(sha) => sha.clone(),
            Base::MergeBase(reference) => {
                let merge_base = self.try_git(&["merge-base", reference, "HEAD"]);
                merge_base.map_err(|_| SourceError::Missing("no such ref".to_owned()))?
            }
        };
        let names = self.try_git(&["diff", "--name-only", &base]).map_err(SourceError::Failed)?;
        Ok(Arc::new(names.lines().map(str::to_owned).collect()))
    }

    fn content_id(&self, path: &str) -> Result<Option<String>, SourceError> {
        Ok(self.try_git(&["rev-parse", &format!("HEAD:{path}")]).ok())
    }

    fn last_commit(&self, path: &str) -> Result<Option<String>, SourceError> {
        Ok(self.try_git(&["log", "-1", "--format=%H", "--", path]).ok().filter(|sha| !sha.is_empty()))
    }
}
