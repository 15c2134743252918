//! Tests the sandbox on this machine before a job depends on it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};

use super::{MissingProtections, confine, prepare};
use crate::shim::spec::{Limits, NetworkAccess, Sandbox};
use crate::sys;

/// The argument with which a shim runs the test: `mayfly shim --try-confinement DIRECTORY UID [PROGRAM [ARGUMENT…]]`.
pub const ARGUMENT: &str = "--try-confinement";

/// Tests the sandbox with a process that works in `directory` as `uid`, which must not be assigned to another user.
/// Fails if the sandbox cannot be set up; then container jobs would fail.
pub fn examine(directory: &Path, uid: u32) -> Result<MissingProtections, String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    if let Some(owner) = owner_of(uid, &read("/etc/passwd"), &read("/etc/subuid")) {
        return Err(format!("user {uid} is {owner}; set `confined_uid` below [runners.mayfly] to an unused user id"));
    }
    let mut command = Command::new("/proc/self/exe");
    command.args(["shim", ARGUMENT]).arg(directory).arg(uid.to_string()).stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("the sandbox cannot be tested: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        return Err(text(&output.stderr));
    }
    Ok(MissingProtections(text(&output.stdout).lines().map(str::to_owned).collect()))
}

/// The user or the range of subordinate ids that `uid` already belongs to.
fn owner_of(uid: u32, users: &str, subordinate: &str) -> Option<String> {
    let user = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| format!("`{name}` in /etc/passwd"))
    });
    let range = || {
        subordinate.lines().find_map(|line| {
            let mut fields = line.trim().split(':');
            let (name, first, count) = (fields.next()?, fields.next()?, fields.next()?);
            let (first, count) = (first.parse::<u32>().ok()?, count.parse::<u32>().ok()?);
            (first..first.saturating_add(count)).contains(&uid).then(|| format!("one of `{name}` in /etc/subuid"))
        })
    };
    user.or_else(range)
}

/// Runs the test in a single-threaded process, and prints each missing protection as a line. If a program is given, it
/// then runs in the sandbox, to examine the sandbox from inside.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let directory = arguments.next().unwrap_or_default();
    let uid = arguments.next().and_then(|uid| uid.to_str()?.parse().ok());
    let Some(uid) = uid.filter(|_| !directory.is_empty()) else { return ExitCode::from(2) };
    let sandbox = Sandbox {
        writable: vec![directory.into()],
        readable: Vec::new(),
        world_writable: false,
        uid,
        network: Some(NetworkAccess::default()),
        ambient_capabilities: false,
        limits: Limits::default(),
    };
    let program: Vec<OsString> = arguments.collect();
    match probe_sandbox(&sandbox, &program) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn probe_sandbox(sandbox: &Sandbox, program: &[OsString]) -> Result<bool, String> {
    let prepared = prepare(sandbox)?;
    let forked = sys::fork_single_threaded().map_err(|error| error.to_string())?;
    let Some(child) = forked else {
        let code = match confine(sandbox, prepared.as_ref()) {
            Ok(MissingProtections(missing)) => {
                missing.iter().for_each(|protection| println!("{protection}"));
                run(program)
            }
            Err(why) => {
                eprintln!("{why}");
                1
            }
        };
        sys::exit_now(code)
    };
    let ended = waitpid(child, None);
    if let Some(relay) = prepared.and_then(|prepared| prepared.relay) {
        let _ = kill(relay, Signal::SIGKILL);
        let _ = waitpid(relay, None);
    }
    Ok(matches!(ended, Ok(WaitStatus::Exited(_, 0))))
}

/// Replaces this process by the program, if there is one. Returns the exit status.
fn run(program: &[OsString]) -> i32 {
    let Some((name, arguments)) = program.split_first() else { return 0 };
    let error = Command::new(name).args(arguments).exec();
    eprintln!("cannot start {}: {error}", name.display());
    127
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_uid_in_use_is_rejected() {
        let (users, subordinate) = ("root:x:0:0::/:/bin/sh\nci:x:1001:1001::/:/bin/sh\n", "ci:100000:65536\nodd\n");
        assert_eq!(owner_of(1001, users, subordinate).as_deref(), Some("`ci` in /etc/passwd"));
        assert_eq!(owner_of(165_535, users, subordinate).as_deref(), Some("one of `ci` in /etc/subuid"));
        assert_eq!(owner_of(165_536, users, subordinate), None);
    }
}
