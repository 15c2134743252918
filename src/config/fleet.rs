//! The fleet tables of a `[[runners]]` as written: docker-autoscaler, instance and docker+machine. Only `mayfly
//! manager` reads them; an agent takes the lifetime of its instance from the same tables (`lifetime`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::duration;
use super::keys::CONNECTION_KEYS;
use super::period::{Period, Zone};

/// The fleet tables of one `[[runners]]`, chosen by its executor.
#[derive(Clone, Debug)]
pub enum FleetTable {
    /// `executor = "docker-autoscaler"` or `"instance"`.
    Autoscaler(Box<AutoscalerTable>),
    /// `executor = "docker+machine"`.
    Machine(MachineTable),
}

/// `[runners.autoscaler]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AutoscalerTable {
    /// `aws` or `command`; gitlab-runner also allows a path or an OCI reference.
    pub plugin: String,
    /// The number of concurrent jobs on an instance.
    pub capacity_per_instance: u32,
    /// The number of jobs before an instance terminates; 0 for no limit.
    pub max_use_count: u32,
    /// The maximum number of instances in any state; 0 for no limit.
    pub max_instances: u32,
    /// Whether draining the manager terminates all instances.
    pub delete_instances_on_shutdown: bool,
    /// The delay between two attempts to terminate all instances.
    #[serde(deserialize_with = "duration::read")]
    pub shutdown_deletion_interval: Option<Duration>,
    /// The number of attempts to terminate all instances.
    pub shutdown_deletion_retries: Option<u32>,
    /// A command that must succeed on an instance before its first job.
    pub instance_ready_command: Option<String>,
    /// The longest time that a job waits for an instance.
    #[serde(deserialize_with = "duration::read")]
    pub instance_acquire_timeout: Option<Duration>,
    /// The interval between two reads of the group's state.
    #[serde(deserialize_with = "duration::read")]
    pub update_interval: Option<Duration>,
    /// See `update_interval`, while instances start or terminate.
    #[serde(deserialize_with = "duration::read")]
    pub update_interval_when_expecting: Option<Duration>,
    /// The delay before a failed termination is retried.
    #[serde(deserialize_with = "duration::read")]
    pub deletion_retry_interval: Option<Duration>,
    /// The number of consecutive instance failures after which growth stops.
    pub failure_threshold: Option<u32>,
    /// The limit of new instances per second.
    pub scale_throttle: ScaleThrottle,
    /// The settings of the engine.
    pub plugin_config: PluginConfig,
    /// The idle capacity, by time.
    pub policy: Vec<PolicyTable>,
}

/// `[runners.autoscaler.scale_throttle]`: a token bucket on new instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ScaleThrottle {
    /// New instances per second; 0 for 100, −1 for no limit.
    pub limit: i64,
    /// The size of the bucket: how many instances may start at once. 0 stands for `max_instances`, or for `limit` if
    /// `max_instances` is 0 too.
    pub burst: u32,
}

/// `[runners.autoscaler.plugin_config]`: the keys of both engines; other keys are passed to the operator's program.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PluginConfig {
    /// AWS: the name of the Auto Scaling group.
    pub name: Option<String>,
    /// AWS: the region.
    pub region: Option<String>,
    /// AWS: the profile of the configuration files.
    pub profile: Option<String>,
    /// AWS: the file to use instead of `~/.aws/config`.
    pub config_file: Option<String>,
    /// AWS: the file to use instead of `~/.aws/credentials`.
    pub credentials_file: Option<String>,
    /// Command: the program.
    pub command: Option<String>,
    /// Command: the arguments of the program.
    pub args: Vec<String>,
    /// Command: the timeout of one call of the program.
    #[serde(deserialize_with = "duration::read")]
    pub timeout: Option<Duration>,
    /// Every other key.
    #[serde(flatten)]
    pub others: BTreeMap<String, toml::Value>,
}

