//! What the machine's cloud says while the agent works, and what comes of it.

use std::time::{Duration, Instant};

use super::{Agent, Event};
use crate::instance::{Interruption, Notice, Target};
use crate::journal::leaving::Reason;

/// What scripts leave of the time before the machine is taken: to be killed, and for their artifacts to be handed over.
const RESERVE: Duration = Duration::from_secs(30);
/// What everything leaves of it: for the log and the final state.
const LAST_RESERVE: Duration = Duration::from_secs(8);
/// How long the first word of a known cloud is waited for before the first request.
const FIRST_WORD: Duration = Duration::from_secs(60);

/// Whether the agent may ask for jobs, as far as the machine is concerned.
pub(super) enum Standing {
    /// It may.
    Working,
    /// Its cloud has not said yet; until then at most.
    Unknown(Instant),
    /// It rests in a warm pool or beside its group: no request to GitLab.
    Resting,
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

    /// How long to wait for the first word; nothing is due while the machine rests.
    pub(super) fn look_after_standing(&mut self) -> Option<Duration> {
        let Standing::Unknown(until) = self.standing else { return None };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            log::warn!("the machine's cloud does not say what it is to do; taking jobs all the same");
            self.work();
            return None;
        }
        Some(left)
    }

    /// Takes in a notice.
    pub(super) fn hear(&mut self, notice: Notice) {
        match notice {
            Notice::Rebalance => self.begin_to_leave(Reason::Rebalance),
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
        self.begin_to_leave(match action {
            Interruption::Terminate => Reason::Interruption,
            Interruption::Stop | Interruption::Hibernate => Reason::Stop,
        });
        let Some(leaving) = &mut self.leaving else { return };
        // A notice may come late: half of what is left is for the scripts then.
        leaving.evict_at = Some(deadline.checked_sub(RESERVE.min(left / 2)).unwrap_or(now));
        leaving.interrupt_at = Some(deadline.checked_sub(LAST_RESERVE.min(left / 4)).unwrap_or(now));
        if action == Interruption::Hibernate {
            // It begins to freeze at once.
            leaving.evict_at = Some(now);
        }
    }

    fn rest(&mut self) {
        if matches!(self.standing, Standing::Resting) {
            return;
        }
        log::info!("the machine rests beside its group: no requests for now");
        self.standing = Standing::Resting;
        self.slots.pause();
        self.generation.end(&self.slots);
    }

    fn work(&mut self) {
        let before = std::mem::replace(&mut self.standing, Standing::Working);
        if matches!(before, Standing::Working) {
            return;
        }
        if matches!(before, Standing::Resting) {
            log::info!("the machine is called to work");
        }
        self.slots.go_on();
        self.start_pollers();
    }
}
