//! Retries of requests to the engine, and requests that SIGTERM must not interrupt.

use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use super::engine::spec::CreateContainer;
use super::engine::{DockerEngine, DockerError};

/// The maximum number of attempts, as gitlab-runner makes for a preparation.
const ATTEMPTS: u32 = 3;
/// The delay between two attempts.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(3);

/// Retries while `is_worth_it` accepts the error. Calls `tell` for each of these errors.
pub fn retry<T>(
    work: impl Fn() -> Result<T, DockerError>,
    is_worth_it: impl Fn(&DockerError) -> bool,
    tell: impl Fn(&DockerError),
) -> Result<T, DockerError> {
    for _ in 1..ATTEMPTS {
        match work() {
            Err(error) if is_worth_it(&error) => {
                tell(&error);
                std::thread::sleep(RETRY_INTERVAL);
            }
            outcome => return outcome,
        }
    }
    work()
}

/// Retries a request while the engine's disk is full: the engine may still be removing the containers of the previous
/// job.
pub fn retry_when_disk_full<T>(work: impl Fn() -> Result<T, DockerError>) -> Result<T, DockerError> {
    retry(work, DockerError::is_disk_full, |_| {})
}

/// Creates a container and removes one that an earlier attempt left. If that attempt was killed, the engine may still
/// be creating its container, so a name conflict is retried. Returns the id of the container, and warnings.
pub fn create_anew(
    engine: &DockerEngine,
    name: &str,
    platform: Option<&str>,
    request: &CreateContainer,
    keep_volumes: bool,
) -> Result<(String, Vec<String>), DockerError> {
    let create = || {
        engine.remove_container(name, keep_volumes)?;
        with_sigterm_delayed(|| engine.create_container(name, platform, request))
    };
    retry(create, |error| error.is_disk_full() || error.is_conflict(), |_| {})
}

/// Delays SIGTERM to this thread until the engine has responded. If SIGTERM ended the process during the request, the
/// engine could create the object after the agent has listed the job's objects to remove, and the object would stay.
pub fn with_sigterm_delayed<T>(request: impl FnOnce() -> T) -> T {
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTERM);
    // This call fails only for an invalid operation.
    let before = stop.thread_swap_mask(SigmaskHow::SIG_BLOCK).unwrap_or_else(|_| SigSet::empty());
    let answer = request();
    let _ = before.thread_set_mask();
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_waits_for_the_answer_of_the_engine() {
        let is_held = || SigSet::thread_get_mask().expect("the signal mask").contains(Signal::SIGTERM);
        assert_eq!((with_sigterm_delayed(is_held), is_held()), (true, false));
    }
}