/// `[[runners.autoscaler.policy]]`. The last policy whose periods contain the current minute applies.
#[derive(Clone, Debug, Deserialize)]
pub struct PolicyTable {
    /// When the policy applies; each period has five fields.
    #[serde(default = "every_minute", deserialize_with = "super::lifetime::periods_of_policy")]
    pub periods: Vec<Period>,
    /// The time zone of `periods`.
    #[serde(default)]
    pub timezone: Zone,
    /// Idle capacity, in jobs.
    #[serde(default)]
    pub idle_count: u32,
    /// The time after which a surplus idle instance is terminated.
    #[serde(default, deserialize_with = "duration::read")]
    pub idle_time: Option<Duration>,
    /// Idle capacity as a multiple of the capacity in use.
    #[serde(default, deserialize_with = "factor")]
    pub scale_factor: f64,
    /// The maximum for `scale_factor`; 0 for no limit.
    #[serde(default)]
    pub scale_factor_limit: u32,
    /// Poll for a job only while idle capacity exists; true by default if `idle_count` is more than 0.
    #[serde(default)]
    pub preemptive_mode: Option<bool>,
}

/// `[runners.machine]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MachineTable {
    /// Idle machines to keep; with a factor, the upper bound.
    pub idle_count: u32,
    /// Idle machines as a multiple of the machines in use; 0 for off.
    #[serde(deserialize_with = "factor")]
    pub idle_scale_factor: f64,
    /// Lower bound of idle machines, with a factor only.
    pub idle_count_min: u32,
    /// The number of seconds after which a surplus idle machine is removed.
    pub idle_time: u64,
    /// The number of jobs before a machine is removed; 0 for no limit.
    pub max_builds: u32,
    /// The number of machines that may start at the same time; 0 for no limit.
    pub max_growth_rate: u32,
    /// Sections for certain times. The last one that applies wins; a missing key is 0 in it.
    #[serde(rename = "autoscaling")]
    pub autoscaling: Vec<MachinePolicyTable>,
}

/// `[[runners.machine.autoscaling]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MachinePolicyTable {
    /// When the section applies.
    #[serde(default)]
    pub periods: Vec<Period>,
    /// The time zone of `Periods`.
    #[serde(default)]
    pub timezone: Zone,
    /// See [`MachineTable::idle_count`].
    #[serde(default)]
    pub idle_count: u32,
    /// See [`MachineTable::idle_scale_factor`].
    #[serde(default, deserialize_with = "factor")]
    pub idle_scale_factor: f64,
    /// See [`MachineTable::idle_count_min`].
    #[serde(default)]
    pub idle_count_min: u32,
    /// See [`MachineTable::idle_time`].
    #[serde(default)]
    pub idle_time: u64,
}

fn every_minute() -> Vec<Period> {
    vec![Period::always()]
}

/// A factor, written as a float or as an integer (which gitlab-runner refuses).
fn factor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Float(f64),
        Integer(i64),
    }
    let number = match Number::deserialize(deserializer)? {
        Number::Float(number) => number,
        Number::Integer(number) => number as f64,
    };
    match (0.0..=1000.0).contains(&number) {
        true => Ok(number),
        false => Err(serde::de::Error::custom(format!("`{number}` is not a factor; write a number from 0 to 1000"))),
    }
}

