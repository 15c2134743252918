//! Tests with configurations that fleets have published, and of the effect of each key that determines the size of a
//! pool.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Sizing;
use super::growth::GrowthLimits;
use super::policy::Intake;
use super::wanted::{Bounds, JobCounts, wanted};
use crate::config::{Config, Role, fleet};
use crate::manager::engine::{self, MemberState};
use crate::manager::pool::{EngineSettings, PoolSettings};

/// The pool of a file with one runner. Adds `[mayfly.manager]`, and the settings for which docker+machine has no keys.
fn pool(text: &str) -> PoolSettings {
    let manager = "[mayfly.manager]\nplain_http = true\nagent_token = \"0123456789abcdef\"\n";
    let (before, after) = text.split_once("[[runners]]\n").expect("a runner");
    let text = format!("{before}{manager}[[runners]]\nurl = \"https://gitlab.example.com\"\ntoken = \"t\"\n{after}");
    let config = Config::parse_as(Path::new("config.toml"), &text, Role::Manager).expect("a configuration");
    let table = fleet::read_table(&config.runners[0].written).expect("a table").expect("a fleet");
    PoolSettings::new(Arc::new(config.runners[0].clone()), table, config.concurrent).expect("a pool")
}

/// Idle capacity and instances by the number of running jobs.
fn targets(pool: &PoolSettings, at: &str, running: &[u32]) -> Vec<(u32, u32)> {
    let sizing = Sizing::from_pool(pool);
    let policy = sizing.policies.at(at.parse().expect("a time"));
    let bounds = Bounds { capacity: sizing.capacity, max_instances: sizing.max_instances, group: None };
    let target = |running: &u32| {
        let wanted = wanted(policy, JobCounts { held: 0, running: *running }, bounds);
        (wanted.idle, wanted.instances)
    };
    running.iter().map(target).collect()
}

fn policy(pool: &PoolSettings, at: &str) -> (Intake, u64) {
    let sizing = Sizing::from_pool(pool);
    let policy = sizing.policies.at(at.parse().expect("a time"));
    (policy.intake, policy.idle_time.as_secs())
}

const MONDAY_NOON: &str = "2026-07-06T12:00:00Z";
const SUNDAY_NOON: &str = "2026-07-05T12:00:00Z";
const MONDAY_NIGHT: &str = "2026-07-06T03:45:00Z";

#[test]
fn one_job_an_instance_in_an_auto_scaling_group() {
    let pool = pool(
        "concurrent = 10\n[[runners]]\nname = \"docker autoscaler\"\nexecutor = \"docker-autoscaler\"\n\
         [runners.docker]\nimage = \"busybox:latest\"\n[runners.autoscaler]\nplugin = \"fleeting-plugin-aws\"\n\
         capacity_per_instance = 1\nmax_use_count = 1\nmax_instances = 10\n[runners.autoscaler.plugin_config]\n\
         name = \"my-group\"\nprofile = \"ci\"\nconfig_file = \"/home/user/.aws/config\"\n\
         credentials_file = \"/home/user/.aws/credentials\"\n[runners.autoscaler.connector_config]\nusername = \"ec2-user\"\n\
         use_external_addr = true\n[[runners.autoscaler.policy]]\nidle_count = 5\nidle_time = \"20m0s\"\n",
    );
    assert_eq!((pool.capacity_per_instance, pool.max_use_count, pool.max_instances), (1, Some(1), Some(10)));
    assert_eq!(targets(&pool, MONDAY_NOON, &[0, 3, 6, 10]), [(5, 5), (5, 8), (4, 10), (0, 10)]);
    assert_eq!(policy(&pool, MONDAY_NOON), (Intake::Relay, 1200));
    assert_eq!(GrowthLimits::from_pool(&pool), GrowthLimits { in_flight: None, rate: Some(100.0), burst: 10 });
    let EngineSettings::Aws(group) = &pool.engine else { panic!("{:?}", pool.engine) };
    assert_eq!((group.name.as_str(), group.profile.as_deref()), ("my-group", Some("ci")));
    assert_eq!(pool.instance_acquire_timeout, Duration::from_secs(900));
    assert_eq!((pool.update_interval.as_secs(), pool.update_interval_when_expecting.as_secs()), (60, 2));
}

