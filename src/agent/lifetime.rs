//! The lifetime of an agent: `MaxBuilds`, the maximum age and the idle timeout.
//!
//! Idle time is measured with `CLOCK_MONOTONIC`, which stops while the machine sleeps: a machine that wakes up polls
//! before it counts as idle. The age is measured with `CLOCK_BOOTTIME`, which includes sleep. Neither clock follows
//! changes of the time of day; only the periods of the configuration do.

use std::time::Duration;

use jiff::Timestamp;

use super::slots::Slots;
use crate::config::lifetime::LifetimeBounds;
use crate::journal::shutdown::ShutdownReason;
use crate::sys::BootTime;

/// Random part of the limits: the idle timeout is up to this part longer and the maximum age up to half of it shorter,
/// so that instances that started together do not shut down together.
const JITTER: f64 = 0.2;
/// An agent is idle only after a poll returned no job; a poll takes less than this.
const MAX_POLL_TIME: Duration = Duration::from_secs(120);
/// Minimum time that a new instance waits for its first job, if the idle time comes from the tables of a fleet.
const FIRST_JOB_TIMEOUT: Duration = Duration::from_secs(120);
/// The minimum delay before the agent repeats a terminate request that the group has refused.
const RETRY_AFTER_REFUSAL: Duration = Duration::from_secs(60);

/// The lifetime of an agent.
#[derive(Clone, Debug)]
pub struct Lifetime {
    /// The limits of the configuration and the command line.
    pub bounds: LifetimeBounds,
    /// Start of the lifetime.
    pub began: BootTime,
    /// The random share of [`JITTER`], from 0 to 1.
    jitter_fraction: f64,
    /// The group has refused to terminate the idle instance.
    refused: bool,
}

impl Lifetime {
    /// A lifetime that started at `began`.
    pub fn new(bounds: LifetimeBounds, began: BootTime) -> Self {
        Self { bounds, began, jitter_fraction: crate::random::fraction(), refused: false }
    }

    /// Records that the group has refused to terminate the instance. The agent retries after another idle timeout.
    pub fn set_refused(&mut self) {
        self.refused = true;
        self.jitter_fraction = crate::random::fraction();
    }

    /// The reason to shut down now. Otherwise the time until the next check, or `None` if only an event can cause a
    /// shutdown. `boottime` is the time since the boot, `now` the time of day.
    pub fn shutdown_reason(
        &self,
        slots: &Slots,
        boottime: BootTime,
        now: Timestamp,
    ) -> Result<ShutdownReason, Option<Duration>> {
        if slots.are_builds_used_up() {
            return Ok(ShutdownReason::MaxBuilds);
        }
        let (age, idle) = (self.until_max_age(boottime), self.until_idle(slots, now));
        if age == Some(Duration::ZERO) {
            return Ok(ShutdownReason::MaxAge);
        }
        if idle == Some(Duration::ZERO) {
            return Ok(ShutdownReason::Idle);
        }
        // Periods begin and end at full minutes, and the time of day may change.
        let minute = self.bounds.has_periods().then(|| Duration::from_secs(60 - now.as_second().rem_euclid(60) as u64));
        Err([age, idle, minute].into_iter().flatten().min())
    }

    fn until_max_age(&self, boottime: BootTime) -> Option<Duration> {
        let max_age = self.bounds.max_age?.mul_f64(1.0 - self.jitter_fraction * JITTER / 2.0);
        Some(max_age.saturating_sub(boottime.since(self.began)))
    }

