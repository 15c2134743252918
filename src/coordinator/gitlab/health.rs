//! Slows down polling: for a runner that GitLab rejects (`unhealthy_requests_limit`, `unhealthy_interval`), and for a
//! server that does not answer.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::coordinator::OUTAGE_RETRY;
use crate::sync;

/// Failed polls in a row, by server.
static OUTAGES: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

/// Records that a server answered a poll.
pub fn server_answered(server: &str) {
    sync::lock(&OUTAGES).remove(server);
}

/// Records a failed poll; returns the minimum delay before the next one, for all pollers of the server.
pub fn server_failed(server: &str) -> Duration {
    let mut outages = sync::lock(&OUTAGES);
    let failures = outages.entry(server.to_owned()).or_default();
    let wait = OUTAGE_RETRY.delay(*failures);
    *failures = failures.saturating_add(1);
    wait
}

/// The health of one runner. Only a rejected token or an unusable configuration counts as unhealthy, not an unreachable
/// server.
#[derive(Debug)]
pub struct ServerHealth {
    limit: u32,
    interval: Duration,
    failures: u32,
    last_healthy: Instant,
}

impl ServerHealth {
    /// Polling of the runner pauses for `interval` after `limit` unhealthy results in a row.
    pub fn new(limit: u32, interval: Duration) -> Self {
        Self { limit: limit.max(1), interval, failures: 0, last_healthy: Instant::now() }
    }

    /// Records a response that does not reject the runner.
    pub fn record_healthy(&mut self) {
        self.failures = 0;
        self.last_healthy = Instant::now();
    }

    /// Records a rejection. Returns the length of the pause, if one begins.
    pub fn record_rejection(&mut self) -> Option<Duration> {
        self.failures += 1;
        if self.failures < self.limit {
            return None;
        }
        self.failures = 0;
        let pause = self.interval.saturating_sub(self.last_healthy.elapsed());
        self.last_healthy = Instant::now() + pause;
        (!pause.is_zero()).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_minute_while_a_server_fails_and_are_reset_by_a_response() {
        let server = "http://outage.test";
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            let wait = server_failed(server);
            let max = Duration::from_secs(seconds);
            assert!(wait >= max / 2 && wait <= max, "{wait:?} of {seconds}");
        }
        assert!(server_failed("http://other.test") <= Duration::from_secs(1));
        server_answered(server);
        assert!(server_failed(server) <= Duration::from_secs(1));
    }

    #[test]
    fn pauses_after_the_limit_and_then_counts_from_zero() {
        let mut health = ServerHealth::new(3, Duration::from_secs(3600));
        assert_eq!((health.record_rejection(), health.record_rejection()), (None, None));
        health.record_healthy();
        assert_eq!((health.record_rejection(), health.record_rejection()), (None, None));
        assert!(health.record_rejection().is_some_and(|rest| rest > Duration::from_secs(3500)));
        assert_eq!(health.record_rejection(), None);
    }
}
