//! Removes the containers and files of killed runs.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::containers;
use crate::http::Address;
use crate::job::sources::remove::remove;
use crate::shim::{RunningShim, STARTED};

/// How long the steps of a killed run may take to end: longer than their shims wait before SIGKILL.
const STEPS_TIMEOUT: Duration = Duration::from_secs(30);

/// The file with the address of the engine that may have containers of the run.
pub const ENGINE_FILE: &str = "engine";

/// Cleans up after runs that were killed.
pub fn remove_killed_runs(runs: &Path) {
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
    let engine =
        fs::read(directory.join(ENGINE_FILE)).ok().and_then(|text| serde_json::from_slice::<Address>(&text).ok());
    let remove_containers =
        || engine.as_ref().is_none_or(|address| containers::remove_containers_of_killed_run(address, directory));
    // The first removal ends running containers. A step that has not ended may still create another container, so a
    // second removal follows the end of all steps.
    remove_containers();
    wait_for_steps(directory);
    match remove_containers() {
        true => remove_run(directory),
        false => remove_all_but_the_engine(directory),
    }
}

/// Waits until the steps of a killed run have ended; their shims stop them because the run has ended.
fn wait_for_steps(run: &Path) {
    let until = Instant::now() + STEPS_TIMEOUT;
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    for file in entries(run).flat_map(|job| entries(&job)).filter(|file| file.extension() == Some(STARTED.as_ref())) {
        let step = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(shim) = RunningShim::find(&step, &file) {
            shim.wait(None, Some(until.saturating_duration_since(Instant::now())));
        }
    }
}

/// Removes everything of a run except the data that a later run needs to remove its containers.
pub fn remove_all_but_the_engine(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name() != ENGINE_FILE && entry.file_name() != "lock") {
        remove_run(&entry.path());
    }
}

/// Removes the directory of a run; a failure is a warning.
pub fn remove_run(directory: &Path) {
    if let Err(error) = remove(directory) {
        eprintln!("mayfly: warning: cannot remove {}: {error}", directory.display());
    }
}
