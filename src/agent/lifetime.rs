//! How long an agent stays: MaxBuilds and the idle time-out. The clock is monotonic: it stands still while the machine
//! sleeps and does not follow when the time of day is set.

use std::time::Duration;

use super::slots::Slots;

/// Why an agent takes no more jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was asked to (SIGQUIT, SIGTERM, SIGINT).
    Signal,
    /// It took MaxBuilds jobs.
    MaxBuilds,
    /// No job came for the idle time-out.
    Idle,
}

impl Reason {
    /// The word for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::MaxBuilds => "max_builds",
            Self::Idle => "idle_timeout",
        }
    }
}

/// The bounds of an agent's life.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lifetime {
    /// Leave when no job has run for that long, over all slots.
    pub idle_timeout: Option<Duration>,
}

impl Lifetime {
    /// Whether it is time to leave, or else how long until it may be; `None` for the latter when only an event can
    /// tell.
    pub fn verdict(&self, slots: &Slots) -> Result<Reason, Option<Duration>> {
        if slots.is_spent() {
            return Ok(Reason::MaxBuilds);
        }
        let Some((timeout, idle)) = self.idle_timeout.zip(slots.idle_for()) else { return Err(None) };
        match timeout.checked_sub(idle) {
            None | Some(Duration::ZERO) => Ok(Reason::Idle),
            left => Err(left),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::slots::{RunnerBounds, RunnerKey};
    use crate::coordinator::Token;

    #[test]
    fn leaves_when_idle_for_long_enough_and_not_under_a_job() {
        let slots = Slots::new(2, None);
        let at_once = Lifetime { idle_timeout: Some(Duration::ZERO) };
        assert_eq!(at_once.verdict(&slots), Ok(Reason::Idle));
        let key = RunnerKey { url: String::new(), token: Token::new("a") };
        let job = slots.resume(key, 0);
        assert_eq!(at_once.verdict(&slots), Err(None));
        drop(job);
        let later = Lifetime { idle_timeout: Some(Duration::from_secs(3600)) };
        assert!(matches!(later.verdict(&slots), Err(Some(left)) if left > Duration::from_secs(3500)));
    }

    #[test]
    fn leaves_when_the_builds_are_spent() {
        let slots = Slots::new(1, Some(1));
        let bounds = RunnerBounds { limit: None, requests: 1, adaptive: false };
        let key = RunnerKey { url: String::new(), token: Token::new("a") };
        let mut permit = slots.acquire(&key, bounds, || false).expect("a permit");
        assert_eq!(Lifetime::default().verdict(&slots), Err(None));
        permit.begin_job();
        assert_eq!(Lifetime::default().verdict(&slots), Ok(Reason::MaxBuilds));
    }
}
