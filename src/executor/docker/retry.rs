//! Retries of requests to the engine, and requests that SIGTERM must not interrupt.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use super::engine::containers::AnonymousVolumes;
use super::engine::spec::CreateContainer;
use super::engine::{DockerEngine, DockerError};
use crate::sys;

/// The maximum number of attempts, as gitlab-runner makes for a preparation.
const MAX_ATTEMPTS: u32 = 3;
/// The delay between two attempts.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(3);

/// How this process learns that the job must stop.
#[derive(Clone, Copy)]
pub enum StopRequest<'a> {
    /// SIGTERM ends this process.
    EndsProcess,
    /// This descriptor becomes readable.
    Readable(BorrowedFd<'a>),
}

impl StopRequest<'_> {
    /// Waits for `timeout`. Returns true at once if the job must stop.
    pub fn arrives_within(self, timeout: Duration) -> bool {
        let fd = match self {
            Self::EndsProcess => None,
            Self::Readable(fd) => Some(fd),
        };
        // An error counts as a stop: another attempt would follow without a delay.
        !matches!(sys::wait([fd], Some(timeout)), Ok([false]))
    }
}

/// Retries while `is_retryable` accepts the error, and the job need not stop. Calls `report` before each retry.
pub fn retry<T>(
    stop: StopRequest<'_>,
    work: impl Fn() -> Result<T, DockerError>,
    is_retryable: impl Fn(&DockerError) -> bool,
    report: impl Fn(&DockerError),
) -> Result<T, DockerError> {
    for _ in 1..MAX_ATTEMPTS {
        let outcome = work();
        match &outcome {
            Err(error) if is_retryable(error) => report(error),
            _ => return outcome,
        }
        if stop.arrives_within(RETRY_INTERVAL) {
            return outcome;
        }
    }
    work()
}

/// Retries a request while the engine's disk is full: the engine may still be removing the containers of the previous
/// job.
pub fn retry_when_disk_full<T>(
    stop: StopRequest<'_>,
    work: impl Fn() -> Result<T, DockerError>,
) -> Result<T, DockerError> {
    retry(stop, work, DockerError::is_disk_full, |_| {})
}

/// A container to create in place of one with the same name.
pub struct ContainerToCreate<'a> {
    pub name: &'a str,
    /// `os/architecture[/variant]`, if it is not the machine's.
    pub platform: Option<&'a str>,
    pub request: &'a CreateContainer,
    /// The anonymous volumes of a container that an earlier attempt left.
    pub old_volumes: AnonymousVolumes,
}

impl ContainerToCreate<'_> {
    /// Creates the container and removes one that an earlier attempt left. If that attempt was killed, the engine may
    /// still be creating its container, so a name conflict is retried. Returns the id of the container, and warnings.
    pub fn create(&self, engine: &DockerEngine, stop: StopRequest<'_>) -> Result<(String, Vec<String>), DockerError> {
        let create = || {
            engine.remove_container(self.name, self.old_volumes)?;
            with_sigterm_delayed(|| engine.create_container(self.name, self.platform, self.request))
        };
        retry(stop, create, |error| error.is_disk_full() || error.is_conflict(), |_| {})
    }
}

/// Delays SIGTERM to this thread until the engine has responded. If SIGTERM ended the process during the request, the
/// engine could create the object after the agent has listed the job's objects to remove, and the object would stay.
pub fn with_sigterm_delayed<T>(request: impl FnOnce() -> T) -> T {
    let stop = SigSet::from(Signal::SIGTERM);
    // This call fails only for an invalid operation.
    let before = stop.thread_swap_mask(SigmaskHow::SIG_BLOCK).unwrap_or_else(|_| SigSet::empty());
    let response = request();
    let _ = before.thread_set_mask();
    response
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_stop_waits_for_the_answer_of_the_engine() {
        let is_held = || SigSet::thread_get_mask().expect("the signal mask").contains(Signal::SIGTERM);
        assert_eq!((with_sigterm_delayed(is_held), is_held()), (true, false));
    }

    #[test]
    fn a_job_that_must_stop_gets_no_second_attempt() {
        let (stop, mut sender) = std::io::pipe().expect("a pipe");
        sender.write_all(b"x").expect("request the stop");
        let attempts = Cell::new(0);
        let work = || {
            attempts.set(attempts.get() + 1);
            Err::<(), _>(DockerError::NotRunning { address: String::new() })
        };
        let outcome = retry(StopRequest::Readable(stop.as_fd()), work, |_| true, |_| {});
        assert!(outcome.is_err());
        assert_eq!(attempts.get(), 1);
    }
}
