//! Clean copies of the checkout, one for each running job: the tracked files in their current state, including
//! uncommitted changes.
//!
//! Trees are kept in the user's cache directory and reused. Before a job gets a tree, files that an earlier job changed
//! are detected by their stamps and copied again, so only the first job pays for a full copy. File systems that can
//! share blocks between files (btrfs, XFS) share them. Hard links are never used, because a job could write through
//! them into the work tree.

mod copy;
mod manifest;
mod parallel;
mod repository;
mod restore;
mod skipped;
mod source;
mod stamp;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};

use crate::digest;
use crate::job::sources::remove::{empty, remove};
use restore::{make_accessible, restore};
pub use source::TreeSource;

/// The maximum number of trees of one project, and so of concurrent jobs.
const MAX_TREES: usize = 1024;

/// The files of a job's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeContent {
    Sources,
    /// The tree is empty (`GIT_STRATEGY: none` and `empty`).
    Nothing,
}

/// The trees of one project.
#[derive(Clone, Debug)]
pub struct Trees {
    directory: PathBuf,
    /// The name of a tree's directory: the last part of the project's path.
    name: String,
}

/// A tree in use; locked until it is dropped.
pub struct Tree {
    /// The directory of this tree's metadata.
    home: PathBuf,
    /// The parent directory of the project; a container mounts it as its builds directory.
    pub builds: PathBuf,
    /// The copy of the checkout.
    pub project: PathBuf,
    /// For files of the job outside its project; empty when the job starts.
    pub temporary: PathBuf,
    _lock: Flock<File>,
}

impl Trees {
    /// The trees below `directory`, which need not exist.
    pub fn new(directory: PathBuf, name: &str) -> Self {
        Self { directory, name: name.to_owned() }
    }

    /// Takes a tree that contains exactly `source`, or nothing. `restore_ownership` makes the user the owner of files
    /// that containers created as other users; if it fails, the tree is not used.
    pub fn take(
        &self,
        source: &TreeSource,
        content: TreeContent,
        restore_ownership: &dyn Fn(&Path) -> bool,
    ) -> io::Result<Tree> {
        for number in 0..MAX_TREES {
            let Some(tree) = self.lock(number)? else { continue };
            let is_inaccessible = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
            let cleaned = match tree.clean(source, content) {
                Err(error) if is_inaccessible(&error) && restore_ownership(&tree.builds) => tree.clean(source, content),
                cleaned => cleaned,
            };
            match cleaned {
                Ok(()) => return Ok(tree),
                Err(error) if is_inaccessible(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!("all {MAX_TREES} trees below {} are in use", self.directory.display())))
    }

    /// The builds directory of the first tree. A job that runs alone gets this tree.
    pub fn first_builds(&self) -> PathBuf {
        self.directory.join("0/builds")
    }

    /// Locks the tree with this number; `None` if it is in use.
    fn lock(&self, number: usize) -> io::Result<Option<Tree>> {
        let home = self.directory.join(number.to_string());
        fs::create_dir_all(&home)?;
        let lock = File::options().create(true).truncate(false).write(true).open(home.join("lock"))?;
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                let builds = home.join("builds");
                let (project, temporary) = (builds.join(&self.name), builds.join(format!("{}.tmp", self.name)));
                Ok(Some(Tree { home, builds, project, temporary, _lock: lock }))
            }
            Err((_, nix::errno::Errno::EAGAIN)) => Ok(None),
            Err((_, error)) => Err(error.into()),
        }
    }

    /// Removes the secrets of jobs whose run was killed.
    pub fn remove_secrets(&self) {
        for number in 0..MAX_TREES {
            if !self.directory.join(number.to_string()).exists() {
                return;
            }
            let Ok(Some(tree)) = self.lock(number) else { continue };
            for entry in fs::read_dir(&tree.builds).into_iter().flatten().flatten() {
                if entry.path().extension().is_some_and(|ending| ending == "tmp") {
                    let _ = remove(&entry.path());
                }
            }
        }
    }
}

impl Tree {
    /// Restores the tree to `content`.
    fn clean(&self, source: &TreeSource, content: TreeContent) -> io::Result<()> {
        fs::create_dir_all(&self.project)?;
        remove(&self.temporary)?;
        if content == TreeContent::Nothing {
            let _ = fs::remove_file(self.home.join("manifest"));
            return empty(&self.project);
        }
        restore(source, self)?;
        let scratch = self.home.join("index");
        let mark = |project: &Path| source.skipped.mark_as_present(project, &scratch);
        source.repository.write(&self.project, &self.home.join("repository"), &mark)?;
        for (path, repository) in &source.submodules {
            let name = digest::sha256(path.as_os_str().as_bytes());
            repository.write(&self.project.join(path), &self.home.join(format!("repository-{name}")), &|_| Ok(()))?;
        }
        Ok(())
    }

    /// Creates the directory for temporary files, for a job that runs as this user.
    pub fn make_temporary(&self) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(&self.temporary)
    }

    /// Moves the tree to the directory for kept trees, so that no other job gets it. The age of a kept tree counts from
    /// now, regardless of the time and the permissions that the job gave to its directory.
    pub fn keep(&self, place: &Path) -> io::Result<PathBuf> {
        let _ = fs::remove_file(self.home.join("manifest"));
        make_accessible(&self.builds, &self.builds.symlink_metadata()?)?;
        File::open(&self.builds)?.set_modified(SystemTime::now())?;
        remove(place)?;
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::rename(&self.builds, place)?;
        Ok(place.join(self.project.file_name().unwrap_or_default()))
    }
}
