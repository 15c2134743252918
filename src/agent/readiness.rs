//! The commands that must succeed before the first poll. On a first boot, user data may still be installing programs
//! that jobs need.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::fitness::FitnessStatus;
use super::notices::Availability;
use super::termination::run_line;
use super::{Agent, AgentEvent, STACK};
use crate::config::fitness::{READY_TIMEOUT, ReadinessCommands};
use crate::sync;

/// Interval between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// The least timeout of an attempt.
const MIN_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether the readiness commands have succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// No configuration has been loaded yet.
    Unknown,
    /// The agent repeats the commands until they succeed.
    Waiting,
    /// The commands have succeeded, or there are none.
    Ready,
}

impl Agent {
    /// Starts the readiness commands of the first configuration.
    pub(super) fn start_readiness_check(&mut self) {
        if self.readiness != Readiness::Unknown {
            return;
        }
        self.readiness = Readiness::Ready;
        let Some(ready) = self.config.mayfly.ready.clone() else { return };
        log::info!(
            "polling starts when the readiness commands have succeeded commands={} timeout={}s",
            ready.commands.len(),
            ready.timeout.as_secs()
        );
        match wait_in_thread(ready, Arc::clone(&self.status), self.events.clone()) {
            Ok(()) => {
                self.readiness = Readiness::Waiting;
                self.slots.pause();
            }
            Err(error) => {
                log::error!("cannot start the thread for ready_command; polling starts without it error={error}")
            }
        }
    }

    pub(super) fn handle_ready(&mut self) {
        self.readiness = Readiness::Ready;
        if self.shutdown.is_none() && matches!(self.availability, Availability::Available) {
            self.slots.unpause();
            self.start_pollers();
        }
    }
}

/// Repeats the commands in a thread until all have succeeded, then sends [`AgentEvent::Ready`]. After the timeout the
/// machine counts as unfit, and the thread still repeats the commands. Errors: no thread can be created.
fn wait_in_thread(
    ready: ReadinessCommands,
    status: Arc<FitnessStatus>,
    events: Sender<AgentEvent>,
) -> std::io::Result<()> {
    let wait = move || {
        let until = Instant::now() + ready.timeout;
        for command in &ready.commands {
            // The main loop may have to shut down a machine that is not ready.
            wait_for(command, until, &ready, &status, &|| drop(events.send(AgentEvent::Recheck)));
        }
        status.set_ready(Ok(()));
        log::info!("the machine is ready for jobs");
        let _ = events.send(AgentEvent::Ready);
    };
    sync::spawn("ready", STACK, wait).map(drop)
}

/// Repeats the readiness command of a manager's pool until it succeeds. Calls `failed` after each attempt that fails.
pub(super) fn wait_for_pool(command: &str, status: &FitnessStatus, failed: &dyn Fn()) {
    let ready = ReadinessCommands { commands: vec![command.to_owned()], timeout: READY_TIMEOUT };
    wait_for(command, Instant::now() + READY_TIMEOUT, &ready, status, failed);
    status.set_ready(Ok(()));
}

/// Repeats a command until it succeeds. Calls `failed` after each attempt that fails. After `until`, the machine counts
/// as unfit.
fn wait_for(command: &str, until: Instant, ready: &ReadinessCommands, status: &FitnessStatus, failed: &dyn Fn()) {
    let mut is_timeout_logged = false;
    sync::try_forever(RETRY_INTERVAL, || {
        let left = until.saturating_duration_since(Instant::now());
        // After the timeout, each attempt may take as long as the whole timeout.
        let timeout = if left.is_zero() { ready.timeout } else { left };
        let Err(why) = run_line(command, &[], timeout.max(MIN_ATTEMPT_TIMEOUT)) else { return Some(()) };
        let why = format!("`{command}`: {why}");
        if Instant::now() < until {
            log::debug!("a readiness command failed; retrying error={why}");
            failed();
            return None;
        }
        if !is_timeout_logged {
            log::error!(
                "the readiness commands have not succeeded in time; the machine is unfit timeout={}s error={why}",
                ready.timeout.as_secs()
            );
            is_timeout_logged = true;
        }
        status.set_ready(Err(why));
        failed();
        None
    });
}
