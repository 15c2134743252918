//! When a runner is refused again and again it rests (`unhealthy_requests_limit`, `unhealthy_interval`).

use std::time::{Duration, Instant};

/// The health of one runner. Only a refused token or a bad configuration is unhealthy: a server that is away is not.
#[derive(Debug)]
pub struct Health {
    limit: u32,
    interval: Duration,
    failures: u32,
    last_healthy: Instant,
}

impl Health {
    /// A runner that rests for `interval` after `limit` unhealthy results in a row.
    pub fn new(limit: u32, interval: Duration) -> Self {
        Self { limit: limit.max(1), interval, failures: 0, last_healthy: Instant::now() }
    }

    /// The server answered in a way that says nothing against this runner.
    pub fn healthy(&mut self) {
        self.failures = 0;
        self.last_healthy = Instant::now();
    }

    /// The runner was refused. Returns how long it rests now, if it does.
    pub fn unhealthy(&mut self) -> Option<Duration> {
        self.failures += 1;
        if self.failures < self.limit {
            return None;
        }
        self.failures = 0;
        let rest = self.interval.saturating_sub(self.last_healthy.elapsed());
        self.last_healthy = Instant::now() + rest;
        (!rest.is_zero()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_after_the_limit_and_starts_anew() {
        let mut health = Health::new(3, Duration::from_secs(3600));
        assert_eq!((health.unhealthy(), health.unhealthy()), (None, None));
        health.healthy();
        assert_eq!((health.unhealthy(), health.unhealthy()), (None, None));
        assert!(health.unhealthy().is_some_and(|rest| rest > Duration::from_secs(3500)));
        assert_eq!(health.unhealthy(), None);
    }
}
