//! The tools of system tests: a fake GitLab, repositories, jobs, and the real program.

pub mod aws_proxy;
pub mod cloud;
pub mod crash_point;
#[allow(dead_code, reason = "tests of images and services use the rest")]
pub mod docker;
pub mod engine_proxy;
pub mod fleet;
pub mod git;
pub mod gitlab;
pub mod http;
pub mod imds;
pub mod job;
pub mod keys;
pub mod light_agent;
pub mod machine;
pub mod mayfly;
pub mod moto;
pub mod pki;
pub mod pool;
pub mod ports;
pub mod proxy;
pub mod recording_proxy;
pub mod registry;
pub mod s3;
pub mod scenario;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The time limit for waits; most take milliseconds on an idle machine.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// Waits until a condition holds. Tests wait with this function instead of sleeping for a fixed time.
pub fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    wait_or_explain(holds, || what.to_owned());
}

/// As [`wait_until`]; `explain` is called for the message of a failure.
pub fn wait_or_explain(holds: impl FnMut() -> bool, explain: impl Fn() -> String) {
    assert!(holds_within(TIMEOUT, holds), "timed out waiting for {}", explain());
}

/// Waits until a condition holds, for this time at most. Returns whether it holds.
pub fn holds_within(timeout: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + timeout;
    while !holds() {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Sends a signal to a running process.
pub fn send_signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap_or_else(|error| panic!("cannot send {signal} to process {pid}: {error}"));
}

/// Kills a process. Returns whether it still existed.
pub fn kill_process(pid: i32) -> bool {
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) => true,
        Err(Errno::ESRCH) => false,
        Err(error) => panic!("cannot kill process {pid}: {error}"),
    }
}

/// The standard output of a command, followed by its standard error.
pub fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The path of a program that `tests/setup.sh` installs.
pub fn installed(name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache"));
    cache.join("mayfly-tests").join(name)
}

/// A number that is unique on this machine, also among concurrent test runs; processes are found by it.
pub fn unique_number() -> i64 {
    static NEXT: AtomicI64 = AtomicI64::new(0);
    i64::from(std::process::id()) * 10_000 + NEXT.fetch_add(1, Ordering::SeqCst)
}

/// Writes an executable script. A child process writes it: if this process did, a concurrent fork of another test could
/// hold the file open for writing, and executing it would fail with ETXTBSY.
pub fn write_program(path: &Path, text: &str) {
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped());
    let mut child = install.spawn().expect("start the installation");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("write to the pipe");
    assert!(child.wait().expect("must end").success());
}
