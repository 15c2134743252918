//! Where local runs keep things: below the user's cache directory, for each project apart.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::containers;
use super::guard::Guard;
use crate::executor::docker::names::digest;
use crate::executor::user;
use crate::http::Address;
use crate::job::sources::remove::remove;

/// The name of the file that says which engine has containers of a run.
const ENGINE: &str = "engine";

/// The directory of all local runs of the user.
fn root() -> PathBuf {
    let home = || user::current().home.join(".cache");
    let given = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    given.unwrap_or_else(home).join("mayfly/exec")
}

fn make(directory: PathBuf) -> Result<PathBuf, String> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.map_err(|error| format!("{}: {error}", directory.display()))?;
    Ok(directory)
}

/// The directory for a project (by the path of its checkout). Errors: the disk.
pub fn of_project(checkout: &Path) -> Result<PathBuf, String> {
    let name = checkout.file_name().unwrap_or_default().to_string_lossy().into_owned();
    make(root().join(format!("{name}-{}", &digest(&checkout.display().to_string())[..16])))
}

/// The directory for what is fetched from other projects. Errors: the disk.
pub fn includes() -> Result<PathBuf, String> {
    make(root().join("includes"))
}

/// One run: its number and its own directory, which goes with it.
pub struct Run {
    /// `CI_PIPELINE_ID`, counted for each project.
    pub number: u64,
    /// The directory of the run.
    pub directory: PathBuf,
    /// The directory of the project.
    pub state: PathBuf,
    /// Held while the run lives: another run sees by it which ones were killed.
    _lock: Flock<File>,
    /// Removes the directory when this process is killed.
    _guard: Option<Guard>,
}

impl Run {
    /// Begins a run, and removes what runs that were killed have left. Errors: the disk.
    pub fn begin(state: &Path) -> Result<Self, String> {
        let runs = make(state.join("runs"))?;
        let failed = |error: io::Error| format!("{}: {error}", runs.display());
        remove_forgotten(&runs);
        let number = next_number(state).map_err(failed)?;
        let directory = make(runs.join(number.to_string()))?;
        let file = File::create(directory.join("lock")).map_err(failed)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| failed(error.into()))?;
        let guard = Guard::start(&directory);
        Ok(Self { number, directory, state: state.to_owned(), _lock: lock, _guard: guard })
    }

    /// Notes that an engine may have containers of this run. Errors: the disk.
    pub fn note_engine(&self, address: &Address) -> Result<(), String> {
        let path = self.directory.join(ENGINE);
        let text = serde_json::to_vec(address).map_err(|error| error.to_string())?;
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        remove_run(&self.directory);
    }
}

/// Removes the directory of a run.
pub fn remove_run(directory: &Path) {
    if let Err(error) = remove(directory) {
        eprintln!("mayfly: warning: {} is not removed: {error}", directory.display());
    }
}

/// A number that no earlier run of the project had.
fn next_number(state: &Path) -> io::Result<u64> {
    use std::io::{Read, Seek, Write};
    let file = File::options().read(true).write(true).create(true).truncate(false).open(state.join("number"))?;
    let mut file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let number = text.trim().parse::<u64>().unwrap_or(0).saturating_add(1);
    file.rewind()?;
    file.set_len(0)?;
    write!(file, "{number}")?;
    Ok(number)
}

/// What runs have left that nobody ends any more: their containers and their directories.
fn remove_forgotten(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let directory = entry.path();
        let Ok(file) = File::open(directory.join("lock")) else { continue };
        let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
        remove_killed(&directory);
    }
}

/// Removes what a run that was killed has left: its containers and its directory.
pub fn remove_killed(directory: &Path) {
    let engine = fs::read(directory.join(ENGINE)).ok().and_then(|text| serde_json::from_slice::<Address>(&text).ok());
    if let Some(address) = engine {
        containers::remove_forgotten(&address, directory);
    }
    remove_run(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_counted_and_a_killed_one_is_removed_by_the_next() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Run::begin(directory.path()).expect("begun");
        let (number, path) = (first.number, first.directory.clone());
        let second = Run::begin(directory.path()).expect("begun");
        assert!(second.number == number + 1 && path.exists(), "one that lives stays");
        drop(second);
        let killed = directory.path().join("runs/999");
        fs::create_dir(&killed).expect("made");
        fs::write(killed.join("lock"), "").expect("written");
        let third = Run::begin(directory.path()).expect("begun");
        assert!(!killed.exists() && path.exists());
        drop((first, third));
        assert_eq!(fs::read_dir(directory.path().join("runs")).expect("read").count(), 0);
    }
}
