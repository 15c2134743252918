//! Lists the files of a project that git does not track.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::{Command, Stdio};
use std::thread;

use super::root::ArchiveRoot;

/// The maximum length of a path (PATH_MAX).
const MAX_PATH_BYTES: u64 = 4096;
/// The part of git's error output that is kept.
const MAX_ERROR_OUTPUT_BYTES: u64 = 64 << 10;

/// Calls `take` for each untracked file, including ignored ones. A job may have written the repository's configuration,
/// so git runs with all settings disabled that execute programs or fetch objects, and without system and user
/// configuration.
pub fn for_each(root: &ArchiveRoot, mut take: impl FnMut(OsString)) -> Result<(), String> {
    let mut git = Command::new("git");
    std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"GIT_")).for_each(|(name, _)| {
        git.env_remove(name);
    });
    git.args(["-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"])
        .args(["ls-files", "-o", "-z"])
        .current_dir(root.descriptor_path())
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_NO_LAZY_FETCH", "1")
        .env("GIT_ALLOW_PROTOCOL", "none")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let unavailable = |why: io::Error| format!("git cannot be started: {why}");
    let mut git = git.spawn().map_err(unavailable)?;
    let (stdout, stderr) = (git.stdout.take(), git.stderr.take());
    let printed = thread::scope(|scope| {
        let listener = scope.spawn(move || {
            let mut printed = Vec::new();
            if let Some(mut stderr) = stderr {
                let _ = (&mut stderr).take(MAX_ERROR_OUTPUT_BYTES).read_to_end(&mut printed);
                // Drain the rest, or git would block on a full pipe.
                let _ = io::copy(&mut stderr, &mut io::sink());
            }
            printed
        });
        let mut names = stdout.map(BufReader::new);
        while let Some(name) = names.as_mut().and_then(next_name) {
            take(name);
        }
        drop(names);
        listener.join().unwrap_or_default()
    });
    match git.wait().map_err(unavailable)?.success() {
        true => Ok(()),
        false => {
            let printed = String::from_utf8_lossy(&printed);
            Err(format!("git ls-files failed: {}", printed.trim().lines().next().unwrap_or("no reason given")))
        }
    }
}

/// The next of the zero-terminated names from git; `None` at the end, or for a name longer than the limit.
fn next_name(names: &mut impl BufRead) -> Option<OsString> {
    let mut name = Vec::new();
    names.take(MAX_PATH_BYTES).read_until(0, &mut name).ok()?;
    (name.pop() == Some(0)).then(|| OsString::from_vec(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_the_length_of_names_from_git() {
        let long = "x".repeat(5000);
        let mut text = long.as_bytes();
        assert_eq!(next_name(&mut text), None);
        let mut text = &b"a\0b"[..];
        assert_eq!((next_name(&mut text), next_name(&mut text)), (Some("a".into()), None));
    }
}
