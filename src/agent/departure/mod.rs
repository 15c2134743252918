//! How an instance goes once it has no job any more: off its runners, then whatever the configuration says, then the
//! group's hooks, and the power as the last means. Each step is marked before it is taken, bounded in time, and taken
//! again by the next agent when this one dies over it; the cloud is asked how far things are before it is asked for
//! anything twice.
//!
//! It runs in a thread of its own, so that the main loop hears signals and notices in the meantime.

mod command;
mod managers;
mod marker;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::config::leave::{Leave, Strategy};
use crate::instance::{Capacity, Instance, Refusal, Terminated};
use crate::journal::leaving::{Phase, Reason};
use crate::monitor::machine;
use crate::sys;

pub use command::run_line;
pub use managers::Manager;
pub use marker::Marker;

/// How long switching the machine off may take to be accepted.
const POWEROFF_PATIENCE: Duration = Duration::from_secs(60);

/// What is tried for when the time is over already: a machine that was down for long must still try.
const LEAST_PATIENCE: Duration = Duration::from_secs(20);

/// How long it may take until the machine hears that its group ends it: two looks, and what the service lags behind.
pub const SIGNS: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 15 });

/// How leaving came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is left to do but to end.
    Gone,
    /// The group needs the instance: it works on.
    Stays,
    /// It still runs, and nothing that could be done has ended it.
    Stranded,
    /// A mistake of ours: the next start goes on.
    Broken,
}

/// An instance that has no job any more and takes none.
pub struct Departure {
    /// How far it is.
    pub marker: Arc<Marker>,
    /// How it is to go.
    pub leave: Leave,
    /// The machine.
    pub instance: Arc<dyn Instance>,
    /// Whom it works for.
    pub managers: Vec<Manager>,
}

impl Departure {
    /// Takes all steps that are left.
    pub fn run(&self) -> Outcome {
        // Nobody would end an instance whose agent waits for a thread that is gone.
        catch_unwind(AssertUnwindSafe(|| self.go_on())).unwrap_or(Outcome::Broken)
    }

    fn go_on(&self) -> Outcome {
        let mark = self.marker.read();
        log::info!("shutting down strategy={} reason={}", self.leave.strategy.as_str(), mark.reason.as_str());
        match mark.phase {
            Phase::Draining | Phase::Unregistering => {
                self.unregister();
                self.end()
            }
            Phase::Ending => self.end_again(),
            Phase::PoweringOff => self.power_off(),
            Phase::Left => Outcome::Gone,
            Phase::Stranded => Outcome::Stranded,
        }
    }

    fn unregister(&self) {
        self.marker.enter(Phase::Unregistering);
        managers::unregister(&self.managers);
        self.marker.unregistered(sys::boottime());
    }

    fn end(&self) -> Outcome {
        self.marker.enter(Phase::Ending);
        // In a later boot the clock has begun anew.
        self.marker.unregistered(sys::boottime());
        let mark = self.marker.read();
        match (mark.reason, self.leave.strategy) {
            _ if mark.ended => self.follow_the_group(),
            // A machine without work to do is of no use to anybody.
            (Reason::NoRunner, Strategy::Exit) => self.power_off(),
            (Reason::Stop, _) | (_, Strategy::Exit) => self.gone(),
            (reason, Strategy::Command) => self.command(reason),
            (_, Strategy::Poweroff) => self.power_off(),
            (_, Strategy::AwsAsg) => self.terminate(),
        }
    }

    /// An earlier agent may have asked the group already, and died before it heard of that: what came of it is waited
    /// for before the group is asked again.
    fn end_again(&self) -> Outcome {
        match self.leave.strategy == Strategy::AwsAsg && self.marker.wait_for_the_end(SIGNS) {
            true => self.follow_the_group(),
            false => self.end(),
        }
    }

    fn terminate(&self) -> Outcome {
        let asked = Cell::new(self.marker.capacity());
        let capacity = || {
            asked.set(self.marker.capacity());
            asked.get()
        };
        let asked_for = self.instance.terminate(&capacity, self.patience());
        if let Err(refusal) = &asked_for {
            machine::termination_refused(refusal.kind());
        }
        match asked_for {
            Ok(how) => {
                let before = if how == Terminated::Before { " before=true" } else { "" };
                log::info!("the Auto Scaling group terminates the instance capacity={:?}{before}", asked.get());
                // No later agent has to ask, or to wait for a sign of it.
                self.marker.hear(Reason::Terminated);
                self.follow_the_group()
            }
            Err(Refusal::AtMinimum) if asked.get() == Capacity::Decrement => match self.marker.is_needed() {
                true => Outcome::Stays,
                // Its cloud takes it, which was heard meanwhile: its place is not given up, and it goes.
                false => self.end(),
            },
            Err(refusal) => {
                log::error!("the Auto Scaling group does not terminate the instance {refusal}");
                self.fall_back()
            }
        }
    }

    /// The group ends the instance as soon as its hooks let go.
    fn follow_the_group(&self) -> Outcome {
        match self.instance.complete_hooks(self.patience()) {
            Ok(()) => self.gone(),
            Err(refusal) => {
                log::error!("cannot complete a lifecycle hook; it may hold the instance until its timeout {refusal}");
                // The group was not told in time that it may go on: there is nothing else to wait for.
                std::thread::sleep(self.announced());
                self.power_off()
            }
        }
    }

    fn command(&self, reason: Reason) -> Outcome {
        let line = self.leave.command.as_deref().unwrap_or_default();
        log::info!("running leave_command");
        match command::run(line, reason, self.patience()) {
            Ok(()) => self.gone(),
            Err(why) => {
                log::error!("leave_command failed: {why}");
                self.fall_back()
            }
        }
    }

    /// Somebody else may end the instance, or does already; if nobody does in time, its power is switched off.
    fn fall_back(&self) -> Outcome {
        match self.marker.wait_for_the_end(self.announced()) {
            true => self.follow_the_group(),
            false => self.power_off(),
        }
    }

    /// How long until the power is switched off, which is said.
    fn announced(&self) -> Duration {
        let left = self.left();
        log::warn!("powering off in {} s unless the instance is terminated before", left.as_secs());
        left
    }

    fn power_off(&self) -> Outcome {
        self.marker.enter(Phase::PoweringOff);
        log::info!("powering off");
        match command::run(&self.leave.poweroff_command, self.marker.read().reason, POWEROFF_PATIENCE) {
            Ok(()) => self.gone(),
            Err(why) => {
                log::error!("poweroff_command failed; the machine still runs, terminate it by hand: {why}");
                self.marker.enter(Phase::Stranded);
                Outcome::Stranded
            }
        }
    }

    fn gone(&self) -> Outcome {
        self.marker.enter(Phase::Left);
        Outcome::Gone
    }

    fn patience(&self) -> Duration {
        Some(self.left()).filter(|left| !left.is_zero()).unwrap_or(LEAST_PATIENCE)
    }

    /// Until the power is the last means: counted from when the instance was taken off its runners.
    fn left(&self) -> Duration {
        let since = self.marker.read().unregistered.unwrap_or_else(sys::boottime);
        self.leave.fallback_after.saturating_sub(Duration::from_nanos(sys::boottime().saturating_sub(since)))
    }
}
