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
    /// Whether a request has returned without a job in the idle time.
    has_polled: bool,
}

impl IdleClock {
    /// Creates a clock that runs.
    pub fn start(clock: Clock) -> Self {
        Self { since: Some(clock()), before: Duration::ZERO, has_polled: false, clock }
    }

    /// The idle time.
    pub fn elapsed(&self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| (self.clock)().saturating_sub(since))
    }

    /// Records that a request has returned without a job.
    pub fn record_poll(&mut self) {
        self.has_polled = true;
    }

    /// Whether a request has returned without a job in the idle time.
    pub fn has_polled(&self) -> bool {
        self.has_polled
    }

    /// Stops the clock and sets it to zero.
    pub fn reset(&mut self) {
        (self.before, self.since, self.has_polled) = (Duration::ZERO, None, false);
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