#[test]
fn five_jobs_an_instance_without_a_limit_of_uses() {
    let pool = pool(
        "concurrent = 50\n[[runners]]\nname = \"instances\"\nshell = \"sh\"\nexecutor = \"instance\"\n[runners.autoscaler]\n\
         plugin = \"aws\"\ncapacity_per_instance = 5\nmax_use_count = 0\nmax_instances = 10\n\
         [runners.autoscaler.plugin_config]\nname = \"my-windows-group\"\n[[runners.autoscaler.policy]]\nidle_count = 5\n\
         idle_time = \"20m0s\"\n",
    );
    assert_eq!(pool.max_use_count, None);
    assert_eq!(targets(&pool, MONDAY_NOON, &[0, 1, 5, 7, 46, 50]), [(5, 1), (5, 2), (5, 2), (5, 3), (4, 10), (0, 10)]);
}

#[test]
fn working_hours_by_two_policies_of_the_autoscaler() {
    let pool = pool(
        "concurrent = 40\n[[runners]]\nname = \"hours\"\nexecutor = \"docker-autoscaler\"\n[runners.docker]\n\
         image = \"alpine\"\n[runners.autoscaler]\nplugin = \"command\"\ncapacity_per_instance = 4\nmax_use_count = 60\n\
         max_instances = 6\ninstance_ready_command = \"cloud-init status --wait || test $? -eq 2\"\n\
         update_interval = \"30s\"\ninstance_acquire_timeout = \"8m\"\ndelete_instances_on_shutdown = true\n\
         failure_threshold = 2\n[runners.autoscaler.plugin_config]\ncommand = \"/etc/mayfly/engine.sh\"\nlocation = \"hel1\"\n\
         [runners.autoscaler.scale_throttle]\nlimit = 1\nburst = 3\n\
         [[runners.autoscaler.policy]]\nperiods = [\"* * * * *\"]\ntimezone = \"Europe/Berlin\"\nidle_count = 0\n\
         idle_time = \"50m\"\n\
         [[runners.autoscaler.policy]]\nperiods = [\"* 7-19 * * 1-5\"]\ntimezone = \"Europe/Berlin\"\nidle_count = 8\n\
         idle_time = \"45m0s\"\nscale_factor = 0.5\nscale_factor_limit = 10\n",
    );
    assert_eq!(policy(&pool, SUNDAY_NOON), (Intake::HoldAhead, 3000));
    assert_eq!(targets(&pool, SUNDAY_NOON, &[0, 5]), [(0, 0), (0, 2)]);
    assert_eq!(policy(&pool, MONDAY_NOON), (Intake::Relay, 2700));
    assert_eq!(targets(&pool, MONDAY_NOON, &[0, 8, 17, 20]), [(8, 2), (8, 4), (7, 6), (4, 6)]);
    // 19:59 in Berlin is within, 20:00 is not.
    assert_eq!(policy(&pool, "2026-07-06T17:59:59Z").0, Intake::Relay);
    assert_eq!(policy(&pool, "2026-07-06T18:00:00Z").0, Intake::HoldAhead);
    assert_eq!(GrowthLimits::from_pool(&pool), GrowthLimits { in_flight: None, rate: Some(1.0), burst: 3 });
    assert!(pool.delete_instances_on_shutdown);
    let sizing = Sizing::from_pool(&pool);
    assert_eq!(
        (pool.instance_acquire_timeout.as_secs(), pool.update_interval.as_secs(), sizing.failure_threshold),
        (480, 30, 2)
    );
    let EngineSettings::Command(engine) = &pool.engine else { panic!("{:?}", pool.engine) };
    assert_eq!(engine.settings.get("location").and_then(toml::Value::as_str), Some("hel1"));
    assert!(pool.instance_ready_command.is_some_and(|command| command.starts_with("cloud-init status")));
}

