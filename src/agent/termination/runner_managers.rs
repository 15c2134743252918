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
use crate::token::Token;

/// Timeout for all runner managers together.
pub const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The least timeout of an attempt.
const MIN_REQUEST_TIMEOUT: Duration = Duration::from_millis(100);
/// How long the threads may run after the timeout, to log why they failed. Their requests end within the timeout.
const THREAD_END_TIMEOUT: Duration = Duration::from_secs(2);

/// A runner manager: one runner on this machine.
#[derive(Clone)]
pub struct RunnerManager {
    pub runner: Arc<Runner>,
    /// The runner's current token: a rotation may have replaced the token in [`RunnerManager::runner`].
    pub token: Token,
    pub server: Arc<RunnerServer>,
    /// The system id of this machine.
    pub system_id: String,
}

/// Unregisters all runner managers in parallel, within [`UNREGISTER_TIMEOUT`]. No request is in flight afterwards: it
/// could unregister an agent that resumes work.
pub fn unregister(runner_managers: &[RunnerManager]) {
    unregister_within(UNREGISTER_TIMEOUT, runner_managers);
}

fn unregister_within(timeout: Duration, runner_managers: &[RunnerManager]) {
    let until = Instant::now() + timeout;
    let (ended, ends) = mpsc::channel();
    for manager in runner_managers {
        let (manager, ended) = (manager.clone(), ended.clone());
        let name = format!("unreg-{}", manager.token.short());
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
        let threads_end = until + THREAD_END_TIMEOUT;
        match ends.recv_timeout(threads_end.saturating_duration_since(Instant::now())) {
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
        let attempt = || {
            let left = until.saturating_duration_since(Instant::now()).max(MIN_REQUEST_TIMEOUT);
            match self.server.unregister(&self.token, &self.system_id, left) {
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::agent::gitlab;
    use crate::agent::server::ServerKind;
    use crate::config::Config;

    /// A request that takes effect after the agent has resumed work would unregister the working agent.
    #[test]
    fn no_request_is_in_flight_after_the_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let text = format!("[[runners]]\nname = \"r\"\nurl = \"{url}\"\ntoken = \"t\"\nexecutor = \"shell\"\n");
        let config = Config::parse(std::path::Path::new("config.toml"), &text).expect("a configuration");
        let runner = Arc::new(config.runners[0].clone());
        let gitlab = Arc::new(gitlab(&config, &runner).expect("a client"));
        let no_manager = Box::new(|| Err("the server is GitLab".to_owned()));
        let server = Arc::new(RunnerServer::new(gitlab, no_manager, ServerKind::Unknown));
        let managers = [RunnerManager { token: runner.token.clone(), runner, server, system_id: "s_1".to_owned() }];
        thread::scope(|scope| {
            let unregistration = scope.spawn(|| unregister_within(Duration::from_millis(500), &managers));
            let mut stream = listener.accept().expect("a connection").0;
            unregistration.join().expect("no panic");
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set the timeout");
            let mut request = String::new();
            stream.read_to_string(&mut request).expect("the client must close the connection");
            assert!(request.starts_with("DELETE /api/v4/runners/managers "), "{request}");
        });
    }
}
