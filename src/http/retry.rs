//! How long to wait before a request is made again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::sys;

/// Tries of one call, when the server answers that it cannot now (GitLab Runner API).
pub const TRIES: u32 = 5;

/// Whether an answer may be another one if asked again.
pub fn is_retryable(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504) || status >= 512
}

/// The wait before the next try: `RateLimit-ResetTime`, then `Retry-After`, then a random time that grows.
pub fn wait(reset_time: Option<&str>, retry_after: Option<&str>, attempt: u32) -> Duration {
    let reset = reset_time.and_then(http_date).and_then(|at| at.duration_since(SystemTime::now()).ok());
    let after = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    let asked = [reset, after].into_iter().flatten().find(|wait| !wait.is_zero());
    asked.map_or_else(|| jittered(Backoff::RETRY.at(attempt)), |wait| wait.min(Duration::from_secs(15 * 60)))
}

/// A time between 100 milliseconds and `most`.
fn jittered(most: Duration) -> Duration {
    let least = Duration::from_millis(100);
    least + most.saturating_sub(least).mul_f64(sys::random_fraction())
}

/// Waits that double.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
}

impl Backoff {
    const RETRY: Self = Self::new(Duration::from_millis(100), Duration::from_secs(60));

    /// From `first`, doubled each time, up to `most`.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most }
    }

    /// The wait after `attempt` failures before it (0 for the first).
    pub fn at(self, attempt: u32) -> Duration {
        self.first.saturating_mul(1 << attempt.min(20)).min(self.most)
    }
}

/// A date as HTTP writes it (`Sun, 06 Nov 1994 08:49:37 GMT`, RFC 9110).
pub fn http_date(text: &str) -> Option<SystemTime> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.trim()).ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(time.as_second()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_servers_word_first() {
        let soon = SystemTime::now() + Duration::from_secs(120);
        let date = jiff::fmt::rfc2822::DateTimePrinter::new()
            .timestamp_to_rfc9110_string(
                &jiff::Timestamp::from_second(soon.duration_since(UNIX_EPOCH).expect("now").as_secs().cast_signed())
                    .expect("a time"),
            )
            .expect("a date");
        let waited = wait(Some(&date), Some("7"), 0);
        assert!((110..=120).contains(&waited.as_secs()), "{waited:?}");
        assert_eq!(wait(Some("nonsense"), Some("7"), 0), Duration::from_secs(7));
        let own = wait(None, Some("Sun, 06 Nov 1994 08:49:37 GMT"), 3);
        assert!((Duration::from_millis(100)..=Duration::from_millis(800)).contains(&own), "{own:?}");
    }

    #[test]
    fn grows_to_its_bound() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!([0, 1, 3, 6, 40].map(|attempt| backoff.at(attempt).as_secs()), [1, 2, 8, 60, 60]);
    }
}
