//! Selects the idle target for a time. The policies of both autoscalers of gitlab-runner are normalised into one list.
//!
//! One formula serves both dialects: `clamp(round(factor x active), floor, cap)`. The dialect decides the rounding and
//! the bounds (see [`super::tables`]).

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::period::{Period, Zone};

/// The tolerance of a product before rounding: 1.1 x 10 is 11, not 12.
const EPSILON: f64 = 1e-9;

/// The policies of a pool. The last one whose period contains the current minute applies.
#[derive(Clone, Debug)]
pub struct Policies {
    /// The policy outside of all periods.
    pub otherwise: ScalingPolicy,
    /// The policies with periods, in the order of the configuration file.
    pub windows: Vec<Window>,
}

/// A policy and the periods in which it applies.
#[derive(Clone, Debug)]
pub struct Window {
    /// The policy applies in any of these periods.
    pub periods: Vec<Period>,
    /// The time zone of the periods.
    pub zone: Zone,
    /// The policy at these times.
    pub policy: ScalingPolicy,
}

/// The idle capacity, its idle time, and the mode of polling.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalingPolicy {
    /// The name in logs and on pages: "policy 2 (`* 9-17 * * mon-fri`, Europe/Amsterdam)".
    pub label: String,
    /// The idle capacity.
    pub idle: IdleTarget,
    /// The time after which a surplus idle instance is terminated.
    pub idle_time: Duration,
    /// The mode of polling.
    pub intake: Intake,
}

/// The condition under which the manager polls for jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// The manager polls only while an idle agent waits.
    Relay,
    /// The manager also polls without an idle agent: it holds the job and starts an instance for it.
    HoldAhead,
}

/// The rounding of a fraction of an idle slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Rounds down, as docker+machine does.
    Down,
    /// Rounds up, as the autoscaler does.
    Up,
}

/// The idle capacity, in jobs, as a function of the number of active jobs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IdleTarget {
    /// The minimum.
    pub floor: u32,
    /// The idle capacity per active job; 0 for none.
    pub factor: f64,
    /// The maximum of the factor's result; `None` for no maximum.
    pub cap: Option<u32>,
    /// The rounding of the factor's result.
    pub rounding: Rounding,
}

impl Policies {
    /// The policy that applies at this time.
    pub fn at(&self, now: Timestamp) -> &ScalingPolicy {
        let applies = |window: &&Window| {
            let clock = window.zone.clock(now);
            window.periods.iter().any(|period| period.contains(clock))
        };
        self.windows.iter().rev().find(applies).map_or(&self.otherwise, |window| &window.policy)
    }

    /// All policies; the first is the one outside of all periods.
    pub fn all(&self) -> impl Iterator<Item = &ScalingPolicy> {
        std::iter::once(&self.otherwise).chain(self.windows.iter().map(|window| &window.policy))
    }
}

impl IdleTarget {
    /// No idle capacity.
    pub const NONE: Self = Self { floor: 0, factor: 0.0, cap: None, rounding: Rounding::Up };

    /// The idle capacity, in jobs, while `active` jobs run or wait for an instance.
    pub fn at(&self, active: u32) -> u32 {
        if self.factor <= 0.0 {
            return self.floor;
        }
        let scaled = self.factor * f64::from(active);
        let scaled = match self.rounding {
            Rounding::Down => (scaled + EPSILON).floor(),
            Rounding::Up => (scaled - EPSILON).ceil(),
        };
        // The cast saturates, so a huge factor gives the largest number.
        self.floor.max((scaled as u32).min(self.cap.unwrap_or(u32::MAX)))
    }
}

impl fmt::Display for IdleTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.factor <= 0.0 {
            return write!(f, "{}", self.floor);
        }
        write!(f, "{} x active, at least {}", self.factor, self.floor)?;
        self.cap.map_or(Ok(()), |cap| write!(f, ", at most {cap}"))
    }
}

impl fmt::Display for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relay => "relay",
            Self::HoldAhead => "hold-ahead",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_is_rounded_by_dialect_and_noise_is_not() {
        let target = |factor, rounding| IdleTarget { floor: 0, factor, cap: None, rounding };
        assert_eq!((target(1.5, Rounding::Down).at(5), target(1.5, Rounding::Up).at(5)), (7, 8));
        assert_eq!((target(1.1, Rounding::Down).at(10), target(1.1, Rounding::Up).at(10)), (11, 11));
        assert_eq!((target(0.7, Rounding::Down).at(10), target(0.7, Rounding::Up).at(10)), (7, 7));
        assert_eq!(target(1e30, Rounding::Up).at(3), u32::MAX);
    }

    #[test]
    fn the_floor_is_above_the_cap() {
        let target = IdleTarget { floor: 5, factor: 2.0, cap: Some(3), rounding: Rounding::Up };
        assert_eq!((target.at(0), target.at(10)), (5, 5));
    }
}
