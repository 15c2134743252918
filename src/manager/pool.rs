//! A pool: one `[[runners]]` of a fleet, and the group of instances that runs its jobs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::fleet::{AutoscalerTable, FleetTable, MachineTable, PluginConfig, ScaleThrottle};
use crate::config::{PoolKeys, Runner};

/// The maximum time that a job is held.
const DEFAULT_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// The interval of reads of the group: normally, and while instances start or terminate.
const DEFAULT_UPDATE_INTERVAL: Duration = Duration::from_secs(60);
const DEFAULT_UPDATE_INTERVAL_WHEN_EXPECTING: Duration = Duration::from_secs(2);
/// The delay before a failed termination is retried.
const DEFAULT_DELETION_RETRY_INTERVAL: Duration = Duration::from_secs(60);
const DEFAULT_SHUTDOWN_DELETION_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_SHUTDOWN_DELETION_RETRIES: u32 = 3;
const DEFAULT_FAILURE_THRESHOLD: u32 = 3;
/// The time within which a running instance must register.
const DEFAULT_REGISTRATION_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// The interval between two polls that return no job.
const DEFAULT_CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// The timeout of a call of the engine program.
const DEFAULT_COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// The configuration of a pool.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// The name in logs, metrics and the status page; unique.
    pub name: String,
    /// The runner: its server, token and limits.
    pub runner: Arc<Runner>,
    /// The runner's table (TOML) for agents: without the token and the settings of the fleet.
    pub runner_text: String,
    /// Certificate authorities that agents need to reach GitLab, PEM.
    pub authorities: Option<String>,
    /// The interval between two polls that return no job.
    pub check_interval: Duration,
    /// The fleet's table as written, including its policies.
    pub table: FleetTable,
    /// The number of concurrent jobs on an instance, at least 1.
    pub capacity_per_instance: u32,
    /// The number of jobs after which an instance is replaced; `None` for no limit.
    pub max_use_count: Option<u32>,
    /// The maximum number of instances, in any state; `None` for no limit (the MaxSize of the group still applies).
    pub max_instances: Option<u32>,
    /// The maximum number of jobs that run or are held in all pools together (`concurrent`).
    pub concurrent: u32,
    /// New instances per second; `None` for `[runners.machine]`, which has `max_growth` instead.
    pub scale_throttle: Option<ScaleThrottle>,
    /// The maximum number of instances that start at the same time (`MaxGrowthRate`); `None` for no limit.
    pub max_growth: Option<u32>,
    /// The maximum time that a job is held.
    pub instance_acquire_timeout: Duration,
    /// The interval between two reads of the group.
    pub update_interval: Duration,
    /// The same while instances start or terminate.
    pub update_interval_when_expecting: Duration,
    /// The delay before a failed termination is retried.
    pub deletion_retry_interval: Duration,
    /// The number of consecutive instances without a registration after which growth stops.
    pub failure_threshold: u32,
    /// The time within which a running instance must register.
    pub registration_timeout: Duration,
    /// The engine that lists, starts and terminates instances.
    pub engine: EngineSettings,
    /// The command that must succeed on an instance before its first job; sent to agents.
    pub instance_ready_command: Option<String>,
    /// Whether a drain of the manager terminates all instances.
    pub delete_instances_on_shutdown: bool,
    /// The delay between two attempts of this termination, and the number of attempts.
    pub shutdown_deletion: (Duration, u32),
    /// The role (ARN) that agents prove with a signed STS request instead of sending the fleet token.
    pub sts_proof: Option<String>,
}

/// The settings of the engine of a pool.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineSettings {
    /// `plugin = "aws"`.
    Aws(AwsGroup),
    /// `plugin = "command"`.
    Command(CommandEngine),
}

/// An Auto Scaling group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AwsGroup {
    /// The name of the group.
    pub name: String,
    /// The region of the group; `None` to detect it.
    pub region: Option<String>,
    /// The profile of the configuration files.
    pub profile: Option<String>,
    /// The file that replaces `~/.aws/config`.
    pub config_file: Option<PathBuf>,
    /// The file that replaces `~/.aws/credentials`.
    pub credentials_file: Option<PathBuf>,
}

/// An operator's program.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandEngine {
    /// The program.
    pub program: PathBuf,
    /// The arguments of the program.
    pub args: Vec<String>,
    /// The timeout of one call.
    pub timeout: Duration,
    /// The other keys of `plugin_config`, which the program receives.
    pub settings: std::collections::BTreeMap<String, toml::Value>,
}

