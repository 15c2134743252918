//! Retries: the retryable failures, the time limits and the delays.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::backoff::Backoff;

/// The number of attempts of one request while the response has a retryable status (GitLab Runner API).
pub const MAX_ATTEMPTS: u32 = 5;
/// The longest delay that the agent accepts from a server.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(15 * 60);

/// The delays if the server requests none.
const UNREQUESTED_DELAYS: Backoff = Backoff::new(MIN_DELAY, Duration::from_secs(60)).with_jitter(1.0);
/// The shortest of these delays.
const MIN_DELAY: Duration = Duration::from_millis(100);

/// Whether the same request may get another response later.
pub fn is_retryable(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504) || status >= 512
}

/// The delay that a response requests: `RateLimit-ResetTime`, else `Retry-After`.
pub fn requested_delay(reset_time: Option<&str>, retry_after: Option<&str>) -> Option<Duration> {
    let reset = reset_time.and_then(http_date).and_then(|at| at.duration_since(SystemTime::now()).ok());
    let after = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    let asked = [reset, after].into_iter().flatten().find(|wait| !wait.is_zero());
    asked.map(|wait| wait.min(MAX_RETRY_AFTER))
}

/// The delay before the next attempt: the requested delay, else a random delay whose maximum grows with each attempt.
pub fn delay(asked: Option<Duration>, attempt: u32) -> Duration {
    asked.unwrap_or_else(|| UNREQUESTED_DELAYS.delay(attempt).max(MIN_DELAY))
}

/// Parses an HTTP date (`Sun, 06 Nov 1994 08:49:37 GMT`, RFC 9110).
pub fn http_date(text: &str) -> Option<SystemTime> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.trim()).ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(time.as_second()).ok()?))
}

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No response, or an incomplete one.
    Broken,
    /// A response with this status.
    Status(u16),
}

/// Limits the retries of one operation: one time limit for all temporary failures (no response, 408, 429, 5xx), in any
/// order.
#[derive(Debug)]
pub struct RetryBudget {
    budget: Duration,
    first_failure: Option<Instant>,
    attempts: u32,
}

impl RetryBudget {
    /// The minimum number of attempts, even if each takes longer than the time limit; and the number of attempts if the
    /// response is not retryable.
    const MIN_ATTEMPTS: u32 = 3;
    const DELAYS: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10)).with_jitter(0.25);

    /// A budget whose time starts with the first failure.
    pub fn new(budget: Duration) -> Self {
        Self { budget, first_failure: None, attempts: 1 }
    }

    /// Whether no attempt has failed yet.
    pub fn is_first(&self) -> bool {
        self.attempts == 1
    }

    /// The delay before the next attempt; `None` if the time is used up. `asked` is the delay that the server requests.
    pub fn after(&mut self, failure: Failure, asked: Option<Duration>) -> Option<Duration> {
        self.after_at(Instant::now(), failure, asked)
    }

    fn after_at(&mut self, now: Instant, failure: Failure, asked: Option<Duration>) -> Option<Duration> {
        let began = *self.first_failure.get_or_insert(now);
        let is_temporary = match failure {
            Failure::Broken => true,
            Failure::Status(status) => is_retryable(status),
        };
        let may_retry = is_temporary && now.saturating_duration_since(began) < self.budget;
        if self.attempts >= Self::MIN_ATTEMPTS && !may_retry {
            return None;
        }
        let delay = Self::DELAYS.delay(self.attempts - 1);
        self.attempts += 1;
        Some(asked.unwrap_or(delay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of attempts and the seconds until a limit of one minute is used up, if every attempt takes `each` and
    /// fails in this way.
    fn used_up(each: Duration, failure: impl Fn(u32) -> Failure) -> (u32, u64) {
        let began = Instant::now();
        let (mut budget, mut attempts, mut now) = (RetryBudget::new(Duration::from_secs(60)), 1, began);
        while let Some(wait) = budget.after_at(now, failure(attempts), None) {
            attempts += 1;
            now += wait + each;
        }
        (attempts, now.duration_since(began).as_secs())
    }

    #[test]
    fn retries_every_temporary_failure_for_the_same_time() {
        let mixed = |attempt| [Failure::Status(500), Failure::Broken, Failure::Status(429)][attempt as usize % 3];
        for failure in [&|_| Failure::Status(500), &|_| Failure::Status(503), &|_| Failure::Broken, &mixed]
            as [&dyn Fn(u32) -> Failure; 4]
        {
            let (attempts, seconds) = used_up(Duration::ZERO, failure);
            assert!((8..=12).contains(&attempts) && (60..=71).contains(&seconds), "{attempts} {seconds}");
        }
        assert_eq!(used_up(Duration::ZERO, |_| Failure::Status(400)).0, 3);
        assert_eq!(used_up(Duration::from_secs(600), |_| Failure::Broken).0, 3, "slow attempts");
    }

    #[test]
    fn the_delay_requested_by_the_server_takes_precedence() {
        let mut budget = RetryBudget::new(Duration::from_secs(60));
        assert!(budget.is_first());
        let asked = Some(Duration::from_secs(77));
        assert_eq!(budget.after(Failure::Status(429), asked), asked);
        assert!(!budget.is_first());
    }

    #[test]
    fn prefers_the_delay_requested_by_the_server() {
        let soon = SystemTime::now() + Duration::from_secs(120);
        let date = jiff::fmt::rfc2822::DateTimePrinter::new()
            .timestamp_to_rfc9110_string(
                &jiff::Timestamp::from_second(
                    soon.duration_since(UNIX_EPOCH).expect("the clock must be after 1970").as_secs().cast_signed(),
                )
                .expect("a time"),
            )
            .expect("a date");
        let waited = delay(requested_delay(Some(&date), Some("7")), 0);
        assert!((110..=120).contains(&waited.as_secs()), "{waited:?}");
        assert_eq!(delay(requested_delay(Some("nonsense"), Some("7")), 0), Duration::from_secs(7));
        let own = delay(requested_delay(None, Some("Sun, 06 Nov 1994 08:49:37 GMT")), 3);
        assert!((Duration::from_millis(100)..=Duration::from_millis(800)).contains(&own), "{own:?}");
    }
}
