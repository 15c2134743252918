//! Taking the instance off its runners: GitLab is told that this runner manager is gone, else it keeps a stale row. It
//! may be down at that time, which must not keep the instance alive.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Runner;
use crate::coordinator::gitlab::{ApiError, GitLab};

/// How long all runners together have.
pub const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// Rest between two tries.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A runner that this machine works for.
#[derive(Clone)]
pub struct RunnerManager {
    /// The runner.
    pub runner: Arc<Runner>,
    /// Its server.
    pub gitlab: Arc<GitLab>,
    /// This machine.
    pub system_id: String,
}

/// Takes the instance off all of them at once, for [`UNREGISTER_TIMEOUT`] at most.
pub fn unregister(runner_managers: &[RunnerManager]) {
    let until = Instant::now() + UNREGISTER_TIMEOUT;
    let (done, answers) = mpsc::channel();
    for manager in runner_managers {
        let (manager, done) = (manager.clone(), done.clone());
        let name = format!("off-{}", manager.runner.token.short());
        let thread = thread::Builder::new().name(name).stack_size(crate::agent::STACK);
        let spawned = thread.spawn(move || {
            manager.unregister(until);
            // Nobody may be waiting any more.
            let _ = done.send(());
        });
        if let Err(error) = spawned {
            log::warn!("cannot start the thread that unregisters this machine error={error}");
        }
    }
    drop(done);
    for _ in runner_managers {
        match answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => {
                log::warn!(
                    "GitLab did not answer in time; this runner manager stays listed there until GitLab removes it"
                );
                return;
            }
        }
    }
}

impl RunnerManager {
    fn unregister(&self, until: Instant) {
        let name = &self.runner.name;
        loop {
            match self.gitlab.unregister_manager(&self.runner.token, &self.system_id) {
                Ok(()) => return log::info!("unregistered this runner manager runner={name}"),
                // A machine that the server does not know is as good as taken off.
                Err(ApiError::Answer(404, _) | ApiError::Refused(_)) => return,
                Err(error) if Instant::now() + RETRY_INTERVAL >= until => {
                    return log::warn!(
                        "this machine is still on a runner, from which the server will drop it by itself runner={name} \
                         error={error}"
                    );
                }
                Err(_) => thread::sleep(RETRY_INTERVAL),
            }
        }
    }
}
