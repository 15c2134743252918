//! Terminates an instance whose jobs have ended: unregisters the runner managers, runs the configured strategy,
//! completes the lifecycle hooks, and powers off as a last resort.
//!
//! The agent writes each step to the shutdown state before it runs the step. Each step has a timeout. If the agent
//! dies, the next agent repeats the step. Before the agent repeats a request to the cloud, it checks whether the
//! earlier one took effect.
//!
//! The termination runs in its own thread, so that the main loop still handles signals and notices.

mod command;
mod runner_managers;
#[cfg(test)]
mod tests;
mod tracker;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::config::leave::{LeaveSettings, LeaveStrategy};
use crate::instance::{CapacityChange, Instance, Refusal, TerminateResult};
use crate::journal::shutdown::{ShutdownPhase, ShutdownReason};
use crate::monitor::machine;
use crate::sys::BootTime;

pub use command::run_line;
pub use runner_managers::RunnerManager;
pub use tracker::ShutdownTracker;
use tracker::WaitEnd;

/// How long `poweroff_command` may run.
const POWEROFF_TIMEOUT: Duration = Duration::from_secs(60);

/// The timeout of a step when `leave_fallback_after` has already passed, for example because the machine was off for
/// long. The agent still tries each step.
const MIN_STEP_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the target lifecycle state may lag behind a terminate request: two polls, and the delay of the metadata
/// service.
pub const TERMINATION_NOTICE_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 15 });

/// The result of a termination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TerminationOutcome {
    /// The agent can exit.
    Done,
    /// The group is at its minimum size and keeps the instance: the agent resumes work.
    KeptByGroup,
    /// Every way to terminate the instance has failed.
    Failed,
    /// A stop signal ended a wait; the next start resumes the shutdown.
    Stopped,
    /// The termination thread panicked; the next start resumes the shutdown.
    Panicked,
}

/// The termination of an instance that runs no job.
pub struct Termination {
    /// The shutdown state.
    pub tracker: Arc<ShutdownTracker>,
    /// The `leave` settings of the configuration.
    pub leave: LeaveSettings,
    pub instance: Arc<dyn Instance>,
    /// The runner managers to unregister.
    pub runner_managers: Vec<RunnerManager>,
}

impl Termination {
    /// Runs all remaining steps.
    pub fn run(&self) -> TerminationOutcome {
        // The main loop waits for the result of this thread, so the thread must return one even after a panic.
        catch_unwind(AssertUnwindSafe(|| self.run_steps())).unwrap_or(TerminationOutcome::Panicked)
    }

    fn run_steps(&self) -> TerminationOutcome {
        let state = self.tracker.state();
        log::info!("shutting down strategy={} reason={}", self.leave.strategy.as_str(), state.reason.as_str());
        match state.phase {
            ShutdownPhase::Draining | ShutdownPhase::Unregistering => {
                self.unregister();
                self.run_strategy()
            }
            ShutdownPhase::Terminating => self.resume_strategy(),
            ShutdownPhase::PoweringOff => self.power_off(),
            ShutdownPhase::ShutDown => TerminationOutcome::Done,
            ShutdownPhase::Failed => TerminationOutcome::Failed,
        }
    }

    fn unregister(&self) {
        self.tracker.enter_phase(ShutdownPhase::Unregistering);
        runner_managers::unregister(&self.runner_managers);
        self.tracker.set_unregistered(BootTime::now());
    }

    fn run_strategy(&self) -> TerminationOutcome {
        self.tracker.enter_phase(ShutdownPhase::Terminating);
        // The time is set again, because `CLOCK_BOOTTIME` restarts at each boot.
        self.tracker.set_unregistered(BootTime::now());
        let state = self.tracker.state();
        match (state.reason, self.leave.strategy) {
            _ if state.is_terminated() => self.complete_hooks(),
            // A machine without a usable runner or manager gets no jobs, so the agent powers it off even with the
            // strategy `exit`.
            (ShutdownReason::NoRunner | ShutdownReason::NoManager, LeaveStrategy::Exit) => self.power_off(),
            // The manager terminates the instance and decrements the desired capacity of the group.
            (ShutdownReason::ManagerRequest, LeaveStrategy::AwsAsg) => self.finish(),
            (ShutdownReason::CloudStop, _) | (_, LeaveStrategy::Exit) => self.finish(),
            (reason, LeaveStrategy::Command) => self.run_leave_command(reason),
            (_, LeaveStrategy::Poweroff) => self.power_off(),
            (_, LeaveStrategy::AwsAsg) => self.terminate_through_group(),
        }
    }

