//! Delays between retries, which grow with each failure and have a random part.

use std::time::Duration;

use crate::random;

/// Exponential back-off: the delay starts with `first` and doubles with each failure, up to `longest`.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    /// The share of a delay that is random, from 0 to 1.
    jitter: f64,
}

impl Backoff {
    /// A back-off without jitter.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, jitter: 0.0 }
    }

    /// Makes the last part of each delay random (1.0 for the whole delay), so that clients that failed together do not
    /// retry together.
    pub const fn with_jitter(self, jitter: f64) -> Self {
        Self { jitter, ..self }
    }

    /// The delay before the next attempt, if the last attempt failed after `failures` earlier failures.
    pub fn delay(self, failures: u32) -> Duration {
        let delay = self.first.saturating_mul(1 << failures.min(20)).min(self.longest);
        if self.jitter == 0.0 { delay } else { delay.mul_f64(1.0 - self.jitter * random::fraction()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_limit() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!([0, 1, 3, 6, 40].map(|failures| backoff.delay(failures).as_secs()), [1, 2, 8, 60, 60]);
    }

    #[test]
    fn only_the_last_part_of_a_delay_is_random() {
        let backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(10)).with_jitter(0.8);
        for _ in 0..100 {
            let delay = backoff.delay(0).as_secs_f64();
            assert!((2.0..=10.0).contains(&delay), "{delay}");
        }
    }
}
