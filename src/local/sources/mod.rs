//! Provides the planner's files: from the checkout, from directories that the user maps, from other projects over git,
//! and from URLs.
//!
//! The developer's repository is only read. Fetched files are stored in the user's cache directory.

mod fetch;
mod files;
mod maps;
mod remote;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use super::checkout::{Checkout, FileSet, ListedFile, git, output};
use super::facts::resolve;
use crate::archive::root::ArchiveRoot;
use crate::archive::unpack::unpack;
use crate::digest::hex;
use crate::pipeline::ahead::ParsedAhead;
use crate::pipeline::request::{Base, ComponentVersion, SourceError, SourceTree, Sources};
use crate::sync;

use files::{open_file, read_below, read_file};

pub use fetch::Fetcher;
pub use files::files_below;
pub use maps::{MappedComponent, MappedProject, Maps};

/// The prefix of the commit id of a [`SourceTree`] that is a local directory.
const DIRECTORY_PREFIX: &str = "directory:";

/// The places of a project's files.
pub struct SourcePlaces {
    pub checkout: Checkout,
    /// The current commit.
    pub commit: String,
    /// The path of the project on its server.
    pub project: String,
    pub file_set: FileSet,
    pub maps: Maps,
    pub fetcher: Fetcher,
    /// A directory for unpacked artifacts.
    pub scratch: PathBuf,
}

/// The files of a local run.
pub struct LocalSources {
    places: SourcePlaces,
    /// The paths of the project's files, sorted; listed when they are needed.
    listed: OnceLock<Arc<Vec<String>>>,
    /// Artifact archives of finished jobs, for `trigger:include:artifact`.
    artifacts: Mutex<HashMap<String, PathBuf>>,
    untracked_reads: Mutex<Vec<String>>,
    parsed: Option<ParsedAhead>,
}

/// Reads and parses a file of the checkout that contains `directory`, before git has named the checkout.
pub fn parse_ahead(directory: &Path, path: &str) -> Option<ParsedAhead> {
    let root = directory.ancestors().find(|directory| directory.join(".git").exists())?;
    ParsedAhead::new(read_below(root, path).ok()?)
}

impl LocalSources {
    pub fn new(places: SourcePlaces) -> Self {
        Self {
            places,
            listed: OnceLock::new(),
            artifacts: Mutex::default(),
            untracked_reads: Mutex::default(),
            parsed: None,
        }
    }

    /// Takes a file that was parsed already.
    pub fn with_parsed(self, parsed: Option<ParsedAhead>) -> Self {
        Self { parsed, ..self }
    }

    /// Takes the files of the checkout from a listing that was read already.
    pub fn with_listing(self, files: &[ListedFile]) -> Self {
        Self { listed: sorted_paths(files).into(), ..self }
    }

    fn listed(&self) -> Result<&Arc<Vec<String>>, SourceError> {
        if let Some(listed) = self.listed.get() {
            return Ok(listed);
        }
        let files = self.places.checkout.files(self.places.file_set).map_err(SourceError::Failed)?;
        Ok(self.listed.get_or_init(|| sorted_paths(&files)))
    }

    /// Registers the artifacts archive of a job.
    pub fn set_artifact(&self, job: &str, archive: PathBuf) {
        sync::lock(&self.artifacts).insert(job.to_owned(), archive);
    }

    /// The files that were read although git does not track them, so GitLab would not have them.
    pub fn untracked_reads(&self) -> Vec<String> {
        sync::lock(&self.untracked_reads).clone()
    }

    fn mapped_directory(&self, project: &str, reference: Option<&str>) -> Option<&Path> {
        self.places.maps.position(project, reference).map(|at| self.places.maps.projects[at].directory.as_path())
    }