#[test]
fn jobs_are_held_where_preemptive_mode_is_off() {
    let pool = pool(
        "concurrent = 20\n[[runners]]\nname = \"held\"\nexecutor = \"docker-autoscaler\"\nlimit = 10\n[runners.docker]\n\
         image = \"alpine\"\n[runners.autoscaler]\nplugin = \"aws\"\ncapacity_per_instance = 2\nmax_use_count = 10\n\
         max_instances = 5\n[runners.autoscaler.plugin_config]\nname = \"g\"\n[[runners.autoscaler.policy]]\nidle_count = 1\n\
         idle_time = \"5m0s\"\npreemptive_mode = false\n",
    );
    assert_eq!(policy(&pool, MONDAY_NOON), (Intake::HoldAhead, 300));
    assert_eq!(targets(&pool, MONDAY_NOON, &[0, 1, 2, 9, 10]), [(1, 1), (1, 1), (1, 2), (1, 5), (0, 5)]);
    assert_eq!(Sizing::from_pool(&pool).max_jobs, 10);
}

#[test]
fn office_hours_of_docker_machine_with_seven_fields() {
    let pool = pool(
        "concurrent = 100\n[[runners]]\nname = \"office\"\nexecutor = \"docker+machine\"\nlimit = 60\n[runners.docker]\n\
         image = \"ruby\"\n[runners.mayfly]\nauto_scaling_group = \"office\"\n[runners.machine]\nIdleCount = 10\nIdleTime = 1800\n\
         MaxBuilds = 100\nMaxGrowthRate = 5\nMachineName = \"auto-scale-%s\"\nMachineDriver = \"amazonec2\"\n\
         MachineOptions = [\"amazonec2-region=us-east-1\"]\n\
         [[runners.machine.autoscaling]]\nPeriods = [\"* * 9-17 * * mon-fri *\"]\nIdleCount = 50\nIdleTime = 3600\n\
         Timezone = \"UTC\"\n[[runners.machine.autoscaling]]\nPeriods = [\"* * * * * sat,sun *\"]\nIdleCount = 5\nIdleTime = 60\n\
         Timezone = \"UTC\"\n",
    );
    assert_eq!((pool.capacity_per_instance, pool.max_use_count, pool.max_instances), (1, Some(100), Some(60)));
    assert_eq!(targets(&pool, MONDAY_NOON, &[0, 20]), [(50, 50), (40, 60)]);
    assert_eq!(targets(&pool, SUNDAY_NOON, &[0, 20]), [(5, 5), (5, 25)]);
    assert_eq!(targets(&pool, MONDAY_NIGHT, &[0, 20]), [(10, 10), (10, 30)]);
    assert_eq!(policy(&pool, SUNDAY_NOON), (Intake::Relay, 60));
    // The last minute of 17:59 is within.
    assert_eq!(policy(&pool, "2026-07-06T17:59:59Z").1, 3600);
    assert_eq!(policy(&pool, "2026-07-06T18:00:00Z").1, 1800);
    assert_eq!(GrowthLimits::from_pool(&pool), GrowthLimits { in_flight: Some(5), ..GrowthLimits::UNLIMITED });
    assert_eq!(Sizing::from_pool(&pool).max_jobs, 60);
}

#[test]
fn two_periods_of_one_section_and_a_factor_in_the_root() {
    let pool = pool(
        "concurrent = 1000\n[[runners]]\nname = \"large\"\nexecutor = \"docker+machine\"\n[runners.docker]\nimage = \"ruby\"\n\
         [runners.mayfly]\nauto_scaling_group = \"large\"\nregion = \"eu-west-1\"\n[runners.machine]\nIdleCount = 100\n\
         IdleCountMin = 10\nIdleScaleFactor = 1.1\nIdleTime = 1200\nMaxBuilds = 1\n\
         [[runners.machine.autoscaling]]\nPeriods = [\"* 30-59 3 * * * *\", \"* 0-30 4 * * * *\"]\nTimezone = \"UTC\"\n\
         IdleCount = 700\nIdleTime = 3600\n",
    );
    assert_eq!(
        targets(&pool, MONDAY_NOON, &[0, 10, 20, 90, 100]),
        [(10, 10), (11, 21), (22, 42), (99, 189), (100, 200)]
    );
    for (at, idle) in [("03:29", 10), ("03:30", 700), ("04:30", 700), ("04:31", 10)] {
        assert_eq!(targets(&pool, &format!("2026-07-06T{at}:00Z"), &[0]), [(idle, idle)], "{at}");
    }
    let EngineSettings::Aws(group) = &pool.engine else { panic!("{:?}", pool.engine) };
    assert_eq!((group.name.as_str(), group.region.as_deref()), ("large", Some("eu-west-1")));
}

