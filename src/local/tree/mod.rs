//! Clean copies of the checkout, one for each running job: the tracked files in their current state, including
//! uncommitted changes.
//!
//! Trees are kept in the user's cache directory and reused. Before a job gets a tree, files that an earlier job changed
//! are detected by their stamps and copied again, so only the first job pays for a full copy. File systems that can
//! share blocks between files (btrfs, XFS) share them. Hard links are never used, because a job could write through
//! them into the work tree.

mod copy;
mod manifest;
mod repository;
mod skipped;
mod stamp;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};

use super::checkout::{Checkout, FileSet, Listed, list};
use super::facts::Answers;
use super::objects;
use crate::digest;
use crate::job::sources::remove::remove;
use manifest::Manifest;
use repository::Repository;
use skipped::SkippedFiles;
use stamp::Stamp;

/// The maximum number of trees of one project, and so of concurrent jobs.
const TREES_MOST: usize = 1024;

/// The files for the trees; read once per run.
pub struct TreeSource {
    root: PathBuf,
    files: HashMap<PathBuf, Stamp>,
    directories: HashSet<PathBuf>,
    /// Files that are not in the work tree of a sparse checkout.
    skipped: SkippedFiles,
    repository: Repository,
    /// The repositories of submodules, by their paths.
    submodules: HashMap<PathBuf, Repository>,
}