    /// Unpacks the artifacts of a job, unless they are unpacked already. Returns their directory.
    fn unpack_artifacts(&self, job: &str) -> Result<PathBuf, SourceError> {
        let failed = |why: String| SourceError::Failed(format!("the artifacts of job `{job}`: {why}"));
        let archives = sync::lock(&self.artifacts);
        let missing = || SourceError::Missing(format!("job `{job}` has no artifacts"));
        let archive = archives.get(job).ok_or_else(missing)?;
        let number = archive.parent().and_then(Path::file_name).unwrap_or_default();
        let directory = self.places.scratch.join("unpacked").join(number);
        if !directory.exists() {
            std::fs::create_dir_all(&directory).map_err(|error| failed(error.to_string()))?;
            let file = File::open(archive).map_err(|error| failed(error.to_string()))?;
            let root = ArchiveRoot::open(&directory).map_err(|error| failed(error.to_string()))?;
            unpack(&file, &root).map_err(|error| failed(error.to_string()))?;
        }
        Ok(directory)
    }
}

impl Sources for LocalSources {
    fn parsed(&self) -> Option<&ParsedAhead> {
        self.parsed.as_ref()
    }

    fn runs_pipelines_of(&self, project: &str) -> bool {
        self.places.maps.projects.iter().any(|map| map.project == project)
    }

    fn read(&self, tree: &SourceTree, path: &str) -> Result<Vec<u8>, SourceError> {
        let path = path.trim_start_matches('/');
        match tree {
            SourceTree::Project => {
                let text = read_below(&self.places.checkout.root, path)?;
                if self.listed.get().is_some_and(|listed| !contains(listed, path)) {
                    let mut reads = sync::lock(&self.untracked_reads);
                    if !reads.iter().any(|read| read == path) {
                        reads.push(path.to_owned());
                    }
                }
                Ok(text)
            }
            SourceTree::Commit { sha, .. } if sha.starts_with(DIRECTORY_PREFIX) => {
                read_below(Path::new(&sha[DIRECTORY_PREFIX.len()..]), path)
            }
            SourceTree::Commit { project, sha } => self.places.fetcher.read_file(project, sha, path),
        }
    }

    fn files(&self, tree: &SourceTree) -> Result<Arc<Vec<String>>, SourceError> {
        match tree {
            SourceTree::Project => self.listed().map(Arc::clone),
            SourceTree::Commit { sha, .. } if sha.starts_with(DIRECTORY_PREFIX) => {
                files_below(Path::new(&sha[DIRECTORY_PREFIX.len()..])).map(Arc::new)
            }
            SourceTree::Commit { project, sha } => self.places.fetcher.list_files(project, sha).map(Arc::new),
        }
    }

    fn project(&self, project: &str, reference: Option<&str>) -> Result<SourceTree, SourceError> {
        if let Some(directory) = self.mapped_directory(project, reference) {
            return directory_tree(project, directory);
        }
        if project == self.places.project && reference.is_none_or(|reference| reference == self.places.commit) {
            return Ok(SourceTree::Project);
        }
        let sha = self.places.fetcher.resolve_commit(project, reference.unwrap_or("HEAD"))?;
        Ok(SourceTree::Commit { project: project.into(), sha: sha.into() })
    }

    fn remote(&self, url: &str) -> Result<Vec<u8>, SourceError> {
        match self.places.maps.remotes.get(url) {
            Some(file) => read_file(file).map_err(|why| SourceError::Failed(format!("{}: {why}", file.display()))),
            None => self.places.fetcher.fetch_url(url),
        }
    }

    fn template(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        match &self.places.maps.templates {
            Some(directory) => read_below(directory, name),
            None => self.places.fetcher.fetch_template(name),
        }
    }

