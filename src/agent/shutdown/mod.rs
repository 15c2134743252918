//! The agent's part of a shutdown: it stops polling, waits for the running jobs and starts the termination of the
//! instance. A signal stops only the agent; the instance keeps running.

mod state;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use state::Shutdown;
use state::{Due, NextStep, StopOutcome};

use super::termination::{RunnerManager, ShutdownTracker, TERMINATION_NOTICE_TIMEOUT, Termination, TerminationOutcome};
use super::{Agent, AgentEvent, REMOVAL_TIMEOUT};
use crate::config::Runner;
use crate::config::leave::LeaveStrategy;
use crate::coordinator::manager::JobIntake;
use crate::coordinator::source::JobSource;
use crate::instance::{Activity, Instance, TargetState};
use crate::journal::JobCount;
use crate::journal::shutdown::{self, Boot, ShutdownPhase, ShutdownReason, ShutdownState};
use crate::sync;

/// Exit status of an agent that could not terminate its instance (`EX_SOFTWARE`). A restart would change nothing.
const EXIT_NOT_TERMINATED: u8 = 70;

/// Interval between two checks of the target lifecycle state.
const TARGET_STATE_INTERVAL: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// Loads the shutdown that an earlier agent began. If the machine was powered off and on again, or returned from a warm
/// pool, deletes the shutdown state and the job count, and returns `None`.
pub(super) fn load_shutdown(state: &Path, instance: &dyn Instance, strategy: LeaveStrategy) -> Option<ShutdownState> {
    let (earlier, boot) = ShutdownState::load(state, &instance.identity())?;
    let has_gone = matches!(earlier.phase, ShutdownPhase::PoweringOff | ShutdownPhase::ShutDown);
    let is_back = boot == Boot::Earlier
        && match strategy {
            _ if earlier.reason == ShutdownReason::CloudStop => true,
            LeaveStrategy::Poweroff | LeaveStrategy::Command => has_gone,
            LeaveStrategy::AwsAsg if earlier.is_terminated() && earlier.phase == ShutdownPhase::ShutDown => {
                is_kept_by_group(instance)
            }
            LeaveStrategy::AwsAsg | LeaveStrategy::Exit => false,
        };
    if is_back {
        log::info!(
            "the machine was powered off and started again; resetting the job count reason={}",
            earlier.reason.as_str()
        );
        reset_shutdown_and_count(state);
        return None;
    }
    log::info!("resuming the shutdown reason={} phase={}", earlier.reason.as_str(), earlier.phase.as_str());
    if matches!(earlier.phase, ShutdownPhase::ShutDown | ShutdownPhase::Failed) {
        let path = shutdown::path(state);
        log::warn!("this machine has shut down already; to use it again, delete the file path={}", path.display());
    }
    Some(earlier)
}

/// Whether the group keeps the instance in service although the agent asked the group to terminate it. The target
/// lifecycle state changes some time after the request, so the agent waits for a change.
fn is_kept_by_group(instance: &dyn Instance) -> bool {
    let is_kept = || matches!(instance.target_state(), Ok(TargetState::InService | TargetState::Standby));
    let is_terminated = || (!is_kept()).then_some(());
    let timeout = TERMINATION_NOTICE_TIMEOUT + TARGET_STATE_INTERVAL;
    sync::try_until(timeout, TARGET_STATE_INTERVAL, is_terminated).is_none()
}

/// Logs that the agent exits before the termination is complete, and returns the exit code.
fn defer_to_next_start() -> ExitCode {
    log::warn!("stopped before the shutdown of the instance was complete; the next start resumes it");
    ExitCode::SUCCESS
}

/// Deletes the shutdown state and the job count, so that the agent works as on a new instance.
fn reset_shutdown_and_count(state: &Path) {
    // The job count is reset first: with the old count the agent would shut down again at once.
    if let Err(error) = JobCount::reset(state) {
        log::warn!("cannot reset the job count error={error}");
    }
    ShutdownState::remove(state);
}