    fn until_idle(&self, slots: &Slots, now: Timestamp) -> Option<Duration> {
        let (timeout, idle) = (self.bounds.idle_timeout(now)?, slots.idle_for()?);
        let left = |timeout: Duration| timeout.saturating_sub(idle);
        // An instance that has just booted was started for a job, and `IdleTime = 0` of a fleet's tables means the time
        // after a job.
        let is_new = self.bounds.idle_is_of_fleet && !slots.has_had_job();
        let timeout = if is_new { timeout.max(FIRST_JOB_TIMEOUT) } else { timeout };
        if self.refused && timeout < Duration::from_secs(1) {
            return Some(left(RETRY_AFTER_REFUSAL));
        }
        let until = left(timeout.mul_f64(1.0 + self.jitter_fraction * JITTER));
        Some(if until.is_zero() && !slots.has_polled() { left(MAX_POLL_TIME) } else { until })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::agent::slots::{RunnerBounds, RunnerKey};
    use crate::config::lifetime::IdleTimes;

    const HOUR: u64 = 3600;
    const BOUNDS: RunnerBounds = RunnerBounds { limit: None, requests: 1, adaptive: false };

    fn key() -> RunnerKey {
        RunnerKey { url: String::new(), short_token: "a".to_owned() }
    }

    fn idle_after(seconds: u64) -> Lifetime {
        let idle = vec![IdleTimes::always(Duration::from_secs(seconds))];
        Lifetime::new(LifetimeBounds { idle, ..LifetimeBounds::default() }, BootTime::default())
    }

    fn verdict(lifetime: &Lifetime, slots: &Slots) -> Result<ShutdownReason, Option<Duration>> {
        lifetime.shutdown_reason(slots, BootTime::default(), Timestamp::now())
    }

    #[test]
    fn shuts_down_when_idle_but_not_during_a_job() {
        let slots = Slots::new(2, None, 0);
        assert_eq!(verdict(&idle_after(0), &slots), Ok(ShutdownReason::Idle));
        let job = slots.occupy(key(), 0);
        assert_eq!(verdict(&idle_after(0), &slots), Err(None));
        drop(job);
        for _ in 0..20 {
            let left = verdict(&idle_after(HOUR), &slots)
                .expect_err("the instance must stay")
                .expect("a time until the idle timeout");
            assert!((HOUR - 1..=HOUR * 12 / 10).contains(&left.as_secs()), "{left:?}");
        }
    }

    #[test]
    fn is_not_idle_before_a_request_returned_no_job() {
        let slots = Slots::new(1, None, 0);
        slots.set_polling_runners(1);
        assert!(matches!(verdict(&idle_after(0), &slots), Err(Some(left)) if left <= MAX_POLL_TIME));
        drop(slots.acquire(&key(), BOUNDS, || false).expect("a permit"));
        assert_eq!(verdict(&idle_after(0), &slots), Ok(ShutdownReason::Idle));
    }

    /// A machine whose clocks a test controls.
    struct Machine {
        awake: Arc<Mutex<Duration>>,
        asleep: Duration,
        time_of_day: Timestamp,
        slots: Arc<Slots>,
    }

    impl Machine {
        fn boot() -> Self {
            let awake = Arc::new(Mutex::new(Duration::from_secs(100)));
            let clock = Arc::clone(&awake);
            let clock = Box::new(move || *clock.lock().expect("no panic"));
            let time_of_day = "2026-07-10T12:00:00Z".parse().expect("a time");
            Self { awake, asleep: Duration::ZERO, time_of_day, slots: Slots::with_clock(1, None, 0, clock) }
        }

        fn pass(&mut self, seconds: u64) {
            *self.awake.lock().expect("no panic") += Duration::from_secs(seconds);
            self.set_time_of_day(seconds as i64);
        }

        fn sleep(&mut self, seconds: u64) {
            self.asleep += Duration::from_secs(seconds);
            self.set_time_of_day(seconds as i64);
        }

        fn set_time_of_day(&mut self, ahead: i64) {
            self.time_of_day += jiff::SignedDuration::from_secs(ahead);
        }

        fn verdict(&self, lifetime: &Lifetime) -> Result<ShutdownReason, Option<Duration>> {
            let boottime = BootTime::default() + *self.awake.lock().expect("no panic") + self.asleep;
            lifetime.shutdown_reason(&self.slots, boottime, self.time_of_day)
        }
    }

    #[test]
    fn setting_the_time_of_day_does_not_change_the_idle_time() {
        for ahead in [12 * 3600, -12 * 3600, 400 * 24 * 3600] {
            let (mut machine, lifetime) = (Machine::boot(), Lifetime { jitter_fraction: 0.0, ..idle_after(600) });
            machine.pass(300);
            machine.set_time_of_day(ahead);
            assert_eq!(machine.verdict(&lifetime), Err(Some(Duration::from_secs(300))), "{ahead}");
            machine.pass(300);
            assert_eq!(machine.verdict(&lifetime), Ok(ShutdownReason::Idle), "{ahead}");
        }
    }

    #[test]
    fn after_sleep_the_rest_of_the_idle_timeout_applies() {
        let (mut machine, lifetime) = (Machine::boot(), Lifetime { jitter_fraction: 0.0, ..idle_after(600) });
        machine.pass(300);
        machine.sleep(12 * HOUR);
        assert_eq!(machine.verdict(&lifetime), Err(Some(Duration::from_secs(300))));
        machine.pass(300);
        assert_eq!(machine.verdict(&lifetime), Ok(ShutdownReason::Idle));
    }

    #[test]
    fn sleep_during_a_job_is_no_idle_time() {
        let (mut machine, lifetime) = (Machine::boot(), Lifetime { jitter_fraction: 0.0, ..idle_after(600) });
        machine.pass(300);
        let job = machine.slots.occupy(key(), 0);
        machine.sleep(12 * HOUR);
        machine.pass(HOUR);
        machine.set_time_of_day(-7200);
        assert_eq!(machine.verdict(&lifetime), Err(None));
        drop(job);
        assert_eq!(machine.verdict(&lifetime), Err(Some(Duration::from_secs(600))));
    }

    #[test]
    fn standby_and_sleep_count_for_the_age_but_not_as_idle_time() {
        let bounds = LifetimeBounds { max_age: Some(Duration::from_secs(10 * HOUR)), ..idle_after(600).bounds };
        let (mut machine, lifetime) =
            (Machine::boot(), Lifetime { jitter_fraction: 0.0, ..Lifetime::new(bounds, BootTime::default()) });
        machine.slots.pause();
        machine.pass(HOUR);
        machine.sleep(HOUR);
        machine.slots.unpause();
        assert_eq!(machine.verdict(&lifetime), Err(Some(Duration::from_secs(600))));
        machine.sleep(9 * HOUR);
        assert_eq!(machine.verdict(&lifetime), Ok(ShutdownReason::MaxAge));
    }

    #[test]
    fn a_refused_shutdown_is_not_retried_at_once() {
        let slots = Slots::new(1, None, 0);
        let mut lifetime = idle_after(0);
        lifetime.set_refused();
        assert!(matches!(verdict(&lifetime, &slots), Err(Some(left)) if left > Duration::from_secs(50)));
    }

    #[test]
    fn shuts_down_after_max_builds() {
        let slots = Slots::new(1, Some(1), 0);
        let lifetime = Lifetime::new(LifetimeBounds::default(), BootTime::default());
        let mut permit = slots.acquire(&key(), BOUNDS, || false).expect("a permit");
        assert_eq!(verdict(&lifetime, &slots), Err(None));
        permit.begin_job();
        assert_eq!(verdict(&lifetime, &slots), Ok(ShutdownReason::MaxBuilds));
    }

    #[test]
    fn shuts_down_at_the_maximum_age_even_during_a_job() {
        let max_age = Some(Duration::from_secs(10 * HOUR));
        let lifetime = Lifetime::new(LifetimeBounds { max_age, ..LifetimeBounds::default() }, BootTime::from_nanos(5));
        let slots = Slots::new(1, None, 0);
        let _job = slots.occupy(key(), 0);
        let at = |hours: u64| {
            let boottime = BootTime::from_nanos(5) + Duration::from_secs(hours * HOUR);
            lifetime.shutdown_reason(&slots, boottime, Timestamp::now())
        };
        assert!(matches!(at(1), Err(Some(left)) if (8 * HOUR..=9 * HOUR).contains(&left.as_secs())), "{:?}", at(1));
        assert!(at(8).is_err());
        assert_eq!(at(10), Ok(ShutdownReason::MaxAge));
    }

    #[test]
    fn a_new_instance_of_a_fleet_waits_for_its_first_job() {
        let (mut machine, mut lifetime) = (Machine::boot(), Lifetime { jitter_fraction: 0.0, ..idle_after(0) });
        assert_eq!(machine.verdict(&lifetime), Ok(ShutdownReason::Idle), "an own `idle_timeout` means what it says");
        lifetime.bounds.idle_is_of_fleet = true;
        machine.pass(100);
        assert_eq!(machine.verdict(&lifetime), Err(Some(Duration::from_secs(20))));
        let mut job = machine.slots.acquire(&key(), BOUNDS, || false).expect("a permit");
        assert_eq!(machine.verdict(&lifetime), Err(Some(Duration::from_secs(20))), "a request is no job");
        job.begin_job();
        assert_eq!(machine.verdict(&lifetime), Err(None));
        drop(job);
        machine.slots.set_polling_runners(0);
        assert_eq!(machine.verdict(&lifetime), Ok(ShutdownReason::Idle));
    }

    #[test]
    fn periods_are_checked_every_minute() {
        let text = "concurrent = 1\n[[runners]]\nexecutor = \"shell\"\n[runners.machine]\nIdleTime = 3600\n\
                    [[runners.machine.autoscaling]]\nPeriods = [\"* * * * * sat,sun *\"]\nTimezone = \"UTC\"\nIdleTime = 0\n";
        let config = crate::config::Config::parse(std::path::Path::new("config.toml"), text).expect("a configuration");
        let lifetime = Lifetime::new(config.lifetime, BootTime::default());
        let slots: Arc<Slots> = Slots::new(1, None, 1);
        let at = |time: &str| lifetime.shutdown_reason(&slots, BootTime::default(), time.parse().expect("a time"));
        assert_eq!(at("2026-07-10T23:59:15Z"), Err(Some(Duration::from_secs(45))));
        assert_eq!(at("2026-07-11T00:00:00Z"), Ok(ShutdownReason::Idle));
        // The time of day was set back, so the machine is not idle any more.
        assert_eq!(at("2026-07-10T12:00:00Z"), Err(Some(Duration::from_secs(60))));
    }
}
