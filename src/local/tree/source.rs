//! The files and repositories that trees are copied from.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::parallel::filter_map_all;
use super::repository::Repository;
use super::skipped::SkippedFiles;
use super::stamp::Stamp;
use crate::local::checkout::{Checkout, FileSet, ListedFile, list};
use crate::local::facts::RepositoryFacts;
use crate::local::objects;

/// The files for the trees; read once per run.
pub struct TreeSource {
    /// The top of the work tree.
    pub(super) root: PathBuf,
    /// The files by their paths, with the stamps of the originals.
    pub(super) files: HashMap<PathBuf, Stamp>,
    pub(super) directories: HashSet<PathBuf>,
    /// Files that are not in the work tree of a sparse checkout.
    pub(super) skipped: SkippedFiles,
    pub(super) repository: Repository,
    /// The repositories of submodules, by their paths.
    pub(super) submodules: HashMap<PathBuf, Repository>,
}

impl TreeSource {
    /// The listed files of the checkout, and a repository with the current commit. Fails if git does not list the files
    /// that a sparse checkout leaves out.
    pub fn new(checkout: &Checkout, listed: &[ListedFile], repository_facts: &RepositoryFacts) -> Result<Self, String> {
        // A partial clone may lack these objects. Its owner decided against a download of all objects.
        let skipped = match listed.iter().any(|file| file.is_skipped) && !repository_facts.is_partial_clone() {
            true => SkippedFiles::list(&checkout.root)?,
            false => SkippedFiles::default(),
        };
        let mut source = Self {
            root: checkout.root.clone(),
            files: HashMap::with_capacity(listed.len()),
            directories: HashSet::new(),
            skipped,
            repository: Repository::new(checkout, repository_facts),
            submodules: HashMap::new(),
        };
        source.add(listed, Path::new(""));
        let skipped: Vec<(PathBuf, Stamp)> =
            source.skipped.stamps().map(|(path, stamp)| (path.to_owned(), stamp)).collect();
        for (path, stamp) in skipped {
            source.add_directories(&path);
            source.files.insert(path, stamp);
        }
        Ok(source)
    }

    /// Adds files and symbolic links that exist; a tracked file that the developer deleted is skipped.
    fn add(&mut self, listed: &[ListedFile], below: &Path) {
        let found = filter_map_all(listed, |file| {
            let path = below.join(&file.path);
            let metadata = self.root.join(&path).symlink_metadata().ok()?;
            Some((path, metadata, file))
        });
        for (path, metadata, file) in found {
            if file.is_submodule && metadata.is_dir() {
                self.add_directories(&path);
                self.directories.insert(path);
            } else if metadata.is_file() || metadata.is_symlink() {
                self.add_directories(&path);
                self.files.insert(path, Stamp::of_metadata(&metadata));
            }
        }
    }

    fn add_directories(&mut self, path: &Path) {
        for directory in path.ancestors().skip(1) {
            if directory.as_os_str().is_empty() || !self.directories.insert(directory.to_owned()) {
                break;
            }
        }
    }

    /// Adds the files and repositories of submodules (`GIT_SUBMODULE_STRATEGY`) that are checked out. `state` is the
    /// directory of the project's state.
    pub fn add_submodules(&mut self, listed: &[ListedFile], state: &Path) -> Result<(), String> {
        self.repository.add_settings_of_submodules(&self.root);
        let mut waiting = objects::submodule_roots(&self.root, listed);
        while let Some(root) = waiting.pop() {
            let path = root.strip_prefix(&self.root).unwrap_or(&root).to_owned();
            let Some(checkout) = objects::submodule_checkout(&root, state)? else { continue };
            let files = list(&root, FileSet::Tracked)?;
            self.add(&files, &path);
            // A repository without a commit is of no use to a job.
            if let Ok(repository_facts) = RepositoryFacts::read(&root) {
                let mut repository = Repository::new(&checkout, &repository_facts);
                if files.iter().any(|file| file.is_submodule) {
                    repository.add_settings_of_submodules(&root);
                }
                self.submodules.insert(path, repository);
            }
            waiting.extend(objects::submodule_roots(&root, &files));
        }
        Ok(())
    }
}