impl Agent {
    /// Resumes the shutdown of an earlier agent.
    pub(super) fn resume_shutdown(&mut self, earlier: ShutdownState) {
        self.slots.close();
        self.has_polled = true;
        self.shutdown = Some(Shutdown::of_instance(ShutdownTracker::begin(&self.state_dir, earlier)));
    }

    /// Begins the shutdown of the instance: stops polling. Requests in flight, the jobs they bring and running jobs
    /// still complete.
    pub(super) fn begin_shutdown(&mut self, reason: ShutdownReason) {
        match &self.shutdown {
            Some(Shutdown { tracker: Some(tracker), .. }) => tracker.add_reason(reason),
            _ => {
                self.stop_polling(reason.as_str());
                // The state is written to disk, so that a restarted agent does not poll either.
                let tracker =
                    Arc::new(ShutdownTracker::begin(&self.state_dir, ShutdownState::new(&self.identity, reason)));
                self.shutdown.get_or_insert_default().tracker = Some(tracker);
            }
        }
    }

    /// Begins a drain: the agent exits when its jobs have ended.
    pub(super) fn drain(&mut self) {
        let is_new = self.shutdown.is_none();
        self.shutdown.get_or_insert_default().drain();
        if is_new {
            self.stop_polling("signal");
        }
    }

    /// Stops the agent within `shutdown_timeout`; the second call exits at once. The current step of the termination
    /// has the same timeout: if the agent did not complete a lifecycle hook, the instance would wait until the hook
    /// times out. A step that only waits ends at once.
    pub(super) fn stop(&mut self) -> Option<ExitCode> {
        let shutdown = self.shutdown.get_or_insert_default();
        match shutdown.stop(Instant::now(), self.config.shutdown_timeout) {
            StopOutcome::WaitForJobs => {
                self.stop_polling("signal");
                None
            }
            StopOutcome::WaitForTermination => {
                log::info!("stop signal received; the shutdown of the instance continues for shutdown_timeout at most");
                if let Some(tracker) = &shutdown.tracker {
                    tracker.stop();
                }
                None
            }
            StopOutcome::ExitNow => {
                log::warn!("second stop signal received; exiting now, the next start reports the running jobs");
                Some(ExitCode::FAILURE)
            }
            StopOutcome::DeferTermination => Some(defer_to_next_start()),
        }
    }

    fn stop_polling(&self, reason: &str) {
        self.slots.close();
        self.pollers.stop(&self.slots);
        self.report_intake(JobIntake::Closed);
        log::info!("polling stopped reason={reason} running={}", self.slots.jobs());
    }

    /// Runs the deadlines of the shutdown that have passed. Returns the time until the next one.
    pub(super) fn run_shutdown_deadlines(&mut self) -> Option<Duration> {
        let (now, timeout) = (Instant::now(), self.config.shutdown_timeout);
        let shutdown = self.shutdown.as_mut()?;
        let due = shutdown.due(now, timeout);
        let next = shutdown.next_due().map(|at| at.saturating_duration_since(now));
        for due in due {
            match due {
                Due::Evict => self.jobs.evict("the cloud interrupts this instance"),
                Due::Interrupt => self.jobs.interrupt("the cloud interrupts this instance"),
                Due::Stop => self.jobs.interrupt("an operator or the system stopped the agent"),
                Due::GiveUp => {
                    self.jobs.abandon_all();
                    self.servers.iter().for_each(|(_, server)| server.stop_waiting());
                }
            }
        }
        next
    }

