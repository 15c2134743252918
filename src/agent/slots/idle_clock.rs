//! The time without a job. The clock is stopped while a job runs or polling is paused.

use std::time::Duration;

/// A monotonic clock such as [`crate::sys::monotonic`].
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// Measures the idle time.
pub struct IdleClock {
    clock: Clock,
    /// Start of the current idle period; `None` while the clock is stopped.
    since: Option<Duration>,
    /// Idle time before the current period.
    before: Duration,
}

impl IdleClock {
    /// Creates a clock that runs.
    pub fn start(clock: Clock) -> Self {
        Self { since: Some(clock()), before: Duration::ZERO, clock }
    }

    /// The idle time.
    pub fn elapsed(&self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| (self.clock)().saturating_sub(since))
    }

    /// Stops the clock and sets it to zero.
    pub fn reset(&mut self) {
        (self.before, self.since) = (Duration::ZERO, None);
    }

    /// Stops the clock.
    pub fn stop(&mut self) {
        (self.before, self.since) = (self.elapsed(), None);
    }

    /// Starts the clock again.
    pub fn resume(&mut self) {
        (self.before, self.since) = (self.elapsed(), Some((self.clock)()));
    }
}
