//! A small process that removes what a run leaves when that is killed: its containers, its directory, the secrets in its
//! trees. Its input ends with the run, however that ends.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use super::state;
use super::tree::Trees;

/// The word with which this program becomes a guard.
pub const WORD: &str = "exec-guard";

/// The guard of a run.
pub struct Guard(Child);

impl Guard {
    /// Starts it. Where no process can be started there is none, and the next run removes what is left.
    pub fn start(run: &Path) -> Option<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(WORD).arg(run).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Signals from the keyboard are for the run.
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

/// The whole life of a guard.
pub fn main() -> ExitCode {
    let Some(run) = std::env::args_os().nth(2).map(PathBuf::from) else { return ExitCode::FAILURE };
    // Nothing is written into it: it ends when its other end is closed.
    let _ = std::io::stdin().read(&mut [0]);
    if run.join("lock").exists() {
        state::remove_killed(&run);
        let project = run.parent().and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
        if fs::exists(project.join("trees")).unwrap_or(false) {
            Trees::new(project.join("trees"), "").remove_secrets();
        }
    }
    ExitCode::SUCCESS
}