#[test]
fn machines_on_demand_only() {
    let pool = pool(
        "concurrent = 3\n[[runners]]\nname = \"demand\"\nexecutor = \"docker+machine\"\n[runners.docker]\nimage = \"ruby\"\n\
         [runners.mayfly]\nauto_scaling_group = \"demand\"\n[runners.machine]\nIdleCount = 0\nIdleTime = 600\n\
         [[runners.machine.autoscaling]]\nPeriods = [\"* * * * * sun *\"]\nTimezone = \"\"\nIdleCount = 0\nIdleTime = 21600\n",
    );
    assert_eq!(policy(&pool, MONDAY_NOON), (Intake::HoldAhead, 600));
    assert_eq!(targets(&pool, MONDAY_NOON, &[0, 3]), [(0, 0), (0, 3)]);
    assert_eq!((Sizing::from_pool(&pool).max_jobs, pool.max_instances), (3, None));
}

#[test]
fn a_program_that_does_not_exist_is_reported_by_the_first_call() {
    let pool = pool(
        "[[runners]]\nname = \"p\"\nexecutor = \"instance\"\n[runners.autoscaler]\nplugin = \"command\"\n\
         [runners.autoscaler.plugin_config]\ncommand = \"/nowhere\"\n",
    );
    let engine = engine::for_pool(&pool.engine, &pool.name);
    assert!(engine.group().is_err_and(|error| error.to_string().contains("/nowhere")));
    assert!(MemberState::Running.counts() && !MemberState::Aside.counts());
}

/// All settings that determine the size of a pool.
fn effect(text: &str) -> String {
    let pool = pool(text);
    let sizing = Sizing::from_pool(&pool);
    let times = [MONDAY_NOON, SUNDAY_NOON, MONDAY_NIGHT, "2026-01-01T00:00:00Z"];
    let policies = times.map(|at| (policy(&pool, at), targets(&pool, at, &[0, 3, 20])));
    let bounds = (sizing.capacity, sizing.max_instances, sizing.max_use_count, sizing.max_jobs, sizing.growth);
    let times = (pool.instance_acquire_timeout, pool.update_interval, pool.update_interval_when_expecting);
    let ends =
        (pool.shutdown_deletion, pool.delete_instances_on_shutdown, sizing.failure_threshold, sizing.deletion_retry);
    format!("{policies:?} {bounds:?} {times:?} {ends:?} {:?} {:?}", pool.instance_ready_command, pool.engine)
}

/// A pool of the autoscaler with these keys of the runner, of its table, of the engine, and of the policy.
fn autoscaler([runner, table, engine, policy]: [&str; 4]) -> String {
    effect(&format!(
        "concurrent = 100\n[[runners]]\nname = \"p\"\nexecutor = \"instance\"\n{runner}\n[runners.autoscaler]\n\
         plugin = \"aws\"\n{table}\n[runners.autoscaler.plugin_config]\nname = \"g\"\n{engine}\n[[runners.autoscaler.policy]]\n\
         idle_time = \"1m\"\n{policy}\n"
    ))
}

/// A pool of docker+machine with these keys of the runner, of its table, and of a section for certain times.
fn machine([runner, table, section]: [&str; 3]) -> String {
    effect(&format!(
        "concurrent = 100\n[[runners]]\nname = \"p\"\nexecutor = \"docker+machine\"\n{runner}\n[runners.docker]\n\
         image = \"alpine\"\n[runners.mayfly]\nauto_scaling_group = \"g\"\n[runners.machine]\n{table}\n\
         [[runners.machine.autoscaling]]\nPeriods = [\"* * 9-17 * * mon-fri *\"]\n{section}\n"
    ))
}