    /// When all jobs have ended: exits, or starts the termination of the instance.
    pub(super) fn terminate_when_idle(&mut self) -> Option<ExitCode> {
        // Only the termination of the instance needs the tokens.
        let awaits_tokens = self.shutdown.as_ref()?.terminates_instance() && self.awaits_tokens();
        let is_idle = self.slots.is_idle() && !self.rotation.is_running() && !awaits_tokens
            || self.abandon_polls_to_silent_managers();
        let activity = if is_idle { Activity::Idle } else { Activity::Busy };
        let timeout = self.config.shutdown_timeout;
        let shutdown = self.shutdown.as_mut()?;
        let tracker = match shutdown.next_step(Instant::now(), timeout, activity) {
            NextStep::Wait => return None,
            NextStep::Exit => return Some(self.exit("signal")),
            NextStep::DeferTermination => return Some(defer_to_next_start()),
            NextStep::Terminate(tracker) => tracker,
        };
        if shutdown.is_termination_limited() {
            tracker.stop();
        }
        let runner_manager = |(runner, server): &(Arc<Runner>, _)| RunnerManager {
            runner: Arc::clone(runner),
            token: self.rotation.current_token(&runner.token),
            server: Arc::clone(server),
            system_id: self.system_id.clone(),
        };
        let termination = Termination {
            tracker,
            leave: self.config.leave.clone(),
            instance: Arc::clone(&self.instance),
            // A machine that never polled is not registered as a runner manager.
            runner_managers: if self.has_polled { self.servers.iter().map(runner_manager).collect() } else { vec![] },
        };
        let events = self.events.clone();
        let terminate = move || {
            let _ = events.send(AgentEvent::Terminated(termination.run()));
        };
        if let Err(error) = sync::spawn("leave", super::STACK, terminate) {
            log::error!("cannot start the thread that shuts down; the next start resumes the shutdown error={error}");
            return Some(ExitCode::FAILURE);
        }
        None
    }

    /// Abandons the polls in flight if all of them are to managers that do not answer and the agent waits for
    /// nothing else. Returns whether it abandoned them.
    fn abandon_polls_to_silent_managers(&self) -> bool {
        let waits = self.slots.jobs() > 0 || self.rotation.is_running() || self.awaits_tokens();
        !waits && !self.servers.is_empty() && self.servers.iter().all(|(_, server)| server.abandon_polls())
    }

    /// Handles the result of the termination.
    pub(super) fn handle_termination(&mut self, outcome: TerminationOutcome) -> Option<ExitCode> {
        let tracker = self.shutdown.as_ref()?.tracker.clone()?;
        let state = tracker.state();
        let reason = state.reason;
        match outcome {
            TerminationOutcome::Done => {
                if reason.allows_new_start()
                    && !state.is_terminated()
                    && self.config.leave.strategy == LeaveStrategy::Exit
                {
                    // The machine keeps running, so the next agent must count its jobs from zero.
                    reset_shutdown_and_count(&self.state_dir);
                }
                Some(self.exit(reason.as_str()))
            }
            // The cloud announced the loss of the instance during the termination.
            TerminationOutcome::KeptByGroup if !tracker.may_resume_work() => {
                self.shutdown.as_mut()?.restart_termination();
                None
            }
            TerminationOutcome::KeptByGroup => {
                log::info!("the Auto Scaling group is at its minimum size; polling resumed");
                ShutdownState::remove(&self.state_dir);
                if self.shutdown.take().is_some_and(|shutdown| shutdown.must_exit()) {
                    return Some(self.exit("signal"));
                }
                self.lifetime.set_refused();
                self.slots.open();
                self.report_intake(JobIntake::Open);
                self.reload();
                None
            }
            TerminationOutcome::Stopped => Some(defer_to_next_start()),
            TerminationOutcome::Panicked => {
                log::error!("the thread that shuts down panicked; the next start resumes the shutdown");
                Some(ExitCode::FAILURE)
            }
            TerminationOutcome::Failed => {
                log::error!(
                    "the instance cannot be shut down; polling stays stopped, terminate it by hand reason={}",
                    reason.as_str()
                );
                Some(ExitCode::from(EXIT_NOT_TERMINATED))
            }
        }
    }

    fn exit(&mut self, reason: &str) -> ExitCode {
        self.service_manager.stopping();
        self.removals.wait_before_exit(REMOVAL_TIMEOUT);
        log::info!("mayfly exits reason={reason}");
        ExitCode::SUCCESS
    }
}
