//! Limits the growth of a fleet: instances that start at the same time, and new instances per second.

use std::time::Duration;

/// The limits of growth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GrowthLimits {
    /// The number of instances that may start at the same time (`MaxGrowthRate`); `None` for no limit.
    pub in_flight: Option<u32>,
    /// The number of new instances per second (`scale_throttle.limit`); `None` for no limit.
    pub rate: Option<f64>,
    /// The number of new instances at once (`scale_throttle.burst`).
    pub burst: u32,
}

/// A token bucket. The caller passes the time.
#[derive(Clone, Debug)]
pub struct Throttle {
    limits: GrowthLimits,
    tokens: f64,
    filled_at: Duration,
}

impl GrowthLimits {
    /// No limit.
    pub const UNLIMITED: Self = Self { in_flight: None, rate: None, burst: u32::MAX };
}

impl Throttle {
    /// Creates a full bucket.
    pub fn new(growth: GrowthLimits) -> Self {
        Self { limits: growth, tokens: f64::from(growth.burst), filled_at: Duration::ZERO }
    }

    /// Replaces the limits. The tokens in the bucket stay.
    pub fn change(&mut self, growth: GrowthLimits) {
        self.tokens = self.tokens.min(f64::from(growth.burst));
        self.limits = growth;
    }

    /// The number of instances that may be added now, while `starting` have not registered yet.
    pub fn allowed(&mut self, now: Duration, starting: u32) -> u32 {
        let in_flight = self.limits.in_flight.map_or(u32::MAX, |limit| limit.saturating_sub(starting));
        let Some(rate) = self.limits.rate else { return in_flight };
        let passed = now.saturating_sub(self.filled_at).as_secs_f64();
        self.filled_at = now;
        self.tokens = (self.tokens + passed * rate).min(f64::from(self.limits.burst.max(1)));
        // The cast truncates the fraction.
        in_flight.min((self.tokens + 1e-9) as u32)
    }

    /// Removes tokens for instances that were added.
    pub fn take(&mut self, instances: u32) {
        if self.limits.rate.is_some() {
            self.tokens = (self.tokens - f64::from(instances)).max(0.0);
        }
    }

    /// The time until the bucket has a token again after `instances` were taken; `None` if the rate is not the limit.
    pub fn until_next(&self, instances: u32) -> Option<Duration> {
        let rate = self.limits.rate.filter(|rate| *rate > 0.0)?;
        let missing = 1.0 - (self.tokens - f64::from(instances)).max(0.0);
        (missing > 0.0).then(|| Duration::try_from_secs_f64(missing / rate).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills_again() {
        let mut throttle = Throttle::new(GrowthLimits { in_flight: None, rate: Some(0.5), burst: 3 });
        assert_eq!(throttle.allowed(Duration::ZERO, 100), 3);
        throttle.take(3);
        assert_eq!(throttle.allowed(Duration::from_secs(1), 0), 0);
        assert_eq!(throttle.until_next(0), Some(Duration::from_secs(1)));
        assert_eq!(throttle.allowed(Duration::from_secs(2), 0), 1);
        assert_eq!(throttle.until_next(0), None, "there is a token");
        assert_eq!(throttle.until_next(1), Some(Duration::from_secs(2)));
        assert_eq!(throttle.allowed(Duration::from_secs(3600), 0), 3);
    }

    #[test]
    fn instances_that_start_count_against_the_growth_rate() {
        let mut throttle = Throttle::new(GrowthLimits { in_flight: Some(2), ..GrowthLimits::UNLIMITED });
        assert_eq!([0, 1, 2, 9].map(|starting| throttle.allowed(Duration::ZERO, starting)), [2, 1, 0, 0]);
        throttle.take(2);
        assert_eq!(throttle.allowed(Duration::ZERO, 0), 2);
        assert_eq!(throttle.until_next(1), None);
    }
}
