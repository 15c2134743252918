//! Removes what a killed run left behind.

use std::fs::{self, File};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use super::containers;
use crate::http::Address;
use crate::job::sources::remove::remove;

/// The file with the address of the engine that may have containers of the run.
pub const ENGINE: &str = "engine";

/// Cleans up after runs that were killed.
pub fn remove_forgotten(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let directory = entry.path();
        let Ok(file) = File::open(directory.join("lock")) else { continue };
        let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
        remove_killed(&directory);
    }
}

/// Removes the containers and the directory of a killed run. If the engine is unavailable, a later run removes the
/// containers.
pub fn remove_killed(directory: &Path) {
    let engine = fs::read(directory.join(ENGINE)).ok().and_then(|text| serde_json::from_slice::<Address>(&text).ok());
    match engine.is_none_or(|address| containers::remove_forgotten(&address, directory)) {
        true => remove_run(directory),
        false => remove_all_but_the_engine(directory),
    }
}

/// Removes everything of a run except the data that a later run needs to remove its containers.
pub fn remove_all_but_the_engine(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name() != ENGINE && entry.file_name() != "lock") {
        remove_run(&entry.path());
    }
}

/// Removes the directory of a run; a failure is a warning.
pub fn remove_run(directory: &Path) {
    if let Err(error) = remove(directory) {
        eprintln!("mayfly: warning: cannot remove {}: {error}", directory.display());
    }
}