#[test]
fn each_key_of_the_autoscaler_has_an_effect() {
    let plain = autoscaler([""; 4]);
    let key = "limit = 7";
    assert_ne!(autoscaler([key, "", "", ""]), plain, "{key}");
    for key in [
        "capacity_per_instance = 7",
        "max_use_count = 7",
        "max_instances = 7",
        "instance_ready_command = \"true\"",
        "instance_acquire_timeout = \"7s\"",
        "update_interval = \"7s\"",
        "update_interval_when_expecting = \"7s\"",
        "deletion_retry_interval = \"7s\"",
        "delete_instances_on_shutdown = true",
        "shutdown_deletion_interval = \"7s\"",
        "shutdown_deletion_retries = 7",
        "failure_threshold = 7",
        "scale_throttle = { limit = 7 }",
        "scale_throttle = { burst = 7 }",
    ] {
        assert_ne!(autoscaler(["", key, "", ""]), plain, "{key}");
    }
    for key in ["region = \"r\"", "profile = \"p\"", "config_file = \"/c\"", "credentials_file = \"/c\""] {
        assert_ne!(autoscaler(["", "", key, ""]), plain, "{key}");
    }
    // Each key is added to the keys that it needs to have an effect.
    for (before, key) in [
        ("", "idle_count = 7"),
        ("", "scale_factor = 2.0"),
        ("scale_factor = 2.0\n", "scale_factor_limit = 7"),
        ("idle_count = 7\n", "preemptive_mode = false"),
        ("idle_count = 7\n", "periods = [\"* 9-17 * * 1-5\"]"),
        ("idle_count = 7\nperiods = [\"* 9-17 * * 1-5\"]\n", "timezone = \"Asia/Tokyo\""),
    ] {
        let given = autoscaler(["", "", "", before]);
        assert_ne!(autoscaler(["", "", "", &format!("{before}{key}")]), given, "{key}");
    }
    assert_ne!(autoscaler(["", "", "", "idle_count = 7"]), autoscaler(["", "", "", "idle_count = 8"]));
}

#[test]
fn each_key_of_docker_machine_has_an_effect_or_describes_single_machines() {
    for (runner, before, key) in [
        ("limit = 7", "", ""),
        ("", "", "IdleCount = 7"),
        ("", "IdleCount = 7\n", "IdleScaleFactor = 2.0"),
        ("", "IdleCount = 7\nIdleScaleFactor = 2.0\n", "IdleCountMin = 3"),
        ("", "", "IdleTime = 7"),
        ("", "", "MaxBuilds = 7"),
        ("", "", "MaxGrowthRate = 7"),
    ] {
        let changed = machine([runner, &format!("{before}{key}"), ""]);
        assert_ne!(changed, machine(["", before, ""]), "{runner}{key}");
    }
    for (before, key) in [
        ("", "IdleCount = 7"),
        ("IdleCount = 7\n", "IdleScaleFactor = 2.0"),
        ("IdleCount = 7\nIdleScaleFactor = 2.0\n", "IdleCountMin = 3"),
        ("", "IdleTime = 7"),
        ("IdleCount = 7\n", "Timezone = \"Asia/Tokyo\""),
    ] {
        assert_ne!(machine(["", "", &format!("{before}{key}")]), machine(["", "", before]), "{key}");
    }
    let plain = machine([""; 3]);
    for key in [
        "MachineName = \"m-%s\"",
        "MachineDriver = \"amazonec2\"",
        "MachineOptions = [\"a=b\"]",
        "MachineOptionsWithName = [\"a=%s\"]",
        "MaxRemovalAttempts = 7",
        "OffPeakPeriods = [\"* * * * * * *\"]",
        "OffPeakIdleCount = 7",
        "OffPeakIdleTime = 7",
    ] {
        assert_eq!(machine(["", key, ""]), plain, "{key}");
    }
}
