//! Clocks that cannot be set, and the time of day in whole seconds.

use std::ops::Add;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Seconds since the epoch; zero for an earlier time.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The present time in seconds since the epoch.
pub fn unix_now() -> u64 {
    unix_seconds(SystemTime::now())
}

/// A time of this boot, including suspend (`CLOCK_BOOTTIME`): the clock for deadlines. It cannot be set, and all
/// processes share it. In files, it is a number of nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(u64);

impl BootTime {
    pub fn now() -> Self {
        Self(
            clock_gettime(ClockId::CLOCK_BOOTTIME)
                .map_or(0, |time| (time.tv_sec().unsigned_abs()) * 1_000_000_000 + time.tv_nsec().unsigned_abs()),
        )
    }

    /// The time this many nanoseconds after the boot.
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time since `earlier`; zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The time from `self` to now; zero if `self` is in the future.
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// The time from now to `self`; zero if `self` is in the past.
    pub fn time_left(self) -> Duration {
        self.since(Self::now())
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The time in this boot during which the machine was suspended.
pub fn suspended_time() -> Duration {
    Duration::from_nanos(BootTime::now().0).saturating_sub(monotonic())
}

/// The time in this boot during which the machine was awake.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The CPU time of the calling thread.
pub fn thread_cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_runs() {
        let first = BootTime::now();
        assert!(first > BootTime::default() && BootTime::now() >= first);
    }

    #[test]
    fn times_do_not_overflow() {
        let (early, late) = (BootTime::from_nanos(1), BootTime::from_nanos(u64::MAX));
        assert_eq!((early.since(late), late.since(early)), (Duration::ZERO, Duration::from_nanos(u64::MAX - 1)));
        assert_eq!(late + Duration::from_secs(1), late);
        assert_eq!(early + Duration::MAX, late);
    }
}
