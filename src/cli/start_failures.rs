//! Back-off for a service whose start fails repeatedly.
//!
//! systemd restarts the agent after each failure; versions before 254 do so at a fixed interval, and each start would
//! write the same error to the journal. So a failed start under systemd waits before it exits, longer each time, and
//! does not repeat an error that was written within the last minute.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::decode;
use crate::sys::{self, BootTime};

/// The delays after failures in a row.
const DELAYS: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// The same error is written at most once in this time.
const REPEAT_AFTER: Duration = Duration::from_secs(60);
/// A failure this long after the last one begins a new series: the service ran in between.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// Records the failed starts of a service in its runtime directory.
pub struct StartFailures {
    record: PathBuf,
}

/// The recorded failures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The number of failures in a row.
    count: u32,
    /// The time of the first one.
    first_at: BootTime,
    /// The time of the last one. The runtime directory does not survive a reboot.
    failed_at: BootTime,
    /// When the error was last written.
    written_at: BootTime,
    error: String,
}

impl StartFailures {
    /// The record of this service; `None` if systemd did not start this process as a service. Must be called before the
    /// agent removes systemd's variables from the environment.
    pub fn detect_service() -> Option<Self> {
        std::env::var_os("NOTIFY_SOCKET")?;
        // The value may list several directories, separated by colons; the first one is the agent's.
        let directories = std::env::var("RUNTIME_DIRECTORY").ok()?;
        let directory = directories.split(':').next().filter(|directory| !directory.is_empty())?;
        Some(Self { record: Path::new(directory).join("start-failures") })
    }

    /// Writes the error unless it was written within a minute, then delays the exit. A termination signal ends the
    /// delay. If starts have failed for `give_up_after`, powers the machine off.
    pub fn fail(&self, error: &str, give_up_after: Option<Duration>) {
        let before = fs::read(&self.record).ok().and_then(|text| decode::json(&text).ok()).unwrap_or_default();
        let CountedFailure { record, is_error_due, delay } = count_failure(&before, error, BootTime::now());
        if is_error_due {
            let attempts = if record.count > 1 { format!(" failed_starts={}", record.count) } else { String::new() };
            eprintln!("mayfly: {error}{attempts}");
        }
        if let Ok(text) = serde_json::to_vec(&record) {
            // Without a record, every delay is that of the first failure.
            let _ = fs::write(&self.record, text);
        }
        // The agent may have installed handlers that wait for a main loop.
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
            let _ = sys::default_action(signal);
        }
        sys::unblock(SigSet::all());
        let failing_for = record.failed_at.since(record.first_at);
        if give_up_after.is_some_and(|after| failing_for >= after) {
            power_off(failing_for);
        }
        // Signals have their default action, so a stop ends this wait with the process.
        thread::sleep(delay);
    }
}

fn power_off(failing_for: Duration) {
    eprintln!("mayfly: starts have failed for {} seconds; powering the machine off", failing_for.as_secs());
    match Command::new("systemctl").arg("poweroff").status() {
        Ok(status) if status.success() => {}
        Ok(status) => eprintln!("mayfly: `systemctl poweroff` failed: {status}; power the machine off by hand"),
        Err(error) => {
            eprintln!("mayfly: `systemctl poweroff` cannot be started: {error}; power the machine off by hand")
        }
    }
}

/// What to do about a failed start.
struct CountedFailure {
    /// The record with this failure.
    record: Record,
    /// Whether to print the error; the same error is printed at most once in [`REPEAT_AFTER`].
    is_error_due: bool,
    /// The delay before the exit.
    delay: Duration,
}

fn count_failure(before: &Record, error: &str, now: BootTime) -> CountedFailure {
    let since = |at: BootTime| now.since(at);
    let is_same_series = before.count > 0 && since(before.failed_at) < FORGET_AFTER;
    let is_error_due = !is_same_series || before.error != error || since(before.written_at) >= REPEAT_AFTER;
    let count = if is_same_series { before.count.saturating_add(1) } else { 1 };
    let written_at = if is_error_due { now } else { before.written_at };
    let first_at = if is_same_series { before.first_at } else { now };
    let record = Record { count, first_at, failed_at: now, written_at, error: error.to_owned() };
    CountedFailure { record, is_error_due, delay: DELAYS.delay(count - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn delays_grow_and_the_same_error_is_written_once_a_minute() {
        let (mut record, mut now, mut written, mut delays) = (Record::default(), at(5), Vec::new(), Vec::new());
        for _ in 0..10 {
            let failure = count_failure(&record, "no such user", now);
            if failure.is_error_due {
                written.push(now.since(at(0)).as_secs());
            }
            delays.push(failure.delay.as_secs());
            record = failure.record;
            now = now + failure.delay;
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert!(written.windows(2).all(|pair| pair[1] - pair[0] >= 60), "{written:?}");
        assert_eq!(written.len(), 5);
    }

    #[test]
    fn another_error_is_written_at_once_and_old_failures_are_forgotten() {
        let first = count_failure(&Record::default(), "a", at(1));
        let other = count_failure(&first.record, "b", at(2));
        assert!(other.is_error_due && other.record.count == 2);
        let later = count_failure(&other.record, "b", at(700));
        assert!(later.is_error_due && later.record.count == 1 && later.delay == DELAYS.delay(0));
    }
}
