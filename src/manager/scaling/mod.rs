//! The size of a pool: decisions in pure code with a time that the caller passes, and the thread that carries them out.
//!
//! The [`planner`] sees jobs, agents and the group, and names the next steps with their reasons. It asks nothing and
//! waits for nothing, so that `mayfly manager simulate` can run it over a day in virtual time. The [`scaler`] feeds it and
//! calls the engine.

#[cfg(test)]
mod configurations;
pub mod growth;
pub mod observation;
pub mod planner;
pub mod policy;
mod removal;
pub mod scaler;
mod tables;
#[cfg(test)]
pub mod testing;
pub mod wanted;
pub mod watchdog;

use std::time::Duration;

use growth::Growth;
use policy::Policies;

use super::pool::PoolSettings;

/// The settings that decide the size of a pool.
#[derive(Clone, Debug)]
pub struct Sizing {
    /// Jobs at once on an instance, at least 1.
    pub capacity: u32,
    /// Instances in every state; `None` for no limit.
    pub max_instances: Option<u32>,
    /// Jobs before an instance leaves; `None` for no limit.
    pub max_use_count: Option<u32>,
    /// Jobs that run or are held at once.
    pub max_jobs: u32,
    /// The limits of growth.
    pub growth: Growth,
    /// The idle capacity by time.
    pub policies: Policies,
    /// The time within which a running instance must register.
    pub registration_timeout: Duration,
    /// Instances in a row that do not register before growth stops.
    pub failure_threshold: u32,
    /// Before a failed termination is tried again.
    pub deletion_retry: Duration,
}

impl Sizing {
    /// The settings of a pool.
    pub fn of(pool: &PoolSettings) -> Self {
        let limit = pool.runner.limit.unwrap_or(u32::MAX);
        Self {
            capacity: pool.capacity_per_instance.max(1),
            max_instances: pool.max_instances,
            max_use_count: pool.max_use_count,
            max_jobs: pool.concurrent.min(limit),
            growth: Growth::of(pool),
            policies: Policies::of(&pool.table),
            registration_timeout: pool.registration_timeout,
            failure_threshold: pool.failure_threshold,
            deletion_retry: pool.deletion_retry_interval,
        }
    }
}
