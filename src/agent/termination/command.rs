//! Runs the operator's commands (`leave_command`, `poweroff_command`, readiness commands).

use std::io;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::journal::shutdown::ShutdownReason;
use crate::timed_child;

/// Runs a command of the shutdown with the reason in its environment. Errors: as for [`run_line`].
pub fn run(line: &str, reason: ShutdownReason, timeout: Duration) -> Result<(), String> {
    run_line(line, &[("MAYFLY_LEAVE_REASON", reason.as_str())], timeout)
}

/// Runs a line in a shell with these variables besides the agent's environment, at most for `timeout`. Its output goes
/// to the agent's log. Errors: why the command did not succeed.
pub fn run_line(line: &str, variables: &[(&str, &str)], timeout: Duration) -> Result<(), String> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line]).envs(variables.iter().copied()).stdin(Stdio::null()).stdout(io::stderr());
    let mut child = timed_child::spawn(&mut command)?;
    let status = timed_child::wait(&mut child, timeout)?;
    if status.success() { Ok(()) } else { Err(describe_status(status)) }
}

fn describe_status(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with status {code}"),
        (None, signal) => format!("it was killed by signal {}", signal.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_command_succeeds() {
        assert_eq!(run("test \"$MAYFLY_LEAVE_REASON\" = idle_timeout", ShutdownReason::Idle, LONG), Ok(()));
    }

    #[test]
    fn a_failed_command_reports_its_status() {
        assert_eq!(run("exit 3", ShutdownReason::Idle, LONG), Err("it ended with status 3".to_owned()));
        assert_eq!(run("kill -9 $$", ShutdownReason::Idle, LONG), Err("it was killed by signal 9".to_owned()));
    }

    #[test]
    fn a_timeout_kills_the_command_and_its_children() {
        let directory = tempfile::tempdir().expect("a directory");
        let mark = directory.path().join("pid");
        let line = format!("sleep 600 & echo $! >{}; wait", mark.display());
        assert_eq!(
            run(&line, ShutdownReason::Idle, Duration::from_secs(1)),
            Err("it did not end within 1 s".to_owned())
        );
        let pid: i32 = std::fs::read_to_string(mark).expect("read the file").trim().parse().expect("a pid");
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z")).then_some(())
        };
        let end = crate::sync::try_until(LONG, Duration::from_millis(10), gone);
        assert!(end.is_some(), "the command's child must be killed");
    }
}
