//! Child processes that must end within a time.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::sys;

/// The number of bytes of each stream that [`output`] returns.
const OUTPUT_MAX: u64 = 4096;

/// How a program ended, and the beginning of what it wrote.
#[derive(Debug)]
pub struct TimedOutput {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program, which gets its own process group. The group is killed when the program ends or `timeout` has passed.
/// Errors: the program cannot be started, or did not end in time.
pub fn output(command: &mut Command, timeout: Duration) -> Result<TimedOutput, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command)?;
    let ended = has_ended(&child, timeout);
    // Other processes of the group may keep the pipes open, and the reads below would then block. Until the status is
    // read, no other group can have the same number.
    kill_group(&child);
    let status = status(&mut child, ended, timeout)?;
    let stdout = beginning(child.stdout.take()).map_err(|error| error.to_string())?;
    let stderr = beginning(child.stderr.take()).map_err(|error| error.to_string())?;
    Ok(TimedOutput { status, stdout, stderr })
}

/// Starts a program in its own process group. Errors: why it cannot be started.
pub fn spawn(command: &mut Command) -> Result<Child, String> {
    command.process_group(0).spawn().map_err(|error| format!("it cannot be started: {error}"))
}

/// Waits for a program of [`spawn`], and kills its process group after `timeout`. Errors: it did not end in time.
pub fn wait(child: &mut Child, timeout: Duration) -> Result<ExitStatus, String> {
    let ended = has_ended(child, timeout);
    if !matches!(ended, Ok(true)) {
        kill_group(child);
    }
    status(child, ended, timeout)
}

/// Waits until the program ends, for at most `timeout`. Returns whether it has ended.
fn has_ended(child: &Child, timeout: Duration) -> io::Result<bool> {
    let pidfd = sys::pidfd_open(child.id().cast_signed())?;
    let [ended] = sys::wait([Some(pidfd.as_fd())], Some(timeout))?;
    Ok(ended)
}

/// Reads the status of a program that has ended or was killed.
fn status(child: &mut Child, ended: io::Result<bool>, timeout: Duration) -> Result<ExitStatus, String> {
    let status = child.wait();
    match ended {
        Ok(true) => status.map_err(|error| format!("cannot wait for it: {error}")),
        Ok(false) => Err(format!("it did not end within {} s", timeout.as_secs())),
        Err(error) => Err(format!("cannot wait for it: {error}")),
    }
}

fn kill_group(child: &Child) {
    // The group may have ended already.
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
}

fn beginning(stream: Option<impl Read>) -> io::Result<String> {
    let mut text = Vec::new();
    stream.map_or(Ok(0), |stream| stream.take(OUTPUT_MAX).read_to_end(&mut text))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(line: &str, timeout: Duration) -> Result<TimedOutput, String> {
        output(Command::new("/bin/sh").args(["-c", line]), timeout)
    }

    #[test]
    fn returns_the_status_and_both_streams() {
        let output = shell("echo out; echo error >&2; exit 3", LONG).expect("the shell ends");
        assert_eq!((output.status.code(), &*output.stdout, &*output.stderr), (Some(3), "out\n", "error\n"));
    }

    #[test]
    fn a_process_that_keeps_the_pipes_open_does_not_delay_the_result() {
        assert_eq!(shell("sleep 600 & echo out", LONG).expect("the shell ends").stdout, "out\n");
    }

    #[test]
    fn a_program_that_does_not_end_in_time_is_killed() {
        let error = shell("sleep 600", Duration::from_millis(10)).expect_err("it must be killed");
        assert_eq!(error, "it did not end within 0 s");
        let error = output(&mut Command::new("/nonexistent"), LONG).expect_err("it cannot be started");
        assert!(error.starts_with("it cannot be started: "), "{error}");
    }
}
