//! Retries of calls to AWS.

use std::thread;
use std::time::{Duration, Instant};

use super::service_error::RequestFailure;
use crate::backoff::Backoff;

/// The delay of a retry is a random part of this back-off.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(20)).with_jitter(1.0);

/// Retries temporary failures for `timeout` in total, with exponential back-off and jitter.
pub fn retry_until<T>(
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T, RequestFailure>,
) -> Result<T, RequestFailure> {
    let began = Instant::now();
    let mut tries = 0;
    loop {
        let failure = match attempt() {
            Ok(answer) => return Ok(answer),
            Err(RequestFailure::Refused(problem)) if !problem.is_temporary() => {
                return Err(RequestFailure::Refused(problem));
            }
            Err(failure) => failure,
        };
        let wait = retry_delay(tries);
        tries += 1;
        if began.elapsed() + wait >= timeout {
            return Err(failure);
        }
        log::debug!("retrying a call to AWS wait_ms={} error={failure}", wait.as_millis());
        // No event announces that AWS answers again. A process that stops waits for no call longer than its timeout.
        thread::sleep(wait);
    }
}

/// The delay after `tries` failures: full jitter, so that clients that failed together do not retry together.
pub fn retry_delay(tries: u32) -> Duration {
    BACKOFF.delay(tries)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::service_error::ServiceError;
    use super::*;

    #[test]
    fn retries_end_with_the_timeout() {
        let tries = Cell::new(0);
        let busy = || {
            tries.set(tries.get() + 1);
            Err::<(), _>(RequestFailure::Refused(ServiceError::decode(503, None, "", None)))
        };
        assert!(retry_until(Duration::ZERO, busy).is_err());
        assert_eq!(tries.get(), 1);
        let second = || match tries.replace(tries.get() + 1) {
            1 => Err(RequestFailure::NoResponse("the connection broke".to_owned())),
            _ => Ok(tries.get()),
        };
        assert_eq!(retry_until(Duration::from_secs(60), second), Ok(3));
    }
}
