//! The console of a job while its containers are prepared.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::failure::JobError;
use crate::trace::colours::{RESET, YELLOW};

/// Writes to the job's log, and knows when the job must stop.
pub trait JobConsole: Sync {
    /// Writes a plain line.
    fn line(&self, text: &str);

    /// Writes a warning.
    fn warning(&self, text: &str);

    /// Waits until `ready` is readable (true) or `timeout` is over (false). Fails if the job must stop.
    fn wait(&self, ready: Option<BorrowedFd<'_>>, timeout: Duration) -> Result<bool, JobError>;
}

/// The console of a separate process that prepares containers: its output is the job's log, and the shim kills it when
/// the job must stop.
pub struct StdoutConsole;

impl JobConsole for StdoutConsole {
    fn line(&self, text: &str) {
        println!("{text}");
    }

    fn warning(&self, text: &str) {
        println!("{YELLOW}WARNING: {text}{RESET}");
    }

    fn wait(&self, ready: Option<BorrowedFd<'_>>, timeout: Duration) -> Result<bool, JobError> {
        let until = Instant::now() + timeout;
        let mut polled: Vec<PollFd<'_>> = ready.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // `poll` counts whole milliseconds, so the timeout is rounded up.
            let poll_timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut polled, poll_timeout) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(JobError::system(format!("cannot wait: {}", error.desc()))),
            }
        }
    }
}