impl TreeSource {
    /// The listed files of the checkout, and a repository with the current commit. Fails if git does not list the files
    /// that a sparse checkout leaves out.
    pub fn new(checkout: &Checkout, listed: &[Listed], answers: &Answers) -> Result<Self, String> {
        // The objects of a partial clone may be missing; a download of all of them is not what its owner wants.
        let skipped = match listed.iter().any(|file| file.is_skipped) && !answers.is_partial_clone() {
            true => SkippedFiles::list(&checkout.root)?,
            false => SkippedFiles::default(),
        };
        let mut source = Self {
            root: checkout.root.clone(),
            files: HashMap::with_capacity(listed.len()),
            directories: HashSet::new(),
            skipped,
            repository: Repository::new(checkout, answers),
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
    fn add(&mut self, listed: &[Listed], below: &Path) {
        let looked = in_parts(listed, |file| {
            let path = below.join(&file.path);
            let metadata = self.root.join(&path).symlink_metadata().ok()?;
            Some((path, metadata, file))
        });
        for (path, metadata, file) in looked {
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

    /// Adds the files and repositories of submodules (`GIT_SUBMODULE_STRATEGY`) that are checked out. `state` is the
    /// directory of the project's state.
    pub fn add_submodules(&mut self, listed: &[Listed], state: &Path) -> Result<(), String> {
        self.repository.add_settings_of_submodules(&self.root);
        let mut waiting = objects::submodule_roots(&self.root, listed);
        while let Some(root) = waiting.pop() {
            let path = root.strip_prefix(&self.root).unwrap_or(&root).to_owned();
            let Some(checkout) = objects::of_submodule(&root, state)? else { continue };
            let files = list(&root, FileSet::Tracked)?;
            self.add(&files, &path);
            // A repository without a commit is of no use to a job.
            if let Ok(answers) = Answers::ask(&root) {
                let mut repository = Repository::new(&checkout, &answers);
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

    /// Takes a tree that contains exactly `source`, or nothing if `empty` is set (`GIT_STRATEGY: none` and `empty`).
    /// `restore_ownership` makes the user the owner of files that containers created as other users; if it fails, the
    /// tree is not used.
    pub fn take(
        &self,
        source: &TreeSource,
        empty: bool,
        restore_ownership: &dyn Fn(&Path) -> bool,
    ) -> io::Result<Tree> {
        for number in 0..TREES_MOST {
            let Some(tree) = self.lock(number)? else { continue };
            let is_closed = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
            let cleaned = match tree.clean(source, empty) {
                Err(error) if is_closed(&error) && restore_ownership(&tree.builds) => tree.clean(source, empty),
                cleaned => cleaned,
            };
            match cleaned {
                Ok(()) => return Ok(tree),
                Err(error) if is_closed(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!("all {TREES_MOST} trees below {} are in use", self.directory.display())))
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
        for number in 0..TREES_MOST {
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
    fn clean(&self, source: &TreeSource, empty: bool) -> io::Result<()> {
        fs::create_dir_all(&self.project)?;
        remove(&self.temporary)?;
        if empty {
            let _ = fs::remove_file(self.home.join("manifest"));
            return crate::job::sources::remove::empty(&self.project);
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
        open_up(&self.builds, &self.builds.symlink_metadata()?)?;
        File::open(&self.builds)?.set_modified(SystemTime::now())?;
        remove(place)?;
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::rename(&self.builds, place)?;
        Ok(place.join(self.project.file_name().unwrap_or_default()))
    }
}

/// Restores a tree to the state of the source. The manifest is saved before the tree is used.
fn restore(source: &TreeSource, tree: &Tree) -> io::Result<()> {
    let file = tree.home.join("manifest");
    let mut manifest = Manifest::load(&file);
    let mut kept = HashSet::new();
    let mut files = Vec::with_capacity(source.files.len());
    sweep(source, &tree.project, Path::new(""), &mut files)?;
    let looked = in_parts(&files, |path| {
        let metadata = tree.project.join(path).symlink_metadata();
        let is_kept = metadata.as_ref().is_ok_and(|metadata| {
            source.files.get(path).is_some_and(|original| manifest.holds(path, *original, Stamp::of(metadata)))
        });
        Some((path, is_kept))
    });
    for (path, is_kept) in looked {
        match is_kept {
            true => drop(kept.insert(path)),
            false => remove(&tree.project.join(path))?,
        }
    }
    let lacking: Vec<(&Path, Stamp)> = source
        .files
        .iter()
        .filter(|(path, _)| !kept.contains(path))
        .map(|(path, stamp)| (path.as_path(), *stamp))
        .collect();
    for directory in &source.directories {
        // Most directories exist; missing ones are created with their parents.
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
    let paths: Vec<&Path> = lacking.iter().map(|(path, _)| *path).collect();
    for path in source.skipped.write(&source.root, &tree.project, &tree.home.join("index"), &paths)? {
        let (original, place) = (source.files.get(&path), tree.project.join(&path));
        manifest.note(path, original.copied().unwrap_or_default(), Stamp::of(&place.symlink_metadata()?));
    }
    manifest.save(&file)
}

/// Removes everything that cannot be a file of the source, and collects the paths of the others.
fn sweep(source: &TreeSource, project: &Path, below: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(project.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        // The repositories have their own records.
        if entry.file_name() == ".git" && (below.as_os_str().is_empty() || source.submodules.contains_key(below)) {
            continue;
        }
        let is_directory = entry.file_type()?.is_dir();
        if is_directory && source.directories.contains(&path) {
            let place = project.join(&path);
            open_up(&place, &place.symlink_metadata()?)?;
            sweep(source, project, &path, files)?;
        } else if is_directory || !source.files.contains_key(&path) {
            remove(&project.join(&path))?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// Below this number of files, looking at them takes less time than starting a thread.
const FEW: usize = 500;

/// The number of threads for work on many files. Looking it up reads files of control groups.
fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(8)
}

/// The results of a function for all items, in order; on all cores if there are many items.
fn in_parts<'i, I: Sync, T: Send>(items: &'i [I], look: impl Fn(&'i I) -> Option<T> + Sync) -> Vec<T> {
    let threads = if items.len() < FEW { 1 } else { threads() };
    if threads == 1 {
        return items.iter().filter_map(look).collect();
    }
    thread::scope(|scope| {
        let look = &look;
        let parts = items.chunks(items.len().div_ceil(threads));
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || part.iter().filter_map(look).collect())).collect();
        let joined = parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.collect::<Vec<Vec<T>>>().into_iter().flatten().collect()
    })
}

/// A job may have removed the permissions of a directory.
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
