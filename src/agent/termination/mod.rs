//! How an instance goes once it has no job any more: off its runners, then whatever the configuration says, then the
//! group's hooks, and the power as the last means. Each step is marked before it is taken, bounded in time, and taken
//! again by the next agent when this one dies over it; the cloud is asked how far things are before it is asked for
//! anything twice.
//!
//! It runs in a thread of its own, so that the main loop hears signals and notices in the meantime.

mod command;
mod runner_managers;
#[cfg(test)]
mod tests;
mod tracker;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::config::leave::{Leave, Strategy};
use crate::instance::{CapacityChange, Instance, Refusal, TerminateResult};
use crate::journal::shutdown::{ShutdownPhase, ShutdownReason};
use crate::monitor::machine;
use crate::sys;

pub use command::run_line;
pub use runner_managers::RunnerManager;
pub use tracker::ShutdownTracker;

/// How long switching the machine off may take to be accepted.
const POWEROFF_TIMEOUT: Duration = Duration::from_secs(60);

/// What is tried for when the time is over already: a machine that was down for long must still try.
const MIN_STEP_TIMEOUT: Duration = Duration::from_secs(20);

/// How long it may take until the machine hears that its group ends it: two looks, and what the service lags behind.
pub const TERMINATION_NOTICE_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 15 });

/// How leaving came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TerminationOutcome {
    /// Nothing is left to do but to end.
    Done,
    /// The group needs the instance: it works on.
    KeptByGroup,
    /// It still runs, and nothing that could be done has ended it.
    Failed,
    /// A mistake of ours: the next start goes on.
    Panicked,
}

/// An instance that has no job any more and takes none.
pub struct Termination {
    /// How far it is.
    pub tracker: Arc<ShutdownTracker>,
    /// How it is to go.
    pub leave: Leave,
    /// The machine.
    pub instance: Arc<dyn Instance>,
    /// Whom it works for.
    pub runner_managers: Vec<RunnerManager>,
}

