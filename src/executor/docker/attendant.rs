//! Who attends to a job while its containers are prepared.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::job::failure::JobError;

/// Says things in the job's log, and knows when the job is over.
pub trait Attendant: Sync {
    /// A plain line.
    fn line(&self, text: &str);

    /// A line that warns.
    fn warning(&self, text: &str);

    /// Takes lines of services, from any thread, for as long as it is kept.
    fn service_log(&self) -> Box<dyn FnMut(&str) + Send>;

    /// Waits until `ready` can be read (true), or `patience` is over (false). Errors: the job is to stop.
    fn wait(&self, ready: Option<BorrowedFd<'_>>, patience: Duration) -> Result<bool, JobError>;
}
