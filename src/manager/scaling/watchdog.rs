//! Checks that started instances register. An instance that does not register is replaced. After several such instances
//! in a row, growth stops (a circuit breaker).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::manager::engine::{FailureKind, MemberState};

/// The first pause of growth, after which one instance is started as a test; doubled with each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(5 * 60);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);
/// The maximum time until an instance runs, as a multiple of the registration timeout.
const START_TIMEOUT_FACTOR: u32 = 3;

/// Watches the instances of one pool. The caller passes the time.
#[derive(Clone, Debug)]
pub struct Watchdog {
    timeout: Duration,
    /// Failures in a row after which growth stops.
    threshold: u32,
    boots: BTreeMap<String, Boot>,
    /// The number of consecutive instances that did not register or could not be started.
    failures: u32,
    breaker: Breaker,
    /// The time at which the breaker last opened.
    opened_at: Duration,
    pause: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Boot {
    origin: Origin,
    first_seen: Duration,
    running_since: Option<Duration>,
}

/// Whether an instance started while this manager watched the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The first list of the group contained the instance. It may have registered with an earlier manager, and left.
    Earlier,
    /// The instance started later.
    Watched,
}

/// Whether the pool may grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Breaker {
    /// Growth is allowed.
    Closed,
    /// Growth is stopped until this time.
    Open {
        /// The time of the next attempt.
        until: Duration,
        /// The reason.
        cause: String,
    },
    /// One instance is started as a test.
    HalfOpen {
        /// Why growth was stopped.
        cause: String,
    },
}

/// The reaction to an instance that did not register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// Start a replacement.
    Replace,
    /// Too many instances in a row failed: stop growth.
    Stop,
}

impl Watchdog {
    /// A watchdog without instances. A running instance must register within `timeout`; growth stops after `threshold`
    /// consecutive failures.
    pub fn new(timeout: Duration, threshold: u32) -> Self {
        Self {
            timeout,
            threshold,
            boots: BTreeMap::new(),
            failures: 0,
            breaker: Breaker::Closed,
            opened_at: Duration::ZERO,
            pause: FIRST_PAUSE,
        }
    }

    /// Replaces the limits.
    pub fn change(&mut self, timeout: Duration, threshold: u32) {
        self.timeout = timeout;
        self.threshold = threshold;
    }

    /// Records an instance of the group that has not registered.
    pub fn record_unregistered(&mut self, instance: &str, state: MemberState, origin: Origin, now: Duration) {
        let boot =
            self.boots.entry(instance.to_owned()).or_insert(Boot { origin, first_seen: now, running_since: None });
        if state == MemberState::Running {
            boot.running_since.get_or_insert(now);
        }
    }

    /// Records a registration. Returns the time since the start of the instance, if it is known.
    pub fn record_registration(&mut self, instance: &str, now: Duration) -> Option<Duration> {
        let boot = self.boots.remove(instance);
        // An instance that started before the breaker opened does not prove that the next one will register.
        let closes = match &self.breaker {
            Breaker::Closed => true,
            Breaker::HalfOpen { .. } => boot.is_none_or(|boot| boot.first_seen >= self.opened_at),
            Breaker::Open { .. } => boot.is_some_and(|boot| boot.first_seen >= self.opened_at),
        };
        if closes {
            self.failures = 0;
            self.breaker = Breaker::Closed;
            self.pause = FIRST_PAUSE;
        }
        boot.map(|boot| now.saturating_sub(boot.first_seen))
    }

