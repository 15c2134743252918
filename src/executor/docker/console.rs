//! The console of a job while its containers are prepared.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::failure::JobError;
use crate::sys;
use crate::trace::colours::{RESET, YELLOW};

/// The job's log, and the signal that the job must stop.
pub trait JobConsole: Sync {
    /// Writes a plain line.
    fn line(&self, text: &str);

    /// Writes a warning.
    fn warning(&self, text: &str);

    /// Waits until `ready` is readable (returns true) or `timeout` has passed (false). Fails if the job must stop.
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
        let [is_ready] =
            sys::wait([ready], Some(timeout)).map_err(|error| JobError::system(format!("cannot wait: {error}")))?;
        Ok(is_ready)
    }
}
