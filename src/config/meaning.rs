//! Converts the raw file to the configuration: checks values and fills in defaults.

pub(super) mod runner;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::aws::AwsConfig;
use super::fitness::{Fitness, READY_TIMEOUT, ReadinessCommands};
use super::leave::{LeaveSettings, LeaveStrategy};
use super::lifetime::{FleetLimits, IdleTimes, LifetimeBounds, capacity};
use super::location::KeyLocation;
use super::runner::{executor, is_unsupported};
use super::{Config, Mayfly, Role, Runner, UnusableRunner, carried, expand, raw};

/// The default of `check_interval`.
const CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// The default of `shutdown_timeout`.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// The default of `connection_max_age`.
const CONNECTION_MAX_AGE: Duration = Duration::from_secs(15 * 60);
/// The default of `orphan_timeout`.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// The values of `log_level`, in any case; `panic` and `fatal` are gitlab-runner's.
pub const LOG_LEVELS: [&str; 8] = ["trace", "debug", "info", "warn", "warning", "error", "fatal", "panic"];
/// The values of `log_format`.
const LOG_FORMATS: [&str; 3] = ["runner", "text", "json"];

/// A value that is valid TOML but not a valid setting.
pub(super) struct InvalidValue {
    location: KeyLocation,
    why: String,
}

impl InvalidValue {
    fn global(key: &'static str, why: impl Into<String>) -> Self {
        Self { location: KeyLocation { runner: None, key }, why: why.into() }
    }

    /// The reason, with the line in `text`, the content of the file.
    pub(super) fn show(&self, text: &str) -> String {
        self.location.show(text, &self.why)
    }
}

/// A table of `[[runners]]` with its index.
type IndexedRunner = (usize, raw::Runner);

/// Converts the whole file. Fails for an invalid value.
pub(super) fn interpret(path: &Path, mut raw: raw::Config, role: Role) -> Result<Config, InvalidValue> {
    let concurrent = concurrent(raw.concurrent)?;
    check_one_of("log_level", raw.log_level.as_deref(), &LOG_LEVELS)?;
    check_one_of("log_format", raw.log_format.as_deref(), &LOG_FORMATS)?;
    let listen_address = listen_address(raw.listen_address)?;
    let check_interval = raw.check_interval.and_then(|seconds| u64::try_from(seconds).ok());
    let tables = std::mem::take(&mut raw.runners).into_iter().enumerate();
    let (unusable, mut usable): (Vec<_>, Vec<_>) = tables.partition(|(_, runner)| is_unsupported(&runner.executor));
    let limits = fleet_limits(&mut usable, role);
    Ok(Config {
        path: path.to_owned(),
        concurrent_is_set: raw.concurrent.is_some(),
        concurrent: capacity(&limits).map_or(concurrent, |capacity| capacity.min(concurrent)),
        check_interval: positive(check_interval.map(Duration::from_secs)).unwrap_or(CHECK_INTERVAL),
        log_level: raw.log_level,
        log_format: raw.log_format,
        user: raw.user.filter(|user| !user.is_empty()),
        listen_address,
        shutdown_timeout: positive(raw.shutdown_timeout.map(Duration::from_secs)).unwrap_or(SHUTDOWN_TIMEOUT),
        connection_max_age: raw.connection_max_age.unwrap_or(CONNECTION_MAX_AGE),
        lifetime: lifetime(&raw.mayfly, &limits),
        leave: leave(&raw.mayfly)?,
        mayfly: mayfly(raw.mayfly, &limits)?,
        runners: runners(path, usable, &limits, &raw.labels)?,
        unusable: unusable.into_iter().map(unusable_runner).collect(),
        settings: toml::Table::new(),
    })
}

fn concurrent(jobs: Option<i64>) -> Result<u32, InvalidValue> {
    let jobs = u32::try_from(jobs.unwrap_or(1)).ok().filter(|jobs| *jobs > 0);
    jobs.ok_or_else(|| InvalidValue::global("concurrent", "`concurrent` must be at least 1, or no job would ever run"))
}

