//! The time without a job, which stands still while a job runs or polling is paused.

use std::time::Duration;

/// A monotonic clock such as [`crate::sys::monotonic`].
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// Measures the idle time.
pub struct IdleClock {
    clock: Clock,
    /// Start of the current idle period; `None` while the time stands still.
    since: Option<Duration>,
    /// Idle time before that.
    before: Duration,
}

impl IdleClock {
    /// A running clock.
    pub fn start(clock: Clock) -> Self {
        Self { since: Some(clock()), before: Duration::ZERO, clock }
    }

    /// The idle time.
    pub fn elapsed(&self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| (self.clock)().saturating_sub(since))
    }

    /// Stands still at zero.
    pub fn reset(&mut self) {
        (self.before, self.since) = (Duration::ZERO, None);
    }

    /// Stands still.
    pub fn stop(&mut self) {
        (self.before, self.since) = (self.elapsed(), None);
    }

    /// Runs again.
    pub fn resume(&mut self) {
        (self.before, self.since) = (self.elapsed(), Some((self.clock)()));
    }
}
