//! What makes tests read as given, when, then: a GitLab, repositories, jobs, and the real program.

pub mod between;
pub mod cloud;
#[allow(dead_code, reason = "tests of images and services use the rest")]
pub mod docker;
pub mod git;
pub mod gitlab;
pub mod http;
pub mod imds;
pub mod job;
pub mod machine;
pub mod mayfly;
pub mod moto;
pub mod pki;
pub mod proxy;
pub mod registry;
pub mod s3;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};

/// Where `tests/setup.sh` puts what no package of the system has.
pub fn installed(name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache"));
    cache.join("mayfly-tests").join(name)
}

/// A number that nothing else on this machine has: processes are found by it, also with other test runs beside this one.
pub fn unique_number() -> i64 {
    static NEXT: AtomicI64 = AtomicI64::new(0);
    i64::from(std::process::id()) * 10_000 + NEXT.fetch_add(1, Ordering::SeqCst)
}

/// Writes a script that can be started. Another process writes it: a fork of some other test would hold it open for
/// writing, and what is open for writing cannot be started.
pub fn write_program(path: &Path, text: &str) {
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped());
    let mut child = install.spawn().expect("install");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("written");
    assert!(child.wait().expect("ended").success());
}
