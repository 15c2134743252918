//! The main loop: handles events and runs work that is due.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use super::monitoring::AgentPhase;
use super::notices::Availability;
use super::shutdown::Shutdown;
use super::signals::SignalRequest;
use super::{Agent, AgentEvent};
use crate::config::fitness::WhenUnfit;
use crate::journal::shutdown::ShutdownReason;
use crate::sys::BootTime;

impl Agent {
    /// Runs the main loop. Errors: there is no usable configuration, and nothing is left to finish without one.
    pub(super) fn run_loop(&mut self) -> Result<ExitCode, String> {
        log::info!(
            "mayfly is up version={} runners={} concurrent={} system_id={}",
            env!("CARGO_PKG_VERSION"),
            self.servers.len(),
            self.config.concurrent,
            self.system_id
        );
        self.service_manager.ready();
        loop {
            let timeout = self.run_due_work();
            self.report_status();
            let code = match self.terminate_when_idle() {
                Some(code) => Some(code),
                None => match self.next_event(timeout) {
                    Ok(event) => self.handle_event(event),
                    // The agent holds a sender itself, so the channel is never disconnected.
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
                },
            };
            if let Some(code) = code {
                return Ok(code);
            }
            if let Some(why) = self.cannot_continue() {
                return Err(why);
            }
        }
    }

    /// Handles an event. Returns an exit code if the agent must exit.
    pub(super) fn handle_event(&mut self, event: AgentEvent) -> Option<ExitCode> {
        match event {
            AgentEvent::Signal(SignalRequest::Drain) => self.drain(),
            AgentEvent::Signal(SignalRequest::Stop) => return self.stop(),
            AgentEvent::Signal(SignalRequest::HandOver) => self.prepare_hand_over(),
            AgentEvent::NewProgramValidated(outcome) => return self.hand_over(outcome),
            AgentEvent::Signal(SignalRequest::Reload) | AgentEvent::ConfigurationChanged => self.reload(),
            AgentEvent::TokensFetched(fetched) => self.handle_fetched_tokens(fetched),
            AgentEvent::StoredTokenRejected => self.fetch_rejected_tokens(),
            AgentEvent::Notice(notice) => self.handle_notice(notice),
            AgentEvent::Terminated(outcome) => return self.handle_termination(outcome),
            AgentEvent::Ready => self.handle_ready(),
            AgentEvent::ManagerRequest(reason) => self.handle_manager_request(&reason),
            // The next iteration checks what is due.
            AgentEvent::Recheck => {}
        }
        None
    }

    /// Waits for an event, at most for `timeout` and at most until the service manager's watchdog or the health check
    /// must be notified that the loop runs.
    pub(super) fn next_event(&mut self, timeout: Option<Duration>) -> Result<AgentEvent, RecvTimeoutError> {
        match [timeout, self.service_manager.ping_watchdog(), self.monitoring.record_loop()].into_iter().flatten().min()
        {
            Some(timeout) => self.inbox.recv_timeout(timeout),
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// True if no job runs, no request is in flight and no token is being rotated or fetched.
    pub(super) fn is_idle(&self) -> bool {
        self.slots.is_idle() && !self.rotation.is_running() && !self.awaits_tokens()
    }

    fn report_status(&mut self) {
        let jobs = self.slots.jobs();
        let status = match (&self.shutdown, &self.availability) {
            (Some(shutdown), _) => format!("taking no more jobs ({}), {jobs} left", shutdown.reason()),
            (None, _) if self.unconfigured.is_some() => format!("no usable configuration, {jobs} jobs left"),
            (None, Availability::Available) => format!("{jobs} of {} jobs", self.config.concurrent),
            (None, _) => format!("polling paused, {jobs} jobs"),
        };
        self.monitoring.set_phase(match (&self.shutdown, &self.availability) {
            (Some(Shutdown { tracker: Some(tracker), .. }), _) => AgentPhase::ShuttingDown(Arc::clone(tracker)),
            (Some(_), _) => AgentPhase::Stopping,
            (None, _) if self.unconfigured.is_some() => AgentPhase::Unconfigured,
            (None, Availability::Available) => AgentPhase::Working,
            (None, _) => AgentPhase::Paused,
        });
        self.service_manager.status(&status);
    }

    /// Runs the work that is due. Returns the time until more work is due.
    fn run_due_work(&mut self) -> Option<Duration> {
        if self.shutdown.is_some() {
            return self.run_shutdown_deadlines();
        }
        let next_retry = [self.retry_configuration(), self.check_awaited_user()].into_iter().flatten().min();
        let next = match self.availability {
            Availability::Available => self.run_due_work_while_available(),
            _ => self.check_availability(),
        };
        [next, next_retry].into_iter().flatten().min()
    }

    fn run_due_work_while_available(&mut self) -> Option<Duration> {
        let next_rotation = self.rotate_tokens();
        let until_give_up = match self.until_giving_up() {
            Some((Duration::ZERO, reason)) => {
                self.begin_shutdown(reason);
                return Some(Duration::ZERO);
            }
            other => other.map(|(left, _)| left),
        };
        match self.lifetime.shutdown_reason(&self.slots, BootTime::now(), jiff::Timestamp::now()) {
            Ok(reason) => {
                self.begin_shutdown(reason);
                Some(Duration::ZERO)
            }
            Err(left) => [left, next_rotation, until_give_up].into_iter().flatten().min(),
        }
    }

    /// Time until the agent shuts down because it has no usable runner, because the machine is unfit, or because its
    /// managers do not answer; `None` if none of this applies.
    fn until_giving_up(&self) -> Option<(Duration, ShutdownReason)> {
        let mayfly = &self.config.mayfly;
        let without_runner = mayfly
            .give_up_after
            .filter(|_| self.servers.is_empty() && self.unconfigured.is_none() && self.awaited_user.is_none())
            .map(|after| (after.saturating_sub(self.began.elapsed()), ShutdownReason::NoRunner));
        let leaves = mayfly.fitness.when_unfit == WhenUnfit::Leave;
        let unfit = self
            .status
            .unfit_for()
            .filter(|_| leaves)
            .map(|unfit_for| (mayfly.fitness.unfit_timeout.saturating_sub(unfit_for), ShutdownReason::Unfit));
        without_runner.into_iter().chain(unfit).chain(self.until_manager_timeout()).min_by_key(|(left, _)| *left)
    }
}