    /// Removes instances that no longer exist.
    pub fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.boots.retain(|instance, _| exists(instance));
    }

    /// The instances whose registration is overdue, and for how long they have run or started.
    pub fn overdue(&self, now: Duration) -> Vec<(String, Duration)> {
        let overdue_time = |boot: &Boot| {
            let (since, limit) = match boot.running_since {
                Some(since) => (since, self.timeout),
                None => (boot.first_seen, self.timeout * START_TIMEOUT_FACTOR),
            };
            let time = now.saturating_sub(since);
            (time >= limit).then_some(time)
        };
        self.boots.iter().filter_map(|(instance, boot)| Some((instance.clone(), overdue_time(boot)?))).collect()
    }

    /// The time until an instance will be overdue, or until the pause of growth ends.
    pub fn until_next(&self, now: Duration) -> Option<Duration> {
        let due = |boot: &Boot| {
            boot.running_since
                .map_or(boot.first_seen + self.timeout * START_TIMEOUT_FACTOR, |since| since + self.timeout)
        };
        let breaker = match &self.breaker {
            Breaker::Open { until, .. } => Some(*until),
            _ => None,
        };
        self.boots.values().map(due).chain(breaker).min().map(|due| due.saturating_sub(now))
    }

    /// Records that an instance did not register and is terminated. Ignores an instance that is not watched.
    pub fn record_overdue(&mut self, instance: &str, now: Duration, cause: String) -> Overdue {
        let boot = self.boots.remove(instance);
        if boot.is_none_or(|boot| boot.origin == Origin::Earlier) {
            return Overdue::Replace;
        }
        self.failures += 1;
        if self.failures < self.threshold && self.breaker == Breaker::Closed {
            return Overdue::Replace;
        }
        self.open(now, cause);
        Overdue::Stop
    }

    /// Records that the group could not start an instance. Returns true if that opened the breaker.
    pub fn record_failed_start(&mut self, now: Duration, kind: FailureKind, cause: String) -> bool {
        self.failures += 1;
        let opens = kind.needs_operator() || self.failures >= self.threshold || self.breaker != Breaker::Closed;
        if opens && !matches!(self.breaker, Breaker::Open { .. }) {
            self.open(now, cause);
            return true;
        }
        false
    }

    fn open(&mut self, now: Duration, cause: String) {
        if let Breaker::HalfOpen { .. } = self.breaker {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        self.opened_at = now;
        self.breaker = Breaker::Open { until: now + self.pause, cause };
    }

    /// The state of the breaker; it becomes half open when the pause is over.
    pub fn breaker(&mut self, now: Duration) -> &Breaker {
        if let Breaker::Open { until, cause } = &self.breaker
            && *until <= now
        {
            self.breaker = Breaker::HalfOpen { cause: cause.clone() };
        }
        &self.breaker
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn fails(watchdog: &mut Watchdog, instance: &str, now: Duration) -> Overdue {
        watchdog.record_unregistered(instance, MemberState::Running, Origin::Watched, now);
        assert_eq!(watchdog.overdue(now + 4 * MINUTE), []);
        assert_eq!(watchdog.overdue(now + 5 * MINUTE), [(instance.to_owned(), 5 * MINUTE)]);
        watchdog.record_overdue(instance, now + 5 * MINUTE, "the image is broken".to_owned())
    }

    #[test]
    fn the_third_failure_in_a_row_opens_the_breaker() {
        let mut watchdog = Watchdog::new(5 * MINUTE, 3);
        assert_eq!(fails(&mut watchdog, "a", Duration::ZERO), Overdue::Replace);
        assert_eq!(fails(&mut watchdog, "b", 5 * MINUTE), Overdue::Replace);
        assert_eq!(fails(&mut watchdog, "c", 10 * MINUTE), Overdue::Stop);
        let open = Breaker::Open { until: 20 * MINUTE, cause: "the image is broken".to_owned() };
        assert_eq!(watchdog.breaker(15 * MINUTE), &open);
        // The test instance after the pause fails: the next pause is twice as long.
        assert!(matches!(watchdog.breaker(20 * MINUTE), Breaker::HalfOpen { .. }));
        assert_eq!(fails(&mut watchdog, "d", 20 * MINUTE), Overdue::Stop);
        assert!(matches!(watchdog.breaker(25 * MINUTE), Breaker::Open { until, .. } if *until == 35 * MINUTE));
        // A registration closes the breaker.
        watchdog.record_unregistered("e", MemberState::Creating, Origin::Watched, 35 * MINUTE);
        assert_eq!(watchdog.record_registration("e", 36 * MINUTE), Some(MINUTE));
        assert_eq!(watchdog.breaker(36 * MINUTE), &Breaker::Closed);
        assert_eq!(fails(&mut watchdog, "f", 40 * MINUTE), Overdue::Replace);
    }

    #[test]
    fn a_registration_between_two_failures_resets_the_count() {
        let mut watchdog = Watchdog::new(5 * MINUTE, 3);
        for _ in 0..5 {
            assert_eq!(fails(&mut watchdog, "a", Duration::ZERO), Overdue::Replace);
            watchdog.record_registration("b", MINUTE);
        }
    }

    #[test]
    fn an_instance_that_may_have_left_an_earlier_manager_is_no_failure() {
        let mut watchdog = Watchdog::new(5 * MINUTE, 1);
        watchdog.record_unregistered("a", MemberState::Running, Origin::Earlier, Duration::ZERO);
        assert_eq!(watchdog.overdue(5 * MINUTE).len(), 1);
        assert_eq!(watchdog.record_overdue("a", 5 * MINUTE, "no agent".to_owned()), Overdue::Replace);
        assert_eq!(watchdog.breaker(5 * MINUTE), &Breaker::Closed);
    }

    #[test]
    fn a_quota_opens_the_breaker_at_once_and_a_lack_of_capacity_at_the_third_time() {
        let mut watchdog = Watchdog::new(MINUTE, 3);
        assert!(watchdog.record_failed_start(Duration::ZERO, FailureKind::Quota, "quota".to_owned()));
        assert!(!watchdog.record_failed_start(Duration::ZERO, FailureKind::Quota, "quota".to_owned()), "reported once");
        let mut watchdog = Watchdog::new(MINUTE, 3);
        let times = [0, 1, 2]
            .map(|_| watchdog.record_failed_start(Duration::ZERO, FailureKind::Capacity, "capacity".to_owned()));
        assert_eq!(times, [false, false, true]);
    }

    #[test]
    fn an_instance_may_start_for_longer_than_it_may_run_unregistered() {
        let mut watchdog = Watchdog::new(MINUTE, 3);
        watchdog.record_unregistered("a", MemberState::Creating, Origin::Watched, Duration::ZERO);
        assert_eq!((watchdog.overdue(2 * MINUTE), watchdog.until_next(2 * MINUTE)), (vec![], Some(MINUTE)));
        assert_eq!(watchdog.overdue(3 * MINUTE).len(), 1);
        watchdog.retain(|_| false);
        assert_eq!(watchdog.overdue(3 * MINUTE), []);
    }
}
