//! What the machine's cloud says while the agent works, and what comes of it.

use std::time::{Duration, Instant};

use super::{Agent, Event, Readiness};
use crate::instance::{Interruption, Notice, TargetState};
use crate::journal::shutdown::ShutdownReason;
use crate::sys;

/// What scripts leave of the time before the machine is taken: to be killed, and for their artifacts to be handed over.
const EVICT_BEFORE_DEADLINE: Duration = Duration::from_secs(30);
/// What everything leaves of it: for the log and the final state.
const INTERRUPT_BEFORE_DEADLINE: Duration = Duration::from_secs(8);
/// How long the first word of a known cloud is waited for before the first request.
const FIRST_STATE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a machine may take to freeze.
const HIBERNATION_TIMEOUT: Duration = Duration::from_secs(600);
/// Sleep that counts as such, and the rest between two looks whether there was some.
const SLEEP_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Whether the agent may ask for jobs, as far as the machine is concerned.
pub(super) enum Availability {
    /// It may.
    Available,
    /// Its cloud has not said yet; until then at most.
    Unknown(Instant),
    /// It rests in a warm pool or beside its group: no request to GitLab.
    Standby,
    /// It is going to be frozen, or it is awake again: that is told by the time that it has slept, which was this.
    Hibernating {
        /// See above.
        asleep: Duration,
        /// It was not frozen by then: it works on.
        until: Instant,
    },
}

impl Agent {
    /// Begins to listen. What is known of the machine decides whether requests wait for its first word.
    pub(super) fn watch_instance(&mut self) {
        if self.instance.cloud_id().is_some() {
            self.availability = Availability::Unknown(Instant::now() + FIRST_STATE_TIMEOUT);
            self.slots.pause();
        }
        let events = self.events.clone();
        self.instance.watch(Box::new(move |notice| {
            let _ = events.send(Event::Notice(notice));
        }));
    }

    /// How long to wait for the first word, or until the next look whether the machine slept; nothing is due while it
    /// rests.
    pub(super) fn check_availability(&mut self) -> Option<Duration> {
        let now = Instant::now();
        match self.availability {
            Availability::Unknown(until) if now >= until => {
                log::warn!("the metadata service does not tell the target lifecycle state; polling starts without it");
                self.resume_work();
                Some(Duration::ZERO)
            }
            Availability::Unknown(until) => Some(until - now),
            Availability::Hibernating { asleep, until }
                if sys::asleep() > asleep + SLEEP_CHECK_INTERVAL || now >= until =>
            {
                self.resume_work();
                Some(Duration::ZERO)
            }
            // Nothing tells a program that it was frozen.
            Availability::Hibernating { .. } => Some(SLEEP_CHECK_INTERVAL),
            Availability::Available | Availability::Standby => None,
        }
    }

    /// Takes in a notice.
    pub(super) fn handle_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Rebalance => {
                log::warn!("rebalance recommendation: the cloud is likely to interrupt this instance soon; draining");
                self.begin_shutdown(ShutdownReason::Rebalance);
            }
            Notice::Interruption { deadline, action } => self.handle_interruption(deadline, action),
            Notice::Target(TargetState::Terminated) => {
                self.begin_shutdown(ShutdownReason::Terminated);
                if !self.slots.is_idle() {
                    self.instance.start_hook_heartbeats();
                }
            }
            Notice::Target(TargetState::Standby) => self.enter_standby(),
            Notice::Target(_) => self.resume_work(),
        }
    }

    fn handle_interruption(&mut self, deadline: Instant, action: Interruption) {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        log::warn!(
            "interruption notice: the cloud takes this instance action={} seconds={}",
            action.as_str(),
            left.as_secs()
        );
        self.begin_shutdown(match action {
            Interruption::Terminate => ShutdownReason::Interruption,
            Interruption::Stop => ShutdownReason::Stop,
            Interruption::Hibernate => return self.prepare_hibernation(),
        });
        let Some(shutdown) = &mut self.shutdown else { return };
        // A notice may come late: half of what is left is for the scripts then.
        shutdown.evict_at = Some(deadline.checked_sub(EVICT_BEFORE_DEADLINE.min(left / 2)).unwrap_or(now));
        shutdown.interrupt_at = Some(deadline.checked_sub(INTERRUPT_BEFORE_DEADLINE.min(left / 4)).unwrap_or(now));
    }

    /// The machine is frozen, from now on, and goes on some day with this very process: nobody leaves. What its jobs
    /// were talking to will be gone by then.
    fn prepare_hibernation(&mut self) {
        self.jobs.evict("the machine is frozen");
        self.availability =
            Availability::Hibernating { asleep: sys::asleep(), until: Instant::now() + HIBERNATION_TIMEOUT };
        self.slots.pause();
        self.pollers.stop(&self.slots);
    }

    fn enter_standby(&mut self) {
        if matches!(self.availability, Availability::Standby) {
            return;
        }
        log::info!("the instance is in standby or in the warm pool; polling paused");
        self.availability = Availability::Standby;
        self.slots.pause();
        self.pollers.stop(&self.slots);
    }

    fn resume_work(&mut self) {
        let before = std::mem::replace(&mut self.availability, Availability::Available);
        if matches!(before, Availability::Available) {
            return;
        }
        if matches!(before, Availability::Standby | Availability::Hibernating { .. }) {
            log::info!("the instance is in service; polling resumed");
        }
        if self.shutdown.is_none() {
            // It may have been frozen before it rested.
            self.jobs.cancel_eviction();
        }
        if self.readiness != Readiness::Waiting {
            self.slots.unpause();
        }
        self.start_pollers();
    }
}
