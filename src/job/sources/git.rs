//! Running git: without a shell, with an environment and options that nothing in the work tree can change.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::environment::PROXIES;
use super::{SourcesError, SourcesPlan};

/// Options that hold for every git command: nothing that stands in the work tree or its repository is run, and no
/// redirect is followed (`redirect` follows those that stay on the host).
const SAFE_SETTINGS: [&str; 12] = [
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.untrackedCache=false",
    "-c",
    "core.commitGraph=false",
    "-c",
    "protocol.ext.allow=never",
    "-c",
    "http.followRedirects=false",
];

/// Runs git in the project directory; its output goes where ours goes.
pub fn run(plan: &SourcesPlan, arguments: &[&str]) -> Result<(), SourcesError> {
    run_in(plan, &plan.project, arguments)
}

/// Runs git in a directory of the checkout.
pub fn run_in(plan: &SourcesPlan, directory: &Path, arguments: &[&str]) -> Result<(), SourcesError> {
    let status = command(plan, directory, arguments).status()?;
    match status.code() {
        Some(0) => Ok(()),
        // As a shell has it.
        code => Err(SourcesError::Git(code.or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1))),
    }
}

/// A command of git for a directory of the checkout.
pub fn command(plan: &SourcesPlan, directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .args(SAFE_SETTINGS)
        .args(plan.beside_container())
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .envs(plan.environment.iter().map(|(name, value)| (name, value)))
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GCM_INTERACTIVE", "Never")
        .env("GIT_LFS_SKIP_SMUDGE", "1")
        .env("GIT_NO_REPLACE_OBJECTS", "1")
        .env("GIT_CEILING_DIRECTORIES", directory.parent().unwrap_or(Path::new("/")))
        .stdin(Stdio::null());
    if let Some(relay) = crate::http::way_out() {
        // The job's own proxies are the relay's to take.
        for name in PROXIES {
            command.env_remove(name);
        }
        command.env("ALL_PROXY", format!("socks5h://{relay}"));
    }
    command
}
