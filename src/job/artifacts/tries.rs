//! How often a transfer of artifacts is tried, and how long to wait in between.

use std::time::Duration;

use crate::http::{self, is_retryable};

/// Tries when the server or the way there is out of order: it may be a restart, and the files exist only here.
const TRIES_OUT_OF_ORDER: u32 = 6;
/// Tries while the server says anything else (Runner API).
const TRIES: u32 = 3;

/// What came of a try that did not end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setback {
    /// No answer, or one that breaks off.
    Broken,
    /// This status.
    Status(u16),
}

/// The tries of one transfer.
pub struct Tries {
    /// Which try this is, from 1.
    made: u32,
    /// How often it was asked for in this try: like every call it is repeated while the server says that it cannot now.
    asked: u32,
}

impl Tries {
    /// Before the first try.
    pub fn new() -> Self {
        Self { made: 1, asked: 1 }
    }

    /// True until something went wrong.
    pub fn is_first(&self) -> bool {
        (self.made, self.asked) == (1, 1)
    }

    /// How long to wait before the next try; `None` when all are used up. `wish` is what the server asks for after so
    /// many repetitions.
    pub fn after(&mut self, setback: Setback, wish: impl Fn(u32) -> Duration) -> Option<Duration> {
        if let Setback::Status(status) = setback
            && is_retryable(status)
            && self.asked < http::TRIES
        {
            self.asked += 1;
            return Some(wish(self.asked - 2));
        }
        let most = match setback {
            Setback::Broken | Setback::Status(503) => TRIES_OUT_OF_ORDER,
            Setback::Status(_) => TRIES,
        };
        if self.made >= most {
            return None;
        }
        let pause = Duration::from_secs(1 << (self.made - 1).min(4));
        (self.made, self.asked) = (self.made + 1, 1);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(setback: Setback) -> (u32, u64) {
        let (mut tries, mut count, mut waited) = (Tries::new(), 1, 0);
        while let Some(wait) = tries.after(setback, |_| Duration::ZERO) {
            count += 1;
            waited += wait.as_secs();
        }
        (count, waited)
    }

    #[test]
    fn a_server_that_restarts_is_waited_for() {
        assert_eq!(requests(Setback::Status(400)), (3, 3));
        assert_eq!(requests(Setback::Status(200)), (3, 3));
        assert_eq!(requests(Setback::Status(500)), (3 * 5, 3));
        assert_eq!(requests(Setback::Status(503)), (6 * 5, 31));
        assert_eq!(requests(Setback::Broken), (6, 31));
    }

    #[test]
    fn the_servers_wish_holds_within_a_try() {
        let mut tries = Tries::new();
        assert!(tries.is_first());
        assert_eq!(tries.after(Setback::Status(429), |_| Duration::from_secs(77)), Some(Duration::from_secs(77)));
        assert!(!tries.is_first());
    }
}
