//! Simulates a fleet over a day: the manager's own decision code in virtual time, with a group that starts instances
//! after a boot time, and a GitLab whose jobs come from a load.

pub mod at;
pub mod load;
pub mod report;
mod world;

pub use world::{Day, Sample, simulate};

use std::time::Duration;

use jiff::Timestamp;

use crate::manager::scaling::Sizing;
use load::SimulatedJob;

/// The input of a simulation.
pub struct Scenario {
    /// The pool.
    pub sizing: Sizing,
    /// The maximum size of the group.
    pub group_maximum: Option<u32>,
    /// The start of the day.
    pub begins: Timestamp,
    /// The length of the simulation.
    pub length: Duration,
    /// The time from the start of an instance to the registration of its agent.
    pub boot: Duration,
    /// The jobs, sorted by the time at which they are created.
    pub jobs: Vec<SimulatedJob>,
}

#[cfg(test)]
mod tests;