fn check_one_of(key: &'static str, value: Option<&str>, allowed: &[&str]) -> Result<(), InvalidValue> {
    match value {
        Some(value) if !value.is_empty() && !allowed.iter().any(|one| one.eq_ignore_ascii_case(value)) => {
            Err(InvalidValue::global(key, format!("`{key}` must be one of {}", allowed.join(", "))))
        }
        _ => Ok(()),
    }
}

fn listen_address(address: Option<String>) -> Result<Option<String>, InvalidValue> {
    let Some(address) = address.filter(|address| !address.is_empty()) else { return Ok(None) };
    match crate::monitor::address::check_address(&address) {
        Ok(()) => Ok(Some(address)),
        Err(why) => Err(InvalidValue::global("listen_address", format!("`listen_address`: {why}"))),
    }
}

/// The limits from the fleet tables of each runner. For a manager, `concurrent` and `limit` apply to the fleet, not to
/// one instance.
fn fleet_limits(runners: &mut [IndexedRunner], role: Role) -> Vec<FleetLimits> {
    let of_runner = |(_, runner): &mut IndexedRunner| {
        let limits = FleetLimits::new(&runner.executor, runner.machine.take(), runner.autoscaler.take());
        FleetLimits { capacity: limits.capacity.filter(|_| role == Role::Agent), ..limits }
    };
    runners.iter_mut().map(of_runner).collect()
}

/// The lifetime of the instance: from `[mayfly]`, else from the runners' tables.
fn lifetime(own: &raw::Mayfly, limits: &[FleetLimits]) -> LifetimeBounds {
    let idle_of_runners = || limits.iter().filter_map(|limits| limits.idle.clone()).collect();
    LifetimeBounds {
        max_builds: match own.max_builds {
            Some(builds) => Some(builds).filter(|builds| *builds > 0),
            None => limits.iter().filter_map(|limits| limits.max_builds).min(),
        },
        max_age: positive(own.max_age),
        idle: own.idle_timeout.map_or_else(idle_of_runners, |timeout| vec![IdleTimes::always(timeout)]),
        idle_is_of_fleet: own.idle_timeout.is_none(),
    }
}

fn leave(own: &raw::Mayfly) -> Result<LeaveSettings, InvalidValue> {
    let defaults = LeaveSettings::default();
    let set = |command: &Option<String>| command.clone().filter(|command| !command.trim().is_empty());
    let (strategy, command) = (own.leave.unwrap_or_default(), set(&own.leave_command));
    match (strategy == LeaveStrategy::Command, command.is_some()) {
        (true, false) => {
            let why = "`leave = \"command\"` needs a `leave_command`, which ends the instance";
            Err(InvalidValue::global("mayfly.leave", why))
        }
        (false, true) => {
            let why = "`leave_command` has an effect only with `leave = \"command\"`";
            Err(InvalidValue::global("mayfly.leave_command", why))
        }
        _ => Ok(LeaveSettings {
            configured: own.leave,
            strategy,
            command,
            poweroff_command: set(&own.poweroff_command).unwrap_or(defaults.poweroff_command),
            fallback_after: own.leave_fallback_after.unwrap_or(defaults.fallback_after),
        }),
    }
}

fn mayfly(own: raw::Mayfly, limits: &[FleetLimits]) -> Result<Mayfly, InvalidValue> {
    check_aws(own.aws.as_ref())?;
    let (fitness, ready) = (fitness(&own), ready(&own, limits));
    let manager = own.manager.map(super::manager::Table::interpret).transpose();
    Ok(Mayfly {
        state_dir: non_empty(own.state_dir),
        aws: own.aws,
        block_instance_metadata: own.block_instance_metadata,
        fitness,
        ready,
        give_up_after: positive(own.give_up_after),
        orphan_timeout: positive(own.orphan_timeout.or(Some(ORPHAN_TIMEOUT))),
        instance_id: own.instance_id.map(|id| expand::expand(&id)).filter(|id| !id.trim().is_empty()),
        manager: manager.map_err(|(key, why)| InvalidValue::global(key, format!("`{key}`: {why}")))?,
    })
}

