//! What the machine's cloud says while the agent works, and what comes of it.

use std::time::{Duration, Instant};

use super::{Agent, Event, Readiness};
use crate::instance::{Interruption, Notice, Target};
use crate::journal::leaving::Reason;
use crate::sys;

/// What scripts leave of the time before the machine is taken: to be killed, and for their artifacts to be handed over.
const RESERVE: Duration = Duration::from_secs(30);
/// What everything leaves of it: for the log and the final state.
const LAST_RESERVE: Duration = Duration::from_secs(8);
/// How long the first word of a known cloud is waited for before the first request.
const FIRST_WORD: Duration = Duration::from_secs(60);

/// How long a machine may take to freeze.
const FREEZING: Duration = Duration::from_secs(600);
/// Sleep that counts as such, and the rest between two looks whether there was some.
const A_NAP: Duration = Duration::from_secs(5);

/// Whether the agent may ask for jobs, as far as the machine is concerned.
pub(super) enum Standing {
    /// It may.
    Working,
    /// Its cloud has not said yet; until then at most.
    Unknown(Instant),
    /// It rests in a warm pool or beside its group: no request to GitLab.
    Resting,
    /// It is going to be frozen, or it is awake again: that is told by the time that it has slept, which was this.
    Freezing {
        /// See above.
        asleep: Duration,
        /// It was not frozen by then: it works on.
        until: Instant,
    },
}

impl Agent {
    /// Begins to listen. What is known of the machine decides whether requests wait for its first word.
    pub(super) fn listen_to_the_machine(&mut self) {
        if self.instance.cloud_id().is_some() {
            self.standing = Standing::Unknown(Instant::now() + FIRST_WORD);
            self.slots.pause();
        }
        let events = self.events.clone();
        self.instance.watch(Box::new(move |notice| {
            let _ = events.send(Event::Notice(notice));
        }));
    }

    /// How long to wait for the first word, or until the next look whether the machine slept; nothing is due while it
    /// rests.
    pub(super) fn look_after_standing(&mut self) -> Option<Duration> {
        let now = Instant::now();
        match self.standing {
            Standing::Unknown(until) if now >= until => {
                log::warn!("the metadata service does not tell the target lifecycle state; polling starts without it");
                self.work();
                Some(Duration::ZERO)
            }
            Standing::Unknown(until) => Some(until - now),
            Standing::Freezing { asleep, until } if sys::asleep() > asleep + A_NAP || now >= until => {
                self.work();
                Some(Duration::ZERO)
            }
            // Nothing tells a program that it was frozen.
            Standing::Freezing { .. } => Some(A_NAP),
            Standing::Working | Standing::Resting => None,
        }
    }

    /// Takes in a notice.
    pub(super) fn hear(&mut self, notice: Notice) {
        match notice {
            Notice::Rebalance => {
                log::warn!("rebalance recommendation: the cloud is likely to interrupt this instance soon; draining");
                self.begin_to_leave(Reason::Rebalance);
            }
            Notice::Interruption { deadline, action } => self.be_taken(deadline, action),
            Notice::Target(Target::Terminated) => {
                self.begin_to_leave(Reason::Terminated);
                if !self.slots.is_quiet() {
                    self.instance.hold_hooks();
                }
            }
            Notice::Target(Target::Resting) => self.rest(),
            Notice::Target(_) => self.work(),
        }
    }

    fn be_taken(&mut self, deadline: Instant, action: Interruption) {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        log::warn!(
            "interruption notice: the cloud takes this instance action={} seconds={}",
            action.as_str(),
            left.as_secs()
        );
        self.begin_to_leave(match action {
            Interruption::Terminate => Reason::Interruption,
            Interruption::Stop => Reason::Stop,
            Interruption::Hibernate => return self.freeze(),
        });
        let Some(leaving) = &mut self.leaving else { return };
        // A notice may come late: half of what is left is for the scripts then.
        leaving.evict_at = Some(deadline.checked_sub(RESERVE.min(left / 2)).unwrap_or(now));
        leaving.interrupt_at = Some(deadline.checked_sub(LAST_RESERVE.min(left / 4)).unwrap_or(now));
    }

    /// The machine is frozen, from now on, and goes on some day with this very process: nobody leaves. What its jobs
    /// were talking to will be gone by then.
    fn freeze(&mut self) {
        self.desk.evict("the machine is frozen");
        self.standing = Standing::Freezing { asleep: sys::asleep(), until: Instant::now() + FREEZING };
        self.slots.pause();
        self.generation.end(&self.slots);
    }

    fn rest(&mut self) {
        if matches!(self.standing, Standing::Resting) {
            return;
        }
        log::info!("the instance is in standby or in the warm pool; polling paused");
        self.standing = Standing::Resting;
        self.slots.pause();
        self.generation.end(&self.slots);
    }

    fn work(&mut self) {
        let before = std::mem::replace(&mut self.standing, Standing::Working);
        if matches!(before, Standing::Working) {
            return;
        }
        if matches!(before, Standing::Resting | Standing::Freezing { .. }) {
            log::info!("the instance is in service; polling resumed");
        }
        if self.leaving.is_none() {
            // It may have been frozen before it rested.
            self.desk.forgive();
        }
        if self.readiness != Readiness::Waiting {
            self.slots.go_on();
        }
        self.start_pollers();
    }
}