/// The fleet table of a runner; `None` for an executor without a fleet. Fails for an invalid value.
pub fn read_table(runner: &toml::Table) -> Result<Option<FleetTable>, String> {
    let table = |name: &str| runner.get(name).cloned().unwrap_or(toml::Value::Table(toml::Table::new()));
    // The text of the error ends with the key.
    let wrong = |name: &str, error: &toml::de::Error| {
        let text = error.to_string().replace("expected u32", "expected a whole number, not below 0");
        format!("[runners.{name}]: {}", text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    match runner.get("executor").and_then(toml::Value::as_str) {
        Some("docker-autoscaler" | "instance") => {
            let read = table("autoscaler").try_into().map_err(|error| wrong("autoscaler", &error))?;
            Ok(Some(FleetTable::Autoscaler(Box::new(read))))
        }
        Some("docker+machine") => {
            let read = table("machine").try_into().map_err(|error| wrong("machine", &error))?;
            Ok(Some(FleetTable::Machine(read)))
        }
        _ => Ok(None),
    }
}

/// Keys of `[[runners]]` that are not sent to agents, besides [`CONNECTION_KEYS`]: limits of the runner in the fleet,
/// and settings of the manager's machine.
const MANAGER_KEYS: [&str; 9] = [
    "limit",
    "request_concurrency",
    "strict_check_interval",
    "unhealthy_requests_limit",
    "unhealthy_interval",
    "labels",
    "machine",
    "autoscaler",
    "instance",
];
/// Keys of `[runners.mayfly]` that are not sent to agents.
const MANAGER_KEYS_BELOW_MAYFLY: [&str; 3] = ["auto_scaling_group", "region", "agent_role"];

/// The runner's table for agents (TOML), without the keys for the manager.
pub fn table_for_agents(runner: &toml::Table) -> String {
    let mut table = runner.clone();
    CONNECTION_KEYS.iter().chain(&MANAGER_KEYS).for_each(|key| drop(table.remove(*key)));
    if let Some(own) = table.get_mut("mayfly").and_then(toml::Value::as_table_mut) {
        MANAGER_KEYS_BELOW_MAYFLY.iter().for_each(|key| drop(own.remove(*key)));
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runner(file: &toml::Table, position: usize) -> &toml::Table {
        file["runners"][position].as_table().expect("a table")
    }

    #[test]
    fn reads_both_kinds_of_tables() {
        let file: toml::Table = toml::from_str(
            "[[runners]]\nexecutor = \"docker-autoscaler\"\n[runners.autoscaler]\nplugin = \"aws:latest\"\n\
             capacity_per_instance = 2\ninstance_acquire_timeout = \"10m\"\n[runners.autoscaler.scale_throttle]\nlimit = -1\n\
             [runners.autoscaler.plugin_config]\nname = \"g\"\nanswer = 42\n[[runners.autoscaler.policy]]\nidle_count = 5\n\
             scale_factor = 2\n\
             [[runners]]\nexecutor = \"docker+machine\"\n[runners.machine]\nIdleCount = 10\nIdleScaleFactor = 1.5\n\
             IdleCountMin = 1\nMaxGrowthRate = 3\n[[runners.machine.autoscaling]]\nPeriods = [\"* * 9-17 * * mon-fri *\"]\n\
             IdleCount = 20\n[[runners]]\nexecutor = \"shell\"\n",
        )
        .expect("must be TOML");
        let Ok(Some(FleetTable::Autoscaler(table))) = read_table(runner(&file, 0)) else { panic!("no table") };
        assert_eq!((table.plugin.as_str(), table.capacity_per_instance), ("aws:latest", 2));
        assert_eq!(table.plugin_config.name.as_deref(), Some("g"));
        assert!(table.plugin_config.others.contains_key("answer"));
        assert_eq!((table.policy[0].idle_count, table.policy[0].scale_factor), (5, 2.0));
        let Ok(Some(FleetTable::Machine(table))) = read_table(runner(&file, 1)) else { panic!("no table") };
        assert_eq!((table.idle_count, table.idle_scale_factor, table.max_growth_rate), (10, 1.5, 3));
        assert_eq!((table.autoscaling[0].idle_count, table.autoscaling[0].idle_time), (20, 0));
        assert!(matches!(read_table(runner(&file, 2)), Ok(None)));
    }

    #[test]
    fn agents_get_neither_the_token_nor_the_fleets_settings() {
        let file: toml::Table = toml::from_str(
            "[[runners]]\nname = \"p\"\nurl = \"https://h\"\ntoken = \"glrt-secret\"\nlimit = 3\nexecutor = \"instance\"\n\
             environment = [\"A=1\"]\n[runners.mayfly]\nkill_grace = \"5s\"\nagent_role = \"arn\"\n[runners.autoscaler]\n\
             plugin = \"aws\"\n[runners.cache]\nType = \"s3\"\n",
        )
        .expect("must be TOML");
        let sent: toml::Table = table_for_agents(runner(&file, 0)).parse().expect("must be TOML");
        assert_eq!(sent.keys().collect::<Vec<_>>(), ["cache", "environment", "executor", "mayfly", "name"]);
        assert!(!sent.to_string().contains("arn"));
    }

    #[test]
    fn an_invalid_value_is_refused_with_its_table_and_key() {
        let file: toml::Table =
            toml::from_str("[[runners]]\nexecutor = \"instance\"\n[runners.autoscaler]\nmax_instances = -1\n")
                .expect("must be TOML");
        let why = read_table(runner(&file, 0)).expect_err("must be refused");
        assert!(why.starts_with("[runners.autoscaler]") && why.contains("`max_instances`"), "{why}");
        assert!(why.contains("expected a whole number, not below 0"), "{why}");
    }
}
