//! Runs git without a shell, with an environment and options that files of the work tree cannot change.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use super::environment::PROXIES;
use super::{SourcesError, SourcesPlan};
use crate::executor::shell::find_git;

/// Options for every git command: git runs no program that the work tree or its repository names, and follows no
/// redirect ([`super::redirect`] follows those to the same host).
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

/// Runs git in the project directory, with the agent's standard output and error.
pub fn run(plan: &SourcesPlan, arguments: &[&str]) -> Result<(), SourcesError> {
    run_in(plan, &plan.project, arguments)
}

/// Runs git in a directory of the checkout.
pub fn run_in(plan: &SourcesPlan, directory: &Path, arguments: &[&str]) -> Result<(), SourcesError> {
    match code(command(plan, directory, arguments).status()?) {
        0 => Ok(()),
        code => Err(SourcesError::Git(code)),
    }
}

/// The exit status as a shell reports it: 128 plus the number of a signal.
pub fn code(status: ExitStatus) -> i32 {
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// Whether git's messages are also written to the job's log at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    Yes,
    No,
}

/// The result of a git command.
pub struct GitOutcome {
    /// The exit status, as a shell reports it.
    pub code: i32,
    /// Whether a signal terminated git.
    pub was_killed: bool,
    /// The beginning of git's standard error, in the C locale.
    pub messages: String,
}

impl GitOutcome {
    pub fn is_ok(&self) -> bool {
        self.code == 0
    }
}

/// Runs git in a directory of the checkout and returns its messages, from which [`super::fault`] finds the cause.
pub fn run_with_messages(
    plan: &SourcesPlan,
    directory: &Path,
    arguments: &[&str],
    echo: Echo,
) -> io::Result<GitOutcome> {
    const MAX_MESSAGES_SIZE: usize = 64 << 10;
    let mut child = command(plan, directory, arguments).env("LC_ALL", "C").stderr(Stdio::piped()).spawn()?;
    let mut messages = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        let mut buffer = [0; 8 << 10];
        loop {
            let length = stderr.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            if echo == Echo::Yes {
                io::stderr().write_all(&buffer[..length])?;
            }
            let room = MAX_MESSAGES_SIZE.saturating_sub(messages.len());
            messages.extend_from_slice(&buffer[..length.min(room)]);
        }
    }
    let status = child.wait()?;
    let messages = String::from_utf8_lossy(&messages).into_owned();
    Ok(GitOutcome { code: code(status), was_killed: status.signal().is_some(), messages })
}

/// The paths of a list with a zero byte after each path.
pub fn paths(list: &[u8]) -> Vec<PathBuf> {
    let paths = list.split(|byte| *byte == 0).filter(|path| !path.is_empty());
    paths.map(|path| PathBuf::from(OsStr::from_bytes(path))).collect()
}

/// The repository of a directory of the checkout. Errors: the directory has none.
pub fn directory(plan: &SourcesPlan, directory: &Path) -> Result<PathBuf, SourcesError> {
    let output = command(plan, directory, &["rev-parse", "--absolute-git-dir"]).output()?;
    let path = output.stdout.strip_suffix(b"\n").filter(|path| !path.is_empty());
    path.map(|path| PathBuf::from(OsStr::from_bytes(path))).ok_or(SourcesError::Git(code(output.status)))
}

/// A git command for a directory of the checkout.
pub fn command(plan: &SourcesPlan, directory: &Path, arguments: &[&str]) -> Command {
    let program = find_git().unwrap_or_else(|| PathBuf::from("git"));
    let mut command = Command::new(program);
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
    if let Some(relay) = crate::http::relay_of_process() {
        // The relay uses the job's proxies. Git connects only to the relay.
        for name in PROXIES {
            command.env_remove(name);
        }
        command.env("ALL_PROXY", format!("socks5h://{relay}"));
    }
    command
}
