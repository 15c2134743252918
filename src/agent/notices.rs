//! Notices from the cloud, and how the agent reacts to them.

use std::time::{Duration, Instant};

use super::{Agent, AgentEvent, Readiness};
use crate::instance::{Interruption, Notice, TargetState};
use crate::journal::shutdown::ShutdownReason;
use crate::sys;

/// Scripts are stopped this long before the machine is lost: time to kill them and to upload artifacts.
const EVICT_BEFORE_DEADLINE: Duration = Duration::from_secs(30);
/// Jobs are stopped this long before the machine is lost: time to send the log and the final state.
const INTERRUPT_BEFORE_DEADLINE: Duration = Duration::from_secs(8);
/// How long the first poll waits for the first target lifecycle state.
const FIRST_STATE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a machine may take to hibernate.
const HIBERNATION_TIMEOUT: Duration = Duration::from_secs(600);
/// Sleep of this length counts as hibernation; it is also the interval of the check.
const SLEEP_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Whether the state of the instance allows polling.
pub(super) enum Availability {
    Available,
    /// The target lifecycle state is not known yet. The agent waits for it until this time.
    Unknown(Instant),
    /// The instance is in standby or in a warm pool: the agent does not poll.
    Standby,
    /// The instance is about to hibernate, or has just resumed. The agent detects the hibernation by the time that the
    /// machine has slept.
    Hibernating {
        /// The time that the machine had slept when the notice came.
        asleep: Duration,
        /// If the machine has not hibernated by this time, the agent resumes work.
        until: Instant,
    },
}

impl Agent {
    /// Starts to watch for notices. On a known cloud, polling waits for the first target lifecycle state.
    pub(super) fn watch_instance(&mut self) {
        if self.instance.cloud_id().is_some() {
            self.availability = Availability::Unknown(Instant::now() + FIRST_STATE_TIMEOUT);
            self.slots.pause();
        }
        let events = self.events.clone();
        self.instance.watch(Box::new(move |notice| {
            let _ = events.send(AgentEvent::Notice(notice));
        }));
    }

    /// Checks the deadline of the first target lifecycle state and the sleep of the machine. Returns the time until the
    /// next check; `None` if no check is due.
    pub(super) fn check_availability(&mut self) -> Option<Duration> {
        let now = Instant::now();
        match self.availability {
            Availability::Unknown(until) if now >= until => {
                log::warn!("the metadata service did not return the target lifecycle state; polling starts without it");
                self.resume_work();
                Some(Duration::ZERO)
            }
            Availability::Unknown(until) => Some(until - now),
            Availability::Hibernating { asleep, until }
                if sys::suspended_time() > asleep + SLEEP_CHECK_INTERVAL || now >= until =>
            {
                self.resume_work();
                Some(Duration::ZERO)
            }
            // The kernel does not notify processes of a hibernation, so the agent compares the clocks with and without
            // sleep.
            Availability::Hibernating { .. } => Some(SLEEP_CHECK_INTERVAL),
            Availability::Available | Availability::Standby => None,
        }
    }

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
            "interruption notice: the cloud interrupts this instance action={} time_left={}s",
            action.as_str(),
            left.as_secs()
        );
        self.begin_shutdown(match action {
            Interruption::Terminate => ShutdownReason::Interruption,
            Interruption::Stop => ShutdownReason::CloudStop,
            Interruption::Hibernate => return self.prepare_hibernation(),
        });
        let Some(shutdown) = &mut self.shutdown else { return };
        // If a notice arrives late, scripts get half of the remaining time.
        let evict_at = deadline.checked_sub(EVICT_BEFORE_DEADLINE.min(left / 2)).unwrap_or(now);
        shutdown.interrupt(evict_at, deadline.checked_sub(INTERRUPT_BEFORE_DEADLINE.min(left / 4)).unwrap_or(now));
    }

    /// The machine hibernates and later resumes with this process, so the agent does not shut down. Running jobs will
    /// lose their connections, so the agent stops their scripts.
    fn prepare_hibernation(&mut self) {
        self.jobs.evict("the cloud hibernates the instance");
        self.availability =
            Availability::Hibernating { asleep: sys::suspended_time(), until: Instant::now() + HIBERNATION_TIMEOUT };
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
            // The machine may have hibernated before it entered standby.
            self.jobs.cancel_eviction();
        }
        if self.readiness != Readiness::Waiting {
            self.slots.unpause();
        }
        self.start_pollers();
    }
}
