//! Decides the size of a pool, and changes it. The decisions get the time from the caller.
//!
//! The [`planner`] gets the jobs, the agents and the group, and returns the next steps with their reasons. It does no
//! I/O and never blocks, so `mayfly manager simulate` can run it over a day in virtual time. The [`scaler`] supplies
//! its input and calls the engine.

#[cfg(test)]
mod configurations;
mod counts;
pub mod deletion;
mod desired;
pub mod growth;
pub mod observation;
pub mod plan;
pub mod planner;
pub mod policy;
mod removal;
mod rounds;
pub mod scaler;
mod tables;
#[cfg(test)]
pub mod testing;
pub mod wanted;
pub mod watchdog;

use std::time::Duration;

use growth::GrowthLimits;
use policy::Policies;

use super::pool::PoolSettings;

/// The settings that decide the size of a pool.
#[derive(Clone, Debug)]
pub struct Sizing {
    /// The number of concurrent jobs on an instance, at least 1.
    pub capacity: u32,
    /// The maximum number of instances, in any state; `None` for no limit.
    pub max_instances: Option<u32>,
    /// The number of jobs after which an instance is replaced; `None` for no limit.
    pub max_use_count: Option<u32>,
    /// The maximum number of jobs that run or are held.
    pub max_jobs: u32,
    /// The limits of growth.
    pub growth: GrowthLimits,
    /// The idle capacity by time.
    pub policies: Policies,
    /// The time within which a running instance must register.
    pub registration_timeout: Duration,
    /// The number of consecutive instances without a registration after which growth stops.
    pub failure_threshold: u32,
    /// The delay before a failed termination is retried.
    pub deletion_retry: Duration,
}

impl Sizing {
    /// The settings of a pool.
    pub fn from_pool(pool: &PoolSettings) -> Self {
        let limit = pool.runner.limit.unwrap_or(u32::MAX);
        Self {
            capacity: pool.capacity_per_instance.max(1),
            max_instances: pool.max_instances,
            max_use_count: pool.max_use_count,
            max_jobs: pool.concurrent.min(limit),
            growth: GrowthLimits::from_pool(pool),
            policies: Policies::from_table(&pool.table),
            registration_timeout: pool.registration_timeout,
            failure_threshold: pool.failure_threshold,
            deletion_retry: pool.deletion_retry_interval,
        }
    }
}
