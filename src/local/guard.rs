//! A helper process that cleans up when `mayfly exec` is killed: it removes the run's containers, its directory, and
//! the secrets in its trees. It waits until its standard input is closed, because the kernel closes the run's end of
//! that pipe in every case.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use super::killed;
use super::tree::Trees;

/// The hidden subcommand of the guard process.
pub const SUBCOMMAND: &str = "exec-guard";
/// The file in the directory of a run that lists the state directories of mapped projects whose jobs ran, one per line.
pub const MAPPED_STATES: &str = "mapped";

/// The guard process of a run.
pub struct Guard(Child);

impl Guard {
    /// Starts the guard. If that fails, the next run cleans up instead.
    pub fn start(run: &Path) -> Option<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(SUBCOMMAND).arg(run).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Signals from the keyboard must reach only the run.
        command.process_group(0);
        command.spawn().ok().map(Self)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The main function of the guard process.
pub fn main() -> ExitCode {
    let Some(run) = std::env::args_os().nth(2).map(PathBuf::from) else { return ExitCode::FAILURE };
    // The run never writes to this pipe, so the read returns when the run's end is closed.
    let _ = std::io::stdin().read(&mut [0]);
    if run.join("lock").exists() {
        let trees = trees(&run);
        trees.iter().for_each(Trees::remove_secrets);
        killed::remove_killed(&run);
        // Jobs that were still running may have written secrets since the first removal.
        trees.iter().for_each(Trees::remove_secrets);
    }
    ExitCode::SUCCESS
}

/// The trees of the run's project, and of the mapped projects whose jobs ran.
fn trees(run: &Path) -> Vec<Trees> {
    let project = run.parent().and_then(Path::parent).map(Path::to_owned);
    let mapped = fs::read_to_string(run.join(MAPPED_STATES)).unwrap_or_default();
    let states = project.into_iter().chain(mapped.lines().map(PathBuf::from));
    let places = states.map(|state| state.join("trees")).filter(|place| place.exists());
    places.map(|place| Trees::new(place, "")).collect()
}