    /// An earlier agent may have died between the terminate request and the answer, so wait for the effect of that
    /// request before sending another one.
    fn resume_strategy(&self) -> TerminationOutcome {
        if self.leave.strategy != LeaveStrategy::AwsAsg {
            return self.run_strategy();
        }
        match self.tracker.wait_for_termination(TERMINATION_NOTICE_TIMEOUT) {
            WaitEnd::Terminated => self.complete_hooks(),
            WaitEnd::Stopped => TerminationOutcome::Stopped,
            WaitEnd::TimedOut => self.run_strategy(),
        }
    }

    fn terminate_through_group(&self) -> TerminationOutcome {
        // The capacity change of the last attempt: a notice may change it between two attempts.
        let last_capacity = Cell::new(self.tracker.capacity_change());
        let capacity = || {
            last_capacity.set(self.tracker.capacity_change());
            last_capacity.get()
        };
        let result = self.instance.terminate(&capacity, self.step_timeout());
        if let Err(refusal) = &result {
            machine::termination_refused(refusal.kind());
        }
        match result {
            Ok(accepted) => {
                let before =
                    if accepted == TerminateResult::AlreadyTerminating { " already_terminating=true" } else { "" };
                log::info!("the Auto Scaling group terminates the instance capacity={:?}{before}", last_capacity.get());
                // A later agent must not send the request again.
                self.tracker.add_reason(ShutdownReason::Terminated);
                self.complete_hooks()
            }
            Err(Refusal::AtMinimum) if last_capacity.get() == CapacityChange::Decrement => {
                match self.tracker.may_resume_work() {
                    true => TerminationOutcome::KeptByGroup,
                    // The cloud has announced an interruption during the request: terminate without decrementing the
                    // desired capacity.
                    false => self.run_strategy(),
                }
            }
            Err(refusal) => {
                log::error!("the Auto Scaling group does not terminate the instance {refusal}");
                self.wait_or_power_off()
            }
        }
    }

    /// The group terminates the instance as soon as its lifecycle hooks are completed.
    fn complete_hooks(&self) -> TerminationOutcome {
        match self.instance.complete_hooks(self.step_timeout()) {
            Ok(()) => self.finish(),
            Err(refusal) => {
                log::error!("cannot complete a lifecycle hook; it may hold the instance until its timeout {refusal}");
                // The group has already announced the termination, so only a stop signal can end this wait: the group
                // terminates the instance when the hook times out, or the agent powers it off.
                match self.tracker.wait_for_stop(self.announce_power_off()) {
                    true => TerminationOutcome::Stopped,
                    false => self.power_off(),
                }
            }
        }
    }

    fn run_leave_command(&self, reason: ShutdownReason) -> TerminationOutcome {
        let line = self.leave.command.as_deref().unwrap_or_default();
        log::info!("running leave_command");
        match command::run(line, reason, self.step_timeout()) {
            Ok(()) => self.finish(),
            Err(why) => {
                log::error!("leave_command failed error={why}");
                self.wait_or_power_off()
            }
        }
    }

    /// Waits until the group or an operator terminates the instance; after the timeout, powers off.
    fn wait_or_power_off(&self) -> TerminationOutcome {
        match self.tracker.wait_for_termination(self.announce_power_off()) {
            WaitEnd::Terminated => self.complete_hooks(),
            WaitEnd::Stopped => TerminationOutcome::Stopped,
            WaitEnd::TimedOut => self.power_off(),
        }
    }

    /// Logs the time until the power off, and returns it.
    fn announce_power_off(&self) -> Duration {
        let left = self.time_until_power_off();
        log::warn!("powering off unless the instance is terminated before wait={}s", left.as_secs());
        left
    }

    fn power_off(&self) -> TerminationOutcome {
        self.tracker.enter_phase(ShutdownPhase::PoweringOff);
        log::info!("powering off");
        match command::run(&self.leave.poweroff_command, self.tracker.state().reason, POWEROFF_TIMEOUT) {
            Ok(()) => self.finish(),
            Err(why) => {
                log::error!("poweroff_command failed; the machine still runs, terminate it by hand error={why}");
                self.tracker.enter_phase(ShutdownPhase::Failed);
                TerminationOutcome::Failed
            }
        }
    }

    fn finish(&self) -> TerminationOutcome {
        self.tracker.enter_phase(ShutdownPhase::ShutDown);
        TerminationOutcome::Done
    }

    fn step_timeout(&self) -> Duration {
        Some(self.time_until_power_off()).filter(|left| !left.is_zero()).unwrap_or(MIN_STEP_TIMEOUT)
    }

    /// Time until `leave_fallback_after` has passed, counted from the unregistration of the runner managers.
    fn time_until_power_off(&self) -> Duration {
        let since = self.tracker.state().unregistered_at.unwrap_or_else(BootTime::now);
        self.leave.fallback_after.saturating_sub(since.elapsed())
    }
}
