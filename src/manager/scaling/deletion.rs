//! Terminates the instances of a pool at the end of the manager.

use std::collections::BTreeSet;
use std::thread;

use crate::instance::CapacityChange;
use crate::manager::engine::{Engine, ErrorKind};
use crate::manager::pool::PoolSettings;
use crate::manager::workload::{AgentState, Workload};

/// Terminates the instances of a pool that have no job, for `delete_instances_on_shutdown`. Returns how many could not
/// be terminated.
pub fn delete_instances(pool: &PoolSettings, workload: &dyn Workload, engine: &dyn Engine) -> usize {
    let (interval, retries) = pool.shutdown_deletion;
    let mut left: BTreeSet<String> = BTreeSet::new();
    for attempt in 0..=retries {
        if attempt > 0 {
            thread::sleep(interval);
        }
        let group = match engine.group() {
            Ok(group) => group,
            Err(error) => {
                log::warn!("cannot list the instances to terminate pool={} error=\"{error}\"", pool.name);
                continue;
            }
        };
        let snapshot = workload.snapshot();
        let busy = |instance: &str| {
            snapshot.agents.iter().any(|agent| agent.instance == instance && agent.state == AgentState::Busy)
        };
        left = group
            .members
            .iter()
            .filter(|member| member.state.counts() && !busy(&member.instance))
            .map(|member| member.instance.clone())
            .collect();
        left.retain(|instance| {
            let outcome = engine.terminate(instance, CapacityChange::Decrement);
            match &outcome {
                Ok(()) => log::info!("instance terminated at shutdown pool={} instance={instance}", pool.name),
                Err(error) => {
                    log::warn!("instance not terminated pool={} instance={instance} error=\"{error}\"", pool.name);
                }
            }
            outcome.is_err_and(|error| error.kind != ErrorKind::NoInstance)
        });
        if left.is_empty() {
            return 0;
        }
    }
    left.len()
}