    fn component(&self, host: &str, project: &str, reference: &str) -> Result<ComponentVersion, SourceError> {
        let of_project = || self.places.maps.components.iter().filter(|map| map.project == project);
        let mapped = of_project()
            .find(|map| map.references.iter().any(|known| known == reference))
            .or_else(|| of_project().find(|map| map.references.is_empty()));
        if let Some(mapped) = mapped {
            return Ok(ComponentVersion {
                tree: directory_tree(project, &mapped.directory)?,
                sha: mapped.sha.clone().unwrap_or_else(|| "0".repeat(40)),
                version: mapped.version.clone().unwrap_or_else(|| reference.to_owned()),
            });
        }
        if of_project().next().is_some() {
            return Err(SourceError::Missing(format!(
                "`{reference}` is not a version of the mapped component {project}"
            )));
        }
        if project == self.places.project && reference == self.places.commit {
            let (sha, version) = (self.places.commit.clone(), reference.to_owned());
            return Ok(ComponentVersion { tree: SourceTree::Project, sha, version });
        }
        let (sha, version) = self.places.fetcher.resolve_version(host, project, reference)?;
        let tree = SourceTree::Commit { project: project.into(), sha: sha.as_str().into() };
        Ok(ComponentVersion { tree, sha, version })
    }

    fn artifact(&self, job: &str, path: &str) -> Result<Vec<u8>, SourceError> {
        read_below(&self.unpack_artifacts(job)?, path)
    }

    fn changed(&self, base: &Base) -> Result<Arc<Vec<String>>, SourceError> {
        let commit = match base {
            Base::Before(commit) => resolve(&self.places.checkout, commit).map_err(SourceError::Missing)?,
            Base::MergeBase(name) => {
                let known = resolve(&self.places.checkout, name)
                    .or_else(|_| resolve(&self.places.checkout, &format!("refs/remotes/origin/{name}")))
                    .map_err(SourceError::Missing)?;
                let mut command = git(&self.places.checkout.root);
                command.args(["merge-base", "HEAD", &known]);
                let base = output(command)
                    .map_err(|why| SourceError::Failed(format!("`{name}` and HEAD have no common commit: {why}")))?;
                String::from_utf8_lossy(&base).trim().to_owned()
            }
        };
        let mut command = git(&self.places.checkout.root);
        command.args(["diff", "--name-only", "--no-renames", "-z", &commit]);
        let names = output(command).map_err(SourceError::Failed)?;
        let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(Arc::new(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()))
    }

    fn content_id(&self, path: &str) -> Result<Option<String>, SourceError> {
        let path = path.trim_start_matches('/');
        if !contains(self.listed()?, path) {
            return Ok(None);
        }
        let failed = |error| SourceError::Failed(format!("{path}: {error}"));
        let Ok(file) = open_file(&self.places.checkout.root.join(path)) else { return Ok(None) };
        let mut digest = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
        let (mut file, mut block) = (file, [0; 64 * 1024]);
        loop {
            match file.read(&mut block).map_err(failed)? {
                0 => break,
                length => digest.update(&block[..length]),
            }
        }
        Ok(Some(hex(digest.finish().as_ref())))
    }

    fn last_commit(&self, path: &str) -> Result<Option<String>, SourceError> {
        let mut command = git(&self.places.checkout.root);
        command.args(["log", "-1", "--format=%H", "--", path]);
        let commit = output(command).map_err(SourceError::Failed)?;
        let commit = String::from_utf8_lossy(&commit).trim().to_owned();
        Ok(Some(commit).filter(|commit| !commit.is_empty()))
    }
}

/// The paths of the files, sorted, without submodules.
fn sorted_paths(listed: &[ListedFile]) -> Arc<Vec<String>> {
    let files = listed.iter().filter(|file| !file.is_submodule);
    let mut paths: Vec<String> = files.map(|file| file.path.to_string_lossy().into_owned()).collect();
    paths.sort_unstable();
    Arc::new(paths)
}

/// Whether sorted paths contain a path.
fn contains(paths: &[String], path: &str) -> bool {
    paths.binary_search_by(|known| known.as_str().cmp(path)).is_ok()
}

fn directory_tree(project: &str, directory: &Path) -> Result<SourceTree, SourceError> {
    let missing =
        || SourceError::Missing(format!("{project} is mapped to {}, which does not exist", directory.display()));
    let path = directory.canonicalize().map_err(|_| missing())?;
    let text = path.to_str().ok_or_else(missing)?;
    Ok(SourceTree::Commit { project: project.into(), sha: format!("{DIRECTORY_PREFIX}{text}").into() })
}
