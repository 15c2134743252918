//! Warnings of `lint` and `check` about the settings of a pool, and of the manager's start about its group.

use std::sync::Arc;

use super::engine::{Check, CheckResult, Engine};
use super::pool::{EngineSettings, PoolSettings};
use super::scaling::Sizing;
use crate::config::fleet::FleetTable;
use crate::sync;

const STACK: usize = 512 * 1024;

/// Warnings about the settings of a pool, each with a remedy.
pub fn warnings(pool: &PoolSettings) -> Vec<String> {
    let sizing = Sizing::from_pool(pool);
    let room = pool.max_instances.map(|most| most.saturating_mul(sizing.capacity));
    let mut found = policy_warnings(pool, &sizing, room);
    found.extend(table_warnings(&pool.table));
    if pool.instance_acquire_timeout < pool.registration_timeout {
        found.push(format!(
            "`instance_acquire_timeout` is {} s, shorter than the {} s in which an instance may register: a held job may \
             fail while its instance boots",
            pool.instance_acquire_timeout.as_secs(),
            pool.registration_timeout.as_secs()
        ));
    }
    if pool.runner.tls.cert_file.is_some() || pool.runner.tls.key_file.is_some() {
        found.push(
            "`tls-cert-file` and `tls-key-file` are used by the manager alone; the key never leaves it, so each agent that \
             reports to GitLab with a client certificate needs both keys in its own file"
                .to_owned(),
        );
    }
    if let Some(room) = room.filter(|room| sizing.max_jobs < *room) {
        found.push(format!(
            "`concurrent` or `limit` allows {} jobs, but the instances have room for {room}; raise them, or lower {}",
            sizing.max_jobs,
            limit_name(pool)
        ));
    }
    found
}

/// `room` is the number of jobs that the pool can have at once, if that is limited.
fn policy_warnings(pool: &PoolSettings, sizing: &Sizing, room: Option<u32>) -> Vec<String> {
    let mut found = Vec::new();
    for policy in sizing.policies.all() {
        if let Some(room) = room.filter(|room| policy.idle.floor > *room) {
            found.push(format!(
                "{}: the idle capacity is {} jobs, but {room} is the most that the pool can have; raise {}, or lower the \
                 idle capacity",
                policy.label,
                policy.idle.floor,
                limit_name(pool)
            ));
        }
        if policy.idle_time.is_zero() && policy.idle.floor == 0 {
            found.push(format!(
                "{}: the idle time is 0, so that each instance leaves right after its jobs; write an idle time to reuse \
                 instances",
                policy.label
            ));
        }
    }
    found
}

fn table_warnings(table: &FleetTable) -> Vec<String> {
    let mut found = Vec::new();
    match table {
        FleetTable::Autoscaler(table) => {
            for (at, policy) in table.policy.iter().enumerate() {
                if policy.preemptive_mode == Some(true) && policy.idle_count == 0 {
                    found.push(format!(
                        "policy {}: `preemptive_mode = true` without `idle_count` would never start an instance; jobs are \
                         held instead",
                        at + 1
                    ));
                }
                if policy.scale_factor_limit > 0 && policy.scale_factor <= 0.0 {
                    found.push(format!("policy {}: `scale_factor_limit` has no effect without `scale_factor`", at + 1));
                }
            }
            if table.capacity_per_instance == 0 {
                found.push("`capacity_per_instance` is missing; an instance runs one job at a time".to_owned());
            }
        }
        FleetTable::Machine(table) => {
            if table.idle_count_min > 0 && table.idle_scale_factor <= 0.0 {
                found.push("`IdleCountMin` has no effect without `IdleScaleFactor`".to_owned());
            }
        }
    }
    found
}

/// Logs the problems of a pool's group, from a separate thread because the calls to the cloud are slow. An operator's
/// program has no settings to check.
pub fn log_faults_of_group(pool: &Arc<PoolSettings>, engine: &Arc<dyn Engine>) {
    if matches!(pool.engine, EngineSettings::Command(_)) {
        return;
    }
    let (settings, engine) = (Arc::clone(pool), Arc::clone(engine));
    let check = move || {
        for Check { subject, result, text } in engine.check(settings.max_instances) {
            if result != CheckResult::Passed {
                log::warn!("problem with the group pool={} subject=\"{subject}\" problem={text}", settings.name);
            }
        }
    };
    if let Err(error) = sync::spawn(format!("check-{}", pool.name), STACK, check) {
        log::warn!("cannot check the group pool={} error={error}", pool.name);
    }
}

fn limit_name(pool: &PoolSettings) -> &'static str {
    match pool.table {
        FleetTable::Autoscaler(_) => "`max_instances`",
        FleetTable::Machine(_) => "`limit`",
    }
}

#[cfg(test)]
mod tests {
    use crate::manager::scaling::testing::pool;

    fn warnings(executor: &str, runner: &str, table: &str) -> String {
        super::warnings(&pool(executor, runner, table)).join("\n")
    }

    #[test]
    fn a_usual_pool_has_none() {
        let table = "capacity_per_instance = 1\nmax_instances = 10\n[[runners.autoscaler.policy]]\nidle_count = 2\n";
        assert_eq!(warnings("docker-autoscaler", "", table), "");
        assert_eq!(warnings("docker+machine", "limit = 10\n", "IdleCount = 2\nIdleTime = 600\n"), "");
    }

    #[test]
    fn what_contradicts_itself_is_named() {
        let table = "max_instances = 2\ninstance_acquire_timeout = \"1m\"\n\
                     [[runners.autoscaler.policy]]\nidle_count = 5\nscale_factor_limit = 3\n\
                     [[runners.autoscaler.policy]]\npreemptive_mode = true\nidle_time = \"0s\"\n";
        let printed = warnings("docker-autoscaler", "", table);
        for part in [
            "the idle capacity is 5 jobs, but 2 is the most",
            "`preemptive_mode = true` without `idle_count` would never start an instance",
            "policy 1: `scale_factor_limit` has no effect",
            "`capacity_per_instance` is missing",
            "`instance_acquire_timeout` is 60 s",
            "the idle time is 0",
        ] {
            assert!(printed.contains(part), "{part}: {printed}");
        }
        let printed =
            warnings("instance", "tls-cert-file = \"/c\"\ntls-key-file = \"/k\"\n", "capacity_per_instance = 1\n");
        assert!(printed.contains("needs both keys in its own file"), "{printed}");
        let printed = warnings("docker+machine", "limit = 50\n", "IdleCountMin = 3\nIdleTime = 60\n");
        assert!(printed.contains("`IdleCountMin` has no effect"), "{printed}");
        assert!(printed.contains("allows 40 jobs, but the instances have room for 50"), "{printed}");
    }
}
