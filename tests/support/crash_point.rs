//! Ends a program under test with SIGKILL at a certain system call, so that a crash comes at the same step in each run.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;

/// The environment of a program that dies at a step. Each line of `conditions` is `before|after CALL FILE TEXT`:
/// `after write /manager/state "event":"job"`. The last condition that comes true, in this order, is the end.
pub fn at(conditions: &str) -> [(&'static str, String); 2] {
    [("LD_PRELOAD", library().display().to_string()), ("CRASH_AT", conditions.to_owned())]
}

/// Asserts that a program died at its step.
pub fn assert_killed(status: ExitStatus, log: &str) {
    assert_eq!(status.signal(), Some(9), "{status}\n{log}");
}

/// The library that is preloaded; compiled once per test run.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        // Renamed when complete: a concurrent run has either the old one or the new one.
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let made = tempfile::tempdir_in(directory).expect("a directory");
        let draft = made.path().join("crash_point.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/crash_point.c");
        let output = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&draft).arg(source).output();
        let output = output.expect("run cc");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let kept = directory.join("crash_point.so");
        fs::rename(draft, &kept).expect("rename the file");
        kept
    })
}
