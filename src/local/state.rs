//! The state of local runs: a directory for each project below the user's cache directory.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::facts::project_slug;
use super::guard::Guard;
use super::killed::{self, ENGINE_FILE, remove_all_but_the_engine, remove_run};
use crate::executor::user;
use crate::http::Address;

/// The directory for all local runs of the user.
fn root_directory() -> PathBuf {
    let home = || user::current().home.join(".cache");
    let given = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    given.unwrap_or_else(home).join("mayfly/exec")
}

/// Creates a directory that only this user can access.
fn create_private(directory: PathBuf) -> Result<PathBuf, String> {
    let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    created.map_err(|error| {
        format!(
            "{}: {error}; mayfly keeps copies of the checkout there; set XDG_CACHE_HOME to a directory that you can \
             write",
            directory.display()
        )
    })?;
    Ok(directory)
}

/// The directory for a project, named after the path of its checkout.
pub fn project_directory(checkout: &Path) -> Result<PathBuf, String> {
    let name = project_slug(&checkout.file_name().unwrap_or_default().to_string_lossy());
    create_private(
        root_directory().join(format!("{name}-{}", &crate::digest::sha256(checkout.as_os_str().as_bytes())[..16])),
    )
}

/// The directory for the kept trees of failed jobs.
pub fn kept_trees(state: &Path) -> PathBuf {
    state.join("kept")
}

/// The days after which a kept tree is removed.
pub const KEPT_DAYS: u64 = 7;

/// Removes kept trees that are too old.
fn remove_old_trees(state: &Path) {
    let max_age = Duration::from_secs(KEPT_DAYS * 24 * 3600);
    for entry in fs::read_dir(kept_trees(state)).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > max_age) {
            remove_run(&entry.path());
        }
    }
}

/// The cache directory for files of other projects.
pub fn cache_of_includes() -> Result<PathBuf, String> {
    create_private(root_directory().join("includes"))
}

/// A run: its number, and its directory, which is removed when the run ends.
pub struct Run {
    /// `CI_PIPELINE_ID`, counted for each project.
    pub number: u64,
    pub directory: PathBuf,
    pub state: PathBuf,
    /// Whether the engine still has containers of this run.
    has_containers: AtomicBool,
    /// The lock is held during the run. If another run can take it, this run was killed.
    _lock: Flock<File>,
    /// Cleans up if this process is killed.
    _guard: Option<Guard>,
}

impl Run {
    /// Starts a run, and cleans up after killed runs.
    pub fn begin(state: &Path) -> Result<Self, String> {
        let runs = create_private(state.join("runs"))?;
        let failed = |error: io::Error| format!("{}: {error}", runs.display());
        killed::remove_killed_runs(&runs);
        remove_old_trees(state);
        let number = take_number(state).map_err(failed)?;
        let directory = create_private(runs.join(number.to_string()))?;
        let file = File::create(directory.join("lock")).map_err(failed)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| failed(error.into()))?;
        let guard = Guard::start(&directory);
        Ok(Self {
            number,
            directory,
            state: state.to_owned(),
            has_containers: AtomicBool::new(false),
            _lock: lock,
            _guard: guard,
        })
    }

    /// Leaves the removal of this run's containers to the next run, because the engine does not remove them now.
    pub fn leave_containers(&self) {
        self.has_containers.store(true, Ordering::Release);
    }

    /// Records the address of an engine that may have containers of this run.
    pub fn record_engine(&self, address: &Address) -> Result<(), String> {
        let path = self.directory.join(ENGINE_FILE);
        let text = serde_json::to_vec(address).map_err(|error| error.to_string())?;
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        match self.has_containers.load(Ordering::Acquire) {
            true => remove_all_but_the_engine(&self.directory),
            false => remove_run(&self.directory),
        }
    }
}

/// Takes the next run number of the project.
fn take_number(state: &Path) -> io::Result<u64> {
    use std::io::{Read, Seek, Write};
    let file = File::options().read(true).write(true).create(true).truncate(false).open(state.join("number"))?;
    let mut file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let number = text.trim().parse::<u64>().unwrap_or(0).saturating_add(1);
    file.rewind()?;
    // The file is overwritten without truncation: the number never has fewer digits than before, and a process that is
    // killed before the write leaves the old number.
    file.write_all(number.to_string().as_bytes())?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_trees_are_removed_after_some_days() {
        let state = tempfile::tempdir().expect("a directory");
        let age = |days: u64| std::time::SystemTime::now() - Duration::from_secs(days * 24 * 3600);
        for (name, days) in [("old", KEPT_DAYS + 1), ("new", KEPT_DAYS - 1)] {
            let tree = kept_trees(state.path()).join(name);
            fs::create_dir_all(tree.join("app")).expect("create the directory");
            File::open(&tree).and_then(|tree| tree.set_modified(age(days))).expect("set the time");
        }
        drop(Run::begin(state.path()).expect("start a run"));
        assert!(!kept_trees(state.path()).join("old").exists() && kept_trees(state.path()).join("new/app").exists());
    }

    #[test]
    fn counts_runs_and_removes_killed_runs() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Run::begin(directory.path()).expect("start a run");
        let (number, path) = (first.number, first.directory.clone());
        let second = Run::begin(directory.path()).expect("start a run");
        assert!(second.number == number + 1 && path.exists(), "the directory of a running run stays");
        drop(second);
        let killed = directory.path().join("runs/999");
        fs::create_dir(&killed).expect("create the directory");
        fs::write(killed.join("lock"), "").expect("write the file");
        let third = Run::begin(directory.path()).expect("start a run");
        assert!(!killed.exists() && path.exists());
        drop((first, third));
        assert_eq!(fs::read_dir(directory.path().join("runs")).expect("list the directory").count(), 0);
    }
}