fn check_aws(aws: Option<&AwsConfig>) -> Result<(), InvalidValue> {
    match aws {
        Some(aws) if aws.raise_on_job.is_some() && aws.protect_while_busy == Some(false) => {
            let why = "`protect_while_busy = false`: `raise_on_job` recognises busy instances by their protection; leave \
                       one of them out";
            Err(InvalidValue::global("mayfly.aws.protect_while_busy", why))
        }
        _ => Ok(()),
    }
}

fn fitness(own: &raw::Mayfly) -> Fitness {
    let defaults = Fitness::default();
    Fitness {
        min_free_space: own.min_free_space,
        min_free_inodes: own.min_free_inodes,
        max_system_failures: own.max_system_failures.or(defaults.max_system_failures).filter(|most| *most > 0),
        when_unfit: own.unfit,
        unfit_timeout: own.unfit_timeout.unwrap_or(defaults.unfit_timeout),
    }
}

fn ready(own: &raw::Mayfly, limits: &[FleetLimits]) -> Option<ReadinessCommands> {
    let all = own.ready_command.iter().chain(limits.iter().filter_map(|limits| limits.ready_command.as_ref()));
    let mut commands: Vec<String> = Vec::new();
    for command in all.filter(|command| !command.trim().is_empty()) {
        if !commands.contains(command) {
            commands.push(command.clone());
        }
    }
    let timeout = own.ready_timeout.unwrap_or(READY_TIMEOUT);
    (!commands.is_empty()).then_some(ReadinessCommands { commands, timeout })
}

fn runners(
    path: &Path,
    tables: Vec<IndexedRunner>,
    limits: &[FleetLimits],
    labels: &BTreeMap<String, String>,
) -> Result<Vec<Runner>, InvalidValue> {
    let convert = |((index, table), limits): (IndexedRunner, &FleetLimits)| {
        let name = runner_name(index, &table.name);
        let runner = runner::interpret(path, table, labels).map_err(|(key, why)| InvalidValue {
            location: KeyLocation { runner: Some(index), key },
            why: format!("{name}: {why}"),
        })?;
        Ok(Runner { position: index, limit: runner.limit.into_iter().chain(limits.capacity).min(), ..runner })
    };
    tables.into_iter().zip(limits).map(convert).collect()
}

/// The report of a runner whose executor mayfly does not support.
fn unusable_runner((position, table): IndexedRunner) -> UnusableRunner {
    let reason = executor(&table.executor).err().unwrap_or_default();
    UnusableRunner { position, why: format!("{}: {reason}", runner_name(position, &table.name)), name: table.name }
}

/// The name of a runner in messages.
fn runner_name(index: usize, name: &str) -> String {
    match name {
        "" => format!("runner number {}", index + 1),
        name => format!("runner `{name}`"),
    }
}

/// An empty path counts as not set.
fn non_empty(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// Zero counts as not set.
fn positive(time: Option<Duration>) -> Option<Duration> {
    time.filter(|time| !time.is_zero())
}

/// Stores the tables as written, without tokens: the journal contains the table of each job's runner, and the process
/// that creates a job's containers parses `[runners.docker]` again.
pub(super) fn store_written_tables(text: &str, config: &mut Config) {
    let (settings, tables) = carried::split(text);
    config.settings = settings;
    for runner in &mut config.runners {
        runner.written = tables.get(runner.position).cloned().unwrap_or_default();
        if let Some(docker) = runner.written.get("docker").and_then(toml::Value::as_table) {
            runner.docker_text = docker.to_string();
        }
    }
}
