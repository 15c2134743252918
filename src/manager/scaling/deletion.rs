//! Terminates the instances of a pool at the end of the manager.

use std::thread;

use crate::instance::CapacityChange;
use crate::manager::engine::{Engine, ErrorKind, Group};
use crate::manager::pool::PoolSettings;
use crate::manager::workload::{AgentState, Snapshot, Workload};

/// Terminates the instances of a pool that have no job, for `delete_instances_on_shutdown`, with retries. Returns how
/// many could not be terminated.
pub fn delete_instances(pool: &PoolSettings, workload: &dyn Workload, engine: &dyn Engine) -> usize {
    let (interval, retries) = pool.shutdown_deletion;
    let mut failed = 0;
    for attempt in 0..=retries {
        if attempt > 0 {
            // No event announces that the cloud accepts the calls. A second stop signal ends the process during this
            // wait.
            thread::sleep(interval);
        }
        match engine.group() {
            Ok(group) => failed = terminate_without_job(&pool.name, &group, &workload.snapshot(), engine),
            Err(error) => {
                log::warn!("cannot list the instances to terminate pool={} error={error}", pool.name);
                continue;
            }
        }
        if failed == 0 {
            break;
        }
    }
    failed
}

/// Terminates each instance without a job once. Returns how many could not be terminated.
fn terminate_without_job(pool: &str, group: &Group, snapshot: &Snapshot, engine: &dyn Engine) -> usize {
    let is_busy = |instance: &str| {
        snapshot.agents.iter().any(|agent| agent.instance == instance && agent.state == AgentState::Busy)
    };
    let mut failed = 0;
    for member in group.members.iter().filter(|member| member.state.counts() && !is_busy(&member.instance)) {
        let instance = member.instance.as_str();
        match engine.terminate(instance, CapacityChange::Decrement) {
            Ok(()) => log::info!("instance terminated at shutdown pool={pool} instance={instance}"),
            Err(error) => {
                log::warn!("cannot terminate an instance pool={pool} instance={instance} error={error}");
                failed += usize::from(error.kind != ErrorKind::NoInstance);
            }
        }
    }
    failed
}
