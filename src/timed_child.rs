//! Child processes that must end within a time.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::sync;
use crate::sys;

/// The maximum number of bytes of each stream that [`output`] returns.
const MAX_OUTPUT: usize = 4096;
/// The time limit for a program to end after SIGKILL. The agent cannot kill a program of another user unless it is
/// root, and a process that waits for a broken device does not end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of checks for the end of a killed program.
const KILL_CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Bytes read from a pipe at a time: a full pipe.
const READ_SIZE: usize = 64 * 1024;

/// How a program ended, and the beginning of its output.
#[derive(Debug)]
pub struct TimedOutput {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program, which gets its own process group. The program and the group are killed when the program ends or
/// `timeout` has passed. Errors: the program cannot be started, or did not end in time.
pub fn output(command: &mut Command, timeout: Duration) -> Result<TimedOutput, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command)?;
    let mut streams = [
        OutputStream::new(child.stdout.take().map(OwnedFd::from)),
        OutputStream::new(child.stderr.take().map(OwnedFd::from)),
    ];
    let ended = read_until_end(&child, &mut streams, timeout);
    let status = kill_and_reap(&mut child, ended, timeout)?;
    let [stdout, stderr] = streams.map(|stream| String::from_utf8_lossy(&stream.text).into_owned());
    Ok(TimedOutput { status, stdout, stderr })
}

/// A stream of a program's output.
struct OutputStream {
    /// The pipe; `None` once it is closed.
    pipe: Option<File>,
    /// The first [`MAX_OUTPUT`] bytes.
    text: Vec<u8>,
}