impl EngineSettings {
    /// Whether two engines may use the same group. An AWS engine without `region` may use any region, because the
    /// region then comes from the machine or its environment.
    pub fn may_share(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Aws(one), Self::Aws(other)) => {
                one.name == other.name
                    && one.region.as_ref().zip(other.region.as_ref()).is_none_or(|(one, other)| one == other)
            }
            _ => self.group() == other.group(),
        }
    }

    /// The group of the engine, for people.
    pub fn group(&self) -> String {
        match self {
            Self::Aws(group) => {
                let region = group.region.as_deref().unwrap_or("");
                format!("Auto Scaling group {} {region}", group.name).trim_end().to_owned()
            }
            Self::Command(engine) => {
                let settings: Vec<String> =
                    engine.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
                format!("command {} {} {}", engine.program.display(), engine.args.join(" "), settings.join(" "))
                    .trim_end()
                    .to_owned()
            }
        }
    }
}

impl PoolSettings {
    /// The pool of a runner. `concurrent` is the key at the top level of the file. Errors: the missing setting, and
    /// what to write.
    pub fn new(runner: Arc<Runner>, table: FleetTable, concurrent: u32) -> Result<Self, String> {
        match table.clone() {
            FleetTable::Autoscaler(read) => Self::from_autoscaler(runner, table, concurrent, *read),
            FleetTable::Machine(read) => Self::from_machine(runner, table, concurrent, &read),
        }
    }

    /// The pool of a runner for a simulation. It needs no group: a placeholder replaces the configured engine.
    pub fn simulated(runner: &Runner, name: &str, table: FleetTable, concurrent: u32) -> Result<Self, String> {
        let simulated = || "simulated".to_owned();
        let table = match table {
            FleetTable::Autoscaler(read) => {
                let plugin_config = PluginConfig { command: Some(simulated()), ..PluginConfig::default() };
                FleetTable::Autoscaler(Box::new(AutoscalerTable {
                    plugin: "command".to_owned(),
                    plugin_config,
                    ..*read
                }))
            }
            table @ FleetTable::Machine(_) => table,
        };
        let pool = PoolKeys { auto_scaling_group: Some(simulated()), ..runner.pool.clone() };
        let runner = Runner { name: name.to_owned(), pool, ..runner.clone() };
        Self::new(Arc::new(runner), table, concurrent)
    }

    /// The maximum number of concurrent polls (`request_concurrency`).
    pub fn max_polls(&self) -> u32 {
        self.runner.request_concurrency.max(1)
    }

    /// Adds the parts for agents and GitLab: the runner's table, the certificate authorities for GitLab, and the
    /// interval between two polls.
    pub fn with_agent_settings(
        self,
        runner_text: String,
        authorities: Option<String>,
        check_interval: Duration,
    ) -> Self {
        Self { runner_text, authorities, check_interval, ..self }
    }

    fn from_autoscaler(
        runner: Arc<Runner>,
        table: FleetTable,
        concurrent: u32,
        read: AutoscalerTable,
    ) -> Result<Self, String> {
        let engine = engine(&read.plugin, read.plugin_config)?;
        Ok(Self {
            name: runner.name.clone(),
            runner_text: String::new(),
            authorities: None,
            check_interval: DEFAULT_CHECK_INTERVAL,
            table,
            capacity_per_instance: read.capacity_per_instance.max(1),
            max_use_count: unless_zero(read.max_use_count),
            max_instances: unless_zero(read.max_instances),
            concurrent,
            scale_throttle: Some(read.scale_throttle),
            max_growth: None,
            instance_acquire_timeout: read.instance_acquire_timeout.unwrap_or(DEFAULT_ACQUIRE_TIMEOUT),
            update_interval: positive(read.update_interval, DEFAULT_UPDATE_INTERVAL),
            update_interval_when_expecting: positive(
                read.update_interval_when_expecting,
                DEFAULT_UPDATE_INTERVAL_WHEN_EXPECTING,
            ),
            deletion_retry_interval: positive(read.deletion_retry_interval, DEFAULT_DELETION_RETRY_INTERVAL),
            failure_threshold: read.failure_threshold.filter(|most| *most > 0).unwrap_or(DEFAULT_FAILURE_THRESHOLD),
            registration_timeout: DEFAULT_REGISTRATION_TIMEOUT,
            engine,
            instance_ready_command: read.instance_ready_command.filter(|command| !command.trim().is_empty()),
            delete_instances_on_shutdown: read.delete_instances_on_shutdown,
            shutdown_deletion: (
                positive(read.shutdown_deletion_interval, DEFAULT_SHUTDOWN_DELETION_INTERVAL),
                read.shutdown_deletion_retries.unwrap_or(DEFAULT_SHUTDOWN_DELETION_RETRIES),
            ),
            sts_proof: runner.pool.agent_role.clone(),
            runner,
        })
    }

