//! Clocks that cannot be set.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot, including suspend (`CLOCK_BOOTTIME`): the clock for deadlines. It cannot be set, and all
/// processes share it.
pub fn boottime() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_or(0, |time| (time.tv_sec().unsigned_abs()) * 1_000_000_000 + time.tv_nsec().unsigned_abs())
}

/// The time in this boot during which the machine was suspended.
pub fn asleep() -> Duration {
    Duration::from_nanos(boottime()).saturating_sub(monotonic())
}

/// The time in this boot during which the machine was awake.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The CPU time of the calling thread.
pub fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_runs() {
        let first = boottime();
        assert!(first > 0 && boottime() >= first);
    }
}
