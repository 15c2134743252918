//! Unregisters the runner managers of this machine, because GitLab would list them as offline otherwise. An outage of
//! GitLab must not delay the termination of the instance beyond the timeout.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::agent::server::RunnerServer;
use crate::config::Runner;
use crate::coordinator::gitlab::ApiError;
use crate::coordinator::source::JobSource;
use crate::sync;

/// Timeout for all runner managers together.
pub const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A runner manager: one runner on this machine.
#[derive(Clone)]
pub struct RunnerManager {
    pub runner: Arc<Runner>,
    pub server: Arc<RunnerServer>,
    /// The system id of this machine.
    pub system_id: String,
}

/// Unregisters all runner managers in parallel, within [`UNREGISTER_TIMEOUT`].
pub fn unregister(runner_managers: &[RunnerManager]) {
    let until = Instant::now() + UNREGISTER_TIMEOUT;
    let (ended, ends) = mpsc::channel();
    for manager in runner_managers {
        let (manager, ended) = (manager.clone(), ended.clone());
        let name = format!("unreg-{}", manager.runner.token.short());
        let spawned = sync::spawn(name, crate::agent::STACK, move || {
            manager.unregister(until);
            // After the timeout the receiver has been dropped, and the send fails.
            let _ = ended.send(());
        });
        if let Err(error) = spawned {
            log::warn!("cannot start the thread that unregisters this machine error={error}");
        }
    }
    drop(ended);
    for _ in runner_managers {
        match ends.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(()) => {}
            // All threads have ended; one of them was not created or panicked.
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                log::warn!("GitLab did not answer in time; it removes the runner managers of this machine later");
                return;
            }
        }
    }
}

impl RunnerManager {
    fn unregister(&self, until: Instant) {
        let name = &self.runner.name;
        let mut last_error = None;
        let attempt = || match self.server.unregister(&self.runner.token, &self.system_id) {
            Ok(()) => {
                log::info!("unregistered this runner manager runner={name}");
                Some(())
            }
            // GitLab does not know this runner manager, so it needs no unregistration.
            Err(ApiError::Status(404, _) | ApiError::Refused(_)) => Some(()),
            Err(error) => {
                last_error = Some(error);
                None
            }
        };
        let timeout = until.saturating_duration_since(Instant::now());
        if sync::try_until(timeout, RETRY_INTERVAL, attempt).is_none()
            && let Some(error) = last_error
        {
            log::warn!("cannot unregister this runner manager; GitLab removes it later runner={name} error={error}");
        }
    }
}
