//! The metrics of a manager.

use super::Workloads;
use super::board::{PoolStatus, STATES, StatusBoard, states};
use crate::manager::engine::{FailureKind, Group};
use crate::manager::workload::Snapshot;
use crate::monitor::text::{Histogram, MetricKind, Page};
use crate::monitor::write_process;

/// Every call has a metric from 0 on, because an alert on an increase needs the previous 0.
const CALLS: [&str; 8] = ["list", "set_target", "terminate", "ended", "failures", "hook", "gitlab", "sts"];

/// All metrics in the text format.
pub fn write(board: &StatusBoard, workloads: &Workloads) -> String {
    let pools: Vec<(&str, Snapshot)> =
        workloads.iter().map(|(pool, workload)| (pool.as_str(), workload.snapshot())).collect();
    let mut page = Page::default();
    page.version();
    write_instances(&mut page, board, &pools);
    write_jobs(&mut page, &pools);
    write_wanted(&mut page, board, &pools);
    write_times(&mut page, board, &pools);
    write_failures(&mut page, board, &pools);
    write_process(&mut page);
    page.finish()
}

type Pools<'a> = [(&'a str, Snapshot)];

fn write_instances(page: &mut Page, board: &StatusBoard, pools: &Pools<'_>) {
    let mut instances = page.metric("mayfly_manager_instances", MetricKind::Gauge, "Instances of the pool, by state.");
    for (pool, snapshot) in pools {
        board.read_pool(pool, |status| {
            let all = states(status.group.as_ref(), snapshot);
            for state in STATES {
                let count = all.iter().filter(|(_, other)| *other == state).count();
                instances.sample(&[("pool", pool), ("state", state)], count as f64);
            }
        });
    }
    type GroupValue = fn(&Group) -> Option<u32>;
    let metrics: [(&'static str, &str, GroupValue); 3] = [
        ("mayfly_manager_group_desired", "Desired capacity of the pool's group.", |group| Some(group.desired)),
        ("mayfly_manager_group_minimum", "Minimum size of the pool's group.", |group| Some(group.min_size)),
        ("mayfly_manager_group_maximum", "Maximum size of the pool's group, where there is one.", |group| {
            group.max_size
        }),
    ];
    for (name, help, value_of) in metrics {
        let mut metric = page.metric(name, MetricKind::Gauge, help);
        for (pool, _) in pools {
            board.read_pool(pool, |status| {
                if let Some(value) = status.group.as_ref().and_then(value_of) {
                    metric.sample(&[("pool", pool)], f64::from(value));
                }
            });
        }
    }
}

fn write_jobs(page: &mut Page, pools: &Pools<'_>) {
    let help = "Jobs of the pool: held by the manager until an agent accepts them, and running on agents.";
    let mut jobs = page.metric("mayfly_manager_jobs", MetricKind::Gauge, help);
    for (pool, snapshot) in pools {
        jobs.sample(&[("pool", pool), ("state", "held")], f64::from(snapshot.held));
        jobs.sample(&[("pool", pool), ("state", "running")], f64::from(snapshot.running));
    }
}

fn write_wanted(page: &mut Page, board: &StatusBoard, pools: &Pools<'_>) {
    let mut metric = page.metric(
        "mayfly_manager_wanted_instances",
        MetricKind::Gauge,
        "Instances that the pool needs for its jobs and its idle target.",
    );
    for (pool, _) in pools {
        board.read_pool(pool, |status| metric.sample(&[("pool", pool)], f64::from(status.plan.wanted.instances)));
    }
    let help = "Terms of the wanted instances, in jobs: held jobs, running jobs, and the idle target of the policy.";
    let mut metric = page.metric("mayfly_manager_wanted_jobs", MetricKind::Gauge, help);
    for (pool, _) in pools {
        board.read_pool(pool, |status| {
            let wanted = &status.plan.wanted;
            for (component, value) in
                [("held", wanted.jobs.held), ("running", wanted.jobs.running), ("idle", wanted.idle)]
            {
                metric.sample(&[("pool", pool), ("component", component)], f64::from(value));
            }
        });
    }
    let help = "Jobs that the manager may hold in addition to those that idle agents take.";
    let mut metric = page.metric("mayfly_manager_hold_budget", MetricKind::Gauge, help);
    for (pool, _) in pools {
        board.read_pool(pool, |status| metric.sample(&[("pool", pool)], f64::from(status.plan.hold_budget)));
    }
    let help = "1 while growth of the pool is stopped because instances do not start or register.";
    let mut metric = page.metric("mayfly_manager_growth_stopped", MetricKind::Gauge, help);
    for (pool, _) in pools {
        board.read_pool(pool, |status| {
            metric.sample(&[("pool", pool)], f64::from(u8::from(status.plan.stopped.is_some())));
        });
    }
}

fn write_times(page: &mut Page, board: &StatusBoard, pools: &Pools<'_>) {
    type PoolHistogram = fn(&PoolStatus) -> &Histogram;
    let metrics: [(&'static str, &str, PoolHistogram); 3] = [
        (
            "mayfly_manager_job_waiting_seconds",
            "Seconds from the receipt of a job to its acceptance by an agent.",
            |status| &status.counters.waiting,
        ),
        (
            "mayfly_manager_boot_seconds",
            "Seconds from the first listing of an instance to the registration of its agent.",
            |status| &status.counters.boot,
        ),
        (
            "mayfly_manager_hand_over_seconds",
            "Seconds from the offer of a job to its acceptance by the agent.",
            |status| &status.counters.hand_over,
        ),
    ];
    for (name, help, value_of) in metrics {
        let mut metric = page.metric(name, MetricKind::Histogram, help);
        for (pool, _) in pools {
            board.read_pool(pool, |status| metric.histogram(&[("pool", pool)], value_of(status)));
        }
    }
}

fn write_failures(page: &mut Page, board: &StatusBoard, pools: &Pools<'_>) {
    let help = "Instances that the group could not start, by cause.";
    let mut metric = page.metric("mayfly_manager_failed_starts_total", MetricKind::Counter, help);
    for (pool, _) in pools {
        board.read_pool(pool, |status| {
            for kind in FailureKind::ALL {
                let count = status.counters.failed_starts.get(kind.as_str()).copied().unwrap_or(0);
                metric.sample(&[("pool", pool), ("cause", kind.as_str())], count as f64);
            }
        });
    }
    let help = "Failed calls of the engine and of other services, by call.";
    let mut metric = page.metric("mayfly_manager_api_errors_total", MetricKind::Counter, help);
    for (pool, _) in pools {
        board.read_pool(pool, |status| {
            let errors = &status.counters.api_errors;
            let others = errors.keys().map(String::as_str).filter(|call| !CALLS.contains(call));
            for call in CALLS.into_iter().chain(others) {
                let count = errors.get(call).copied().unwrap_or(0);
                metric.sample(&[("pool", pool), ("call", call)], count as f64);
            }
        });
    }
}