impl OutputStream {
    fn new(pipe: Option<OwnedFd>) -> Self {
        if let Some(pipe) = &pipe {
            // This call cannot fail for an open pipe.
            let _ = fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        }
        Self { pipe: pipe.map(File::from), text: Vec::new() }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Reads the bytes that are in the pipe, at most [`READ_SIZE`], and drops those after the first [`MAX_OUTPUT`]: a
    /// program whose pipe is full would not end.
    fn read_available(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut block = vec![0; READ_SIZE];
        match pipe.read(&mut block) {
            Ok(length @ 1..) => {
                let kept = length.min(MAX_OUTPUT - self.text.len());
                self.text.extend_from_slice(&block[..kept]);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Ok(0) | Err(_) => self.pipe = None,
        }
    }
}

/// Reads the streams until the program ends, for at most `timeout`. Returns whether the program has ended. The end of
/// the streams does not count, because a process that has left the program's group may keep the pipes open.
fn read_until_end(child: &Child, streams: &mut [OutputStream; 2], timeout: Duration) -> io::Result<bool> {
    let pidfd = sys::pidfd_open(child.id().cast_signed())?;
    let until = Instant::now() + timeout;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let [ended, stdout, stderr] = sys::wait([Some(pidfd.as_fd()), streams[0].fd(), streams[1].fd()], Some(left))?;
        // The output that is in the pipes is read before the function returns.
        for (stream, _) in streams.iter_mut().zip([stdout, stderr]).filter(|(_, is_ready)| *is_ready) {
            stream.read_available();
        }
        if ended || left.is_zero() {
            return Ok(ended);
        }
    }
}

/// Starts a program in its own process group. Errors: why it cannot be started.
pub fn spawn(command: &mut Command) -> Result<Child, String> {
    command.process_group(0).spawn().map_err(|error| format!("it cannot be started: {error}"))
}

/// Waits for a program. If the program ends within `timeout`, other processes of its group keep running; otherwise the
/// program and its group are killed. Errors: the program did not end in time.
pub fn wait(child: &mut Child, timeout: Duration) -> Result<ExitStatus, String> {
    match has_ended(child, timeout) {
        Ok(true) => child.wait().map_err(cannot_wait),
        ended => kill_and_reap(child, ended, timeout),
    }
}

/// As [`wait`], and always kills the process group.
pub fn wait_for_group(child: &mut Child, timeout: Duration) -> Result<ExitStatus, String> {
    let ended = has_ended(child, timeout);
    kill_and_reap(child, ended, timeout)
}

/// Waits until the program ends, for at most `timeout`. Returns whether it has ended.
fn has_ended(child: &Child, timeout: Duration) -> io::Result<bool> {
    let pidfd = sys::pidfd_open(child.id().cast_signed())?;
    let [ended] = sys::wait([Some(pidfd.as_fd())], Some(timeout))?;
    Ok(ended)
}

/// Kills a program and its process group, and reads the status. `ended` is whether the program has ended by itself. Does
/// not wait for a program that cannot be killed.
fn kill_and_reap(child: &mut Child, ended: io::Result<bool>, timeout: Duration) -> Result<ExitStatus, String> {
    // The group may have ended already. Until the status is read, no other group can have the same number.
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    // The program may have moved to another group.
    let _ = child.kill();
    let killed = sync::try_until(KILL_TIMEOUT, KILL_CHECK_INTERVAL, || child.try_wait().transpose());
    let Some(status) = killed else {
        return Err(format!("it did not end within {} s, and it cannot be killed", timeout.as_secs_f64()));
    };
    match ended {
        Ok(true) => status.map_err(cannot_wait),
        Ok(false) => Err(format!("it did not end within {} s", timeout.as_secs_f64())),
        Err(error) => Err(cannot_wait(error)),
    }
}

fn cannot_wait(error: io::Error) -> String {
    format!("cannot wait for it: {error}")
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
    fn a_background_process_of_the_group_is_killed_and_does_not_delay_the_result() {
        assert_eq!(shell("sleep 600 & echo out", LONG).expect("the shell ends").stdout, "out\n");
    }

    #[test]
    fn a_process_in_another_session_that_keeps_the_pipes_open_does_not_delay_the_result() {
        let directory = tempfile::tempdir().expect("a directory");
        let script = format!(
            "cd {} && mkfifo started && {{ setsid sh -c 'echo $$ >started; exec sleep 600' & cat started; }}",
            directory.path().display()
        );
        let printed = shell(&script, LONG).expect("the shell ends").stdout;
        let detached = printed.trim().parse().expect("the pid of the process in another session");
        nix::sys::signal::kill(Pid::from_raw(detached), Signal::SIGKILL).expect("the process must still run");
    }

    #[test]
    fn a_program_with_more_output_than_a_pipe_holds_ends_and_its_first_bytes_are_kept() {
        let script = "head -c 1000000 /dev/zero | tr '\\0' x; head -c 1000000 /dev/zero | tr '\\0' y >&2; exit 4";
        let output = shell(script, LONG).expect("the shell ends");
        assert_eq!(output.status.code(), Some(4));
        assert_eq!((output.stdout, output.stderr), ("x".repeat(MAX_OUTPUT), "y".repeat(MAX_OUTPUT)));
    }

    #[test]
    fn a_program_that_does_not_end_in_time_is_killed() {
        for script in ["sleep 600", "exec >/dev/null 2>&1; sleep 600", "yes"] {
            let error = shell(script, Duration::from_millis(10)).expect_err("it must be killed");
            assert_eq!(error, "it did not end within 0.01 s", "{script}");
        }
        let error = output(&mut Command::new("/nonexistent"), LONG).expect_err("it cannot be started");
        assert!(error.starts_with("it cannot be started: "), "{error}");
    }

    #[test]
    fn a_program_in_another_group_is_killed() {
        let sleep = |group: i32| Command::new("sleep").arg("600").process_group(group).spawn().expect("start sleep");
        let mut leader = sleep(0);
        let mut member = sleep(leader.id().cast_signed());
        let short = Duration::from_millis(10);
        assert_eq!(wait(&mut member, short), Err("it did not end within 0.01 s".to_owned()));
        assert_eq!(leader.try_wait().expect("the state of the leader"), None, "only the program's own group is killed");
        let group_error = wait_for_group(&mut leader, short).expect_err("it must be killed");
        assert_eq!(group_error, "it did not end within 0.01 s");
    }
}