    fn from_machine(
        runner: Arc<Runner>,
        table: FleetTable,
        concurrent: u32,
        read: &MachineTable,
    ) -> Result<Self, String> {
        let group = runner.pool.auto_scaling_group.clone().ok_or(
            "no group: `MachineOptions` are of a driver that starts single machines; name the Auto Scaling group with \
             `auto_scaling_group` below [runners.mayfly]",
        )?;
        let group = AwsGroup { name: group, region: runner.pool.region.clone(), ..AwsGroup::default() };
        Ok(Self {
            name: runner.name.clone(),
            runner_text: String::new(),
            authorities: None,
            check_interval: DEFAULT_CHECK_INTERVAL,
            table,
            capacity_per_instance: 1,
            max_use_count: unless_zero(read.max_builds),
            // There, `limit` is the maximum number of machines in any state.
            max_instances: runner.limit,
            concurrent,
            scale_throttle: None,
            max_growth: unless_zero(read.max_growth_rate),
            instance_acquire_timeout: DEFAULT_ACQUIRE_TIMEOUT,
            update_interval: DEFAULT_UPDATE_INTERVAL,
            update_interval_when_expecting: DEFAULT_UPDATE_INTERVAL_WHEN_EXPECTING,
            deletion_retry_interval: DEFAULT_DELETION_RETRY_INTERVAL,
            failure_threshold: DEFAULT_FAILURE_THRESHOLD,
            registration_timeout: DEFAULT_REGISTRATION_TIMEOUT,
            engine: EngineSettings::Aws(group),
            instance_ready_command: None,
            delete_instances_on_shutdown: false,
            shutdown_deletion: (DEFAULT_SHUTDOWN_DELETION_INTERVAL, DEFAULT_SHUTDOWN_DELETION_RETRIES),
            sts_proof: runner.pool.agent_role.clone(),
            runner,
        })
    }
}

/// The engine for a plugin. gitlab-runner accepts names, paths, and OCI references with a version.
fn engine(plugin: &str, config: PluginConfig) -> Result<EngineSettings, String> {
    let name = plugin.rsplit('/').next().unwrap_or_default().split([':', '@']).next().unwrap_or_default();
    match name.strip_prefix("fleeting-plugin-").unwrap_or(name) {
        "aws" => {
            let name = config
                .name
                .filter(|name| !name.is_empty())
                .ok_or("no group: write `name`, the Auto Scaling group's, below [runners.autoscaler.plugin_config]")?;
            let path = |path: Option<String>| path.filter(|path| !path.is_empty()).map(PathBuf::from);
            Ok(EngineSettings::Aws(AwsGroup {
                name,
                region: config.region.filter(|region| !region.is_empty()),
                profile: config.profile.filter(|profile| !profile.is_empty()),
                config_file: path(config.config_file),
                credentials_file: path(config.credentials_file),
            }))
        }
        "command" => {
            let command = config.command.filter(|command| !command.is_empty()).ok_or(
                "no group: write `command`, the program that manages instances, below [runners.autoscaler.plugin_config]",
            )?;
            Ok(EngineSettings::Command(CommandEngine {
                program: PathBuf::from(command),
                args: config.args,
                timeout: positive(config.timeout, DEFAULT_COMMAND_TIMEOUT),
                settings: config.others,
            }))
        }
        "" => Err("no group: write `plugin = \"aws\"` or `plugin = \"command\"` below [runners.autoscaler]".to_owned()),
        other => Err(format!(
            "`plugin = \"{plugin}\"`: mayfly has `aws` and `command`; write a program for `{other}` and name it with \
             `plugin = \"command\"`"
        )),
    }
}

fn unless_zero(number: u32) -> Option<u32> {
    Some(number).filter(|number| *number > 0)
}

fn positive(value: Option<Duration>, default: Duration) -> Duration {
    value.filter(|value| !value.is_zero()).unwrap_or(default)
}
