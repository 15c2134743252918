//! Terminates the instances of a pool at the end of the manager.

use std::thread;

use crate::instance::CapacityChange;
use crate::manager::engine::{Engine, ErrorKind, Group};
use crate::manager::pool::PoolSettings;
use crate::manager::workload::{Snapshot, Workload};

/// Terminates the instances of a pool that have no job, for `delete_instances_on_shutdown`, with retries. Returns how
/// many calls failed in the last attempt.
pub fn delete_instances(pool: &PoolSettings, workload: &dyn Workload, engine: &dyn Engine) -> usize {
    let (interval, retries) = pool.shutdown_deletion;
    let mut failed = 0;
    for attempt in 0..=retries {
        if attempt > 0 {
            // No event announces that the cloud accepts the calls. A second stop signal ends the process during this
            // wait.
            thread::sleep(interval);
        }
        let group = match engine.group() {
            Ok(group) => group,
            Err(error) => {
                log::warn!("cannot list the instances to terminate pool={} error={error}", pool.name);
                continue;
            }
        };
        failed = usize::from(!withdraw_starts(&pool.name, &group, engine));
        failed += terminate_without_job(&pool.name, &group, &workload.snapshot(), engine);
        if failed == 0 {
            break;
        }
    }
    failed
}

/// Withdraws the request for instances that the group has not started yet: no manager would terminate them. Returns
/// false if that failed.
fn withdraw_starts(pool: &str, group: &Group, engine: &dyn Engine) -> bool {
    let listed = group.members.iter().filter(|member| member.state.counts()).count();
    let kept = u32::try_from(listed).unwrap_or(u32::MAX).max(group.min_size);
    // Without the protection of new instances, the group could choose a running one to terminate.
    if group.desired <= kept || !group.protects_new {
        return true;
    }
    let result = engine.set_desired_capacity(kept);
    match &result {
        Ok(()) => log::info!("desired capacity set at shutdown pool={pool} from={} to={kept}", group.desired),
        Err(error) => log::warn!("cannot set the desired capacity at shutdown pool={pool} to={kept} error={error}"),
    }
    result.is_ok()
}

/// Terminates each instance without a job once. Returns how many could not be terminated.
fn terminate_without_job(pool: &str, group: &Group, snapshot: &Snapshot, engine: &dyn Engine) -> usize {
    let may_have_job =
        |instance: &str| snapshot.agents.iter().any(|agent| agent.instance == instance && agent.state.may_have_job());
    let mut failed = 0;
    for member in group.members.iter().filter(|member| member.state.counts() && !may_have_job(&member.instance)) {
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