impl Termination {
    /// Takes all steps that are left.
    pub fn run(&self) -> TerminationOutcome {
        // Nobody would end an instance whose agent waits for a thread that is gone.
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
            ShutdownPhase::Ending => self.resume_strategy(),
            ShutdownPhase::PoweringOff => self.power_off(),
            ShutdownPhase::Left => TerminationOutcome::Done,
            ShutdownPhase::Stranded => TerminationOutcome::Failed,
        }
    }

    fn unregister(&self) {
        self.tracker.enter_phase(ShutdownPhase::Unregistering);
        runner_managers::unregister(&self.runner_managers);
        self.tracker.set_unregistered(sys::boottime());
    }

    fn run_strategy(&self) -> TerminationOutcome {
        self.tracker.enter_phase(ShutdownPhase::Ending);
        // In a later boot the clock has begun anew.
        self.tracker.set_unregistered(sys::boottime());
        let state = self.tracker.state();
        match (state.reason, self.leave.strategy) {
            _ if state.terminated => self.complete_hooks(),
            // A machine without work to do is of no use to anybody.
            (ShutdownReason::NoRunner, Strategy::Exit) => self.power_off(),
            (ShutdownReason::Stop, _) | (_, Strategy::Exit) => self.finish(),
            (reason, Strategy::Command) => self.run_leave_command(reason),
            (_, Strategy::Poweroff) => self.power_off(),
            (_, Strategy::AwsAsg) => self.terminate_through_group(),
        }
    }

    /// An earlier agent may have asked the group already, and died before it heard of that: what came of it is waited
    /// for before the group is asked again.
    fn resume_strategy(&self) -> TerminationOutcome {
        match self.leave.strategy == Strategy::AwsAsg && self.tracker.wait_for_termination(TERMINATION_NOTICE_TIMEOUT) {
            true => self.complete_hooks(),
            false => self.run_strategy(),
        }
    }

    fn terminate_through_group(&self) -> TerminationOutcome {
        let asked = Cell::new(self.tracker.capacity_change());
        let capacity = || {
            asked.set(self.tracker.capacity_change());
            asked.get()
        };
        let asked_for = self.instance.terminate(&capacity, self.step_timeout());
        if let Err(refusal) = &asked_for {
            machine::termination_refused(refusal.kind());
        }
        match asked_for {
            Ok(how) => {
                let before = if how == TerminateResult::AlreadyTerminating { " before=true" } else { "" };
                log::info!("the Auto Scaling group terminates the instance capacity={:?}{before}", asked.get());
                // No later agent has to ask, or to wait for a sign of it.
                self.tracker.add_reason(ShutdownReason::Terminated);
                self.complete_hooks()
            }
            Err(Refusal::AtMinimum) if asked.get() == CapacityChange::Decrement => match self.tracker.may_resume_work()
            {
                true => TerminationOutcome::KeptByGroup,
                // Its cloud takes it, which was heard meanwhile: its place is not given up, and it goes.
                false => self.run_strategy(),
            },
            Err(refusal) => {
                log::error!("the Auto Scaling group does not terminate the instance {refusal}");
                self.wait_or_power_off()
            }
        }
    }

    /// The group ends the instance as soon as its hooks let go.
    fn complete_hooks(&self) -> TerminationOutcome {
        match self.instance.complete_hooks(self.step_timeout()) {
            Ok(()) => self.finish(),
            Err(refusal) => {
                log::error!("cannot complete a lifecycle hook; it may hold the instance until its timeout {refusal}");
                // The group was not told in time that it may go on: there is nothing else to wait for.
                std::thread::sleep(self.announce_power_off());
                self.power_off()
            }
        }
    }

    fn run_leave_command(&self, reason: ShutdownReason) -> TerminationOutcome {
        let line = self.leave.command.as_deref().unwrap_or_default();
        log::info!("running leave_command");
        match command::run(line, reason, self.step_timeout()) {
            Ok(()) => self.finish(),
            Err(why) => {
                log::error!("leave_command failed: {why}");
                self.wait_or_power_off()
            }
        }
    }

    /// Somebody else may end the instance, or does already; if nobody does in time, its power is switched off.
    fn wait_or_power_off(&self) -> TerminationOutcome {
        match self.tracker.wait_for_termination(self.announce_power_off()) {
            true => self.complete_hooks(),
            false => self.power_off(),
        }
    }

    /// How long until the power is switched off, which is said.
    fn announce_power_off(&self) -> Duration {
        let left = self.time_until_power_off();
        log::warn!("powering off in {} s unless the instance is terminated before", left.as_secs());
        left
    }

    fn power_off(&self) -> TerminationOutcome {
        self.tracker.enter_phase(ShutdownPhase::PoweringOff);
        log::info!("powering off");
        match command::run(&self.leave.poweroff_command, self.tracker.state().reason, POWEROFF_TIMEOUT) {
            Ok(()) => self.finish(),
            Err(why) => {
                log::error!("poweroff_command failed; the machine still runs, terminate it by hand: {why}");
                self.tracker.enter_phase(ShutdownPhase::Stranded);
                TerminationOutcome::Failed
            }
        }
    }

    fn finish(&self) -> TerminationOutcome {
        self.tracker.enter_phase(ShutdownPhase::Left);
        TerminationOutcome::Done
    }

    fn step_timeout(&self) -> Duration {
        Some(self.time_until_power_off()).filter(|left| !left.is_zero()).unwrap_or(MIN_STEP_TIMEOUT)
    }

    /// Until the power is the last means: counted from when the instance was taken off its runners.
    fn time_until_power_off(&self) -> Duration {
        let since = self.tracker.state().unregistered_at.unwrap_or_else(sys::boottime);
        self.leave.fallback_after.saturating_sub(Duration::from_nanos(sys::boottime().saturating_sub(since)))
    }
}
