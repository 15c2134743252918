//! Clean copies of the checkout, one for each job that runs: the files that git tracks as they stand in the work tree.
//!
//! Trees are kept in the user's cache directory and used again. Before a job gets one, everything that an earlier job
//! changed in it is found by its stamp and copied anew, so only the first job pays for a whole copy. A file system that
//! can share blocks between files (btrfs, XFS) shares them; hard links are never used, since a job could write through
//! them into the work tree.

mod copy;
mod manifest;
mod repository;
mod stamp;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::checkout::{Checkout, Listed};
use crate::job::sources::remove::remove;
use manifest::Manifest;
use repository::Repository;
use stamp::Stamp;

/// Most trees of one project: more jobs never run at once.
const TREES_MOST: usize = 1024;

/// What a job's tree is made of: read once a run.
pub struct Source {
    root: PathBuf,
    files: HashMap<PathBuf, Stamp>,
    directories: HashSet<PathBuf>,
    repository: Repository,
}

impl Source {
    /// The files of the checkout, and with `untracked` those that git does not ignore; `commit` is what the repository
    /// of a job has checked out. Errors: what git says.
    pub fn read(checkout: &Checkout, untracked: bool, commit: &str) -> Result<Self, String> {
        let listed = checkout.files(untracked)?;
        let repository = Repository::read(checkout, commit)?;
        let mut source = Self {
            root: checkout.root.clone(),
            files: HashMap::with_capacity(listed.len()),
            directories: HashSet::new(),
            repository,
        };
        source.add(&listed, Path::new(""));
        Ok(source)
    }

    /// Files and symbolic links that are there; one that was deleted is an edit, too.
    fn add(&mut self, listed: &[Listed], below: &Path) {
        for file in listed {
            let path = below.join(&file.path);
            let Ok(metadata) = self.root.join(&path).symlink_metadata() else { continue };
            if file.is_submodule && metadata.is_dir() {
                self.add_directories(&path);
                self.directories.insert(path);
            } else if metadata.is_file() || metadata.is_symlink() {
                self.add_directories(&path);
                self.files.insert(path, Stamp::of(&metadata));
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
}

/// The trees of one project.
#[derive(Clone, Debug)]
pub struct Trees {
    directory: PathBuf,
    /// What a tree is called: the last part of the path of the project.
    name: String,
}

/// A tree in use: nobody else gets it until it is dropped.
pub struct Tree {
    /// Everything of this tree.
    pub home: PathBuf,
    /// The copy of the checkout.
    pub project: PathBuf,
    /// For files of the job that are not part of its project; empty when the job begins.
    pub temporary: PathBuf,
    _lock: Flock<File>,
}

impl Trees {
    /// The trees below `directory`, which need not exist yet.
    pub fn new(directory: PathBuf, name: &str) -> Self {
        Self { directory, name: name.to_owned() }
    }

    /// A tree that holds exactly `source`; with `empty`, nothing at all (`GIT_STRATEGY: none` and `empty`).
    /// Errors: the disk.
    pub fn take(&self, source: &Source, empty: bool) -> io::Result<Tree> {
        let tree = self.free()?;
        fs::create_dir_all(&tree.project)?;
        remove(&tree.temporary)?;
        if empty {
            let _ = fs::remove_file(tree.home.join("manifest"));
            crate::job::sources::remove::empty(&tree.project)?;
            return Ok(tree);
        }
        restore(source, &tree)?;
        source.repository.write(&tree.project.join(".git"))?;
        Ok(tree)
    }

    /// The first tree that nobody uses.
    fn free(&self) -> io::Result<Tree> {
        for number in 0..TREES_MOST {
            let home = self.directory.join(number.to_string());
            fs::create_dir_all(&home)?;
            let lock = File::options().create(true).truncate(false).write(true).open(home.join("lock"))?;
            match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    let (project, temporary) = (home.join(&self.name), home.join(format!("{}.tmp", self.name)));
                    return Ok(Tree { home, project, temporary, _lock: lock });
                }
                Err((_, nix::errno::Errno::EAGAIN)) => {}
                Err((_, error)) => return Err(error.into()),
            }
        }
        Err(io::Error::other(format!("all {TREES_MOST} trees below {} are in use", self.directory.display())))
    }
}

impl Tree {
    /// Removes the tree. Errors: the disk, or files of another user.
    pub fn discard(self) -> io::Result<()> {
        let _ = fs::remove_file(self.home.join("manifest"));
        remove(&self.temporary)?;
        remove(&self.project)
    }
}

/// Brings a tree to the state of the source. What is known of it is written down before anybody uses it.
fn restore(source: &Source, tree: &Tree) -> io::Result<()> {
    let file = tree.home.join("manifest");
    let mut manifest = Manifest::load(&file);
    let mut kept = HashSet::new();
    sweep(source, &tree.project, Path::new(""), &manifest, &mut kept)?;
    let lacking: Vec<(&Path, Stamp)> = source
        .files
        .iter()
        .filter(|(path, _)| !kept.contains(*path))
        .map(|(path, stamp)| (path.as_path(), *stamp))
        .collect();
    for directory in &source.directories {
        // Most are there, and those that are not are made with their parents.
        if kept.is_empty() || !tree.project.join(directory).is_dir() {
            fs::create_dir_all(tree.project.join(directory))?;
        }
    }
    let forgotten = manifest.retain(|path| source.files.contains_key(path));
    if lacking.is_empty() && !forgotten {
        return Ok(());
    }
    for (path, original, copy) in copy::all(&source.root, &tree.project, &lacking)? {
        manifest.note(path, original, copy);
    }
    manifest.save(&file)
}

/// Removes what does not belong there, and notes the files that may stay.
fn sweep(
    source: &Source,
    project: &Path,
    below: &Path,
    manifest: &Manifest,
    kept: &mut HashSet<PathBuf>,
) -> io::Result<()> {
    for entry in fs::read_dir(project.join(below))? {
        let path = below.join(entry?.file_name());
        let place = project.join(&path);
        let metadata = place.symlink_metadata()?;
        if metadata.is_dir() && source.directories.contains(&path) {
            open_up(&place, &metadata)?;
            sweep(source, project, &path, manifest, kept)?;
            continue;
        }
        let original = source.files.get(&path);
        match original.is_some_and(|original| manifest.holds(&path, *original, Stamp::of(&metadata))) {
            true => drop(kept.insert(path)),
            false => remove(&place)?,
        }
    }
    Ok(())
}

/// A job may have closed a directory.
fn open_up(directory: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = metadata.permissions().mode();
    match mode & 0o755 == 0o755 {
        true => Ok(()),
        false => fs::set_permissions(directory, fs::Permissions::from_mode(mode | 0o755)),
    }
}

#[cfg(test)]
mod tests;
