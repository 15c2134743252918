//! Converts the raw file to the configuration: checks values and fills in defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cache::StorageLimits;
use super::fitness::{Fitness, READY_TIMEOUT, Ready};
use super::leave::{Leave, LeaveStrategy};
use super::lifetime::{IdleTimes, LifetimeBounds, Terms, capacity};
use super::location::KeyLocation;
use super::reference::TokenReference;
use super::runner::{Confined, UPLOAD_ANSWER_TIMEOUT, UPLOAD_TIMEOUT, executor, is_unsupported};
use super::{Config, ExecutorKind, Mayfly, Role, Runner, Unusable, carried, expand, raw};
use crate::http::tls::TlsFiles;
use crate::token::Token;

/// A value that is valid TOML but not a valid setting.
pub(super) struct InvalidValue {
    place: KeyLocation,
    why: String,
}

impl InvalidValue {
    fn global(key: &'static str, why: impl Into<String>) -> Self {
        Self { place: KeyLocation { runner: None, key }, why: why.into() }
    }

    pub(super) fn shown(&self, text: &str) -> String {
        self.place.show(text, &self.why)
    }
}

/// Converts the whole file. Fails for an invalid value.
pub(super) fn of(path: &Path, raw: raw::Config, role: Role) -> Result<Config, InvalidValue> {
    let concurrent_is_set = raw.concurrent.is_some();
    let concurrent = raw.concurrent.unwrap_or(1);
    let concurrent = u32::try_from(concurrent).ok().filter(|jobs| *jobs > 0);
    let concurrent = concurrent.ok_or_else(|| {
        InvalidValue::global("concurrent", "`concurrent` must be at least 1, or no job would ever run")
    })?;
    check_one_of("log_level", raw.log_level.as_deref(), &LOG_LEVELS)?;
    check_one_of("log_format", raw.log_format.as_deref(), &LOG_FORMATS)?;
    let listen_address = raw.listen_address.filter(|address| !address.is_empty());
    if let Some(address) = &listen_address {
        let unusable = |why| InvalidValue::global("listen_address", format!("`listen_address`: {why}"));
        crate::monitor::listener::check_address(address).map_err(unusable)?;
    }
    let interval = raw.check_interval.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    let (unusable, mut usable): (Vec<_>, Vec<_>) =
        raw.runners.into_iter().enumerate().partition(|(_, runner)| is_unsupported(&runner.executor));
    let terms = |(_, runner): &mut (usize, raw::Runner)| {
        Terms::of(&runner.executor, runner.machine.take(), runner.autoscaler.take())
    };
    let mut terms: Vec<Terms> = usable.iter_mut().map(terms).collect();
    if role == Role::Manager {
        // For a manager, `concurrent` and `limit` apply to the fleet, not to one instance.
        terms.iter_mut().for_each(|terms| terms.capacity = None);
    }
    if let Some(aws) = &raw.mayfly.aws
        && aws.raise_on_job.is_some()
        && aws.protect_while_busy == Some(false)
    {
        let why = "`protect_while_busy = false`: `raise_on_job` recognises busy instances by their protection; leave \
                   one of them out";
        return Err(InvalidValue::global("mayfly.aws.protect_while_busy", why));
    }
    let manager = raw.mayfly.manager.clone().map(super::manager::Table::meaning).transpose();
    let manager = manager.map_err(|(key, why)| InvalidValue::global(key, format!("`{key}`: {why}")))?;
    let ready = ready(&raw.mayfly, &terms);
    let fitness = fitness(&raw.mayfly);
    let labels = raw.labels;
    let name_of = |index: usize, name: &str| match name {
        "" => format!("runner number {}", index + 1),
        name => format!("runner `{name}`"),
    };
    let unusable = unusable.into_iter().map(|(index, runner)| Unusable {
        position: index,
        name: runner.name.clone(),
        why: format!("{}: {}", name_of(index, &runner.name), executor(&runner.executor).err().unwrap_or_default()),
    });
    let runners = usable.into_iter().zip(&terms).map(|((index, runner), terms)| {
        let name = name_of(index, &runner.name);
        let runner = self::runner(path, runner, &labels).map_err(|(key, why)| InvalidValue {
            place: KeyLocation { runner: Some(index), key },
            why: format!("{name}: {why}"),
        })?;
        Ok(Runner { position: index, limit: runner.limit.into_iter().chain(terms.capacity).min(), ..runner })
    });
    Ok(Config {
        path: path.to_owned(),
        concurrent_is_set,
        concurrent: capacity(&terms).map_or(concurrent, |capacity| capacity.min(concurrent)),
        check_interval: Duration::from_secs(interval.unwrap_or(3)),
        log_level: raw.log_level,
        log_format: raw.log_format,
        user: raw.user.filter(|user| !user.is_empty()),
        listen_address,
        shutdown_timeout: Duration::from_secs(raw.shutdown_timeout.filter(|seconds| *seconds > 0).unwrap_or(30)),
        connection_max_age: raw.connection_max_age.unwrap_or(Duration::from_secs(15 * 60)),
        lifetime: lifetime(&raw.mayfly, &terms),
        leave: leave(&raw.mayfly).map_err(|(key, why)| InvalidValue::global(key, why))?,
        mayfly: Mayfly {
            state_dir: given(raw.mayfly.state_dir),
            aws: raw.mayfly.aws,
            block_instance_metadata: raw.mayfly.block_instance_metadata,
            fitness,
            ready,
            give_up_after: raw.mayfly.give_up_after.filter(|after| !after.is_zero()),
            orphan_timeout: match raw.mayfly.orphan_timeout {
                None => Some(ORPHAN_TIMEOUT),
                Some(timeout) => Some(timeout).filter(|timeout| !timeout.is_zero()),
            },
            instance_id: raw.mayfly.instance_id.map(|id| expand::expand(&id)).filter(|id| !id.trim().is_empty()),
            manager,
        },
        runners: runners.collect::<Result<_, _>>()?,
        unusable: unusable.collect(),
        settings: toml::Table::new(),
    })
}

/// The lifetime of the instance: from `[mayfly]`, else from the runners' tables.
fn lifetime(own: &raw::Mayfly, terms: &[Terms]) -> LifetimeBounds {
    let of_runners = || terms.iter().filter_map(|terms| terms.idle.clone()).collect();
    LifetimeBounds {
        max_builds: match own.max_builds {
            Some(builds) => Some(builds).filter(|builds| *builds > 0),
            None => terms.iter().filter_map(|terms| terms.max_builds).min(),
        },
        max_age: own.max_age.filter(|age| !age.is_zero()),
        idle: own.idle_timeout.map_or_else(of_runners, |timeout| vec![IdleTimes::always(timeout)]),
        idle_is_of_fleet: own.idle_timeout.is_none(),
    }
}

fn fitness(own: &raw::Mayfly) -> Fitness {
    let usual = Fitness::default();
    Fitness {
        min_free_space: own.min_free_space,
        min_free_inodes: own.min_free_inodes,
        max_system_failures: own
            .max_system_failures
            .map_or(usual.max_system_failures, |most| Some(most).filter(|most| *most > 0)),
        when_unfit: own.unfit,
        unfit_timeout: own.unfit_timeout.unwrap_or(usual.unfit_timeout),
    }
}

fn ready(own: &raw::Mayfly, terms: &[Terms]) -> Option<Ready> {
    let all = own.ready_command.iter().chain(terms.iter().filter_map(|terms| terms.ready_command.as_ref()));
    let mut commands: Vec<String> = Vec::new();
    for command in all.filter(|command| !command.trim().is_empty()) {
        if !commands.contains(command) {
            commands.push(command.clone());
        }
    }
    let timeout = own.ready_timeout.unwrap_or(READY_TIMEOUT);
    (!commands.is_empty()).then_some(Ready { commands, timeout })
}

/// The settings of `leave`. The error has the invalid key and the reason.
fn leave(own: &raw::Mayfly) -> Result<Leave, (&'static str, &'static str)> {
    let usual = Leave::default();
    let given = |command: &Option<String>| command.clone().filter(|command| !command.trim().is_empty());
    let (strategy, command) = (own.leave.unwrap_or_default(), given(&own.leave_command));
    match (strategy == LeaveStrategy::Command, command.is_some()) {
        (true, false) => {
            Err(("mayfly.leave", "`leave = \"command\"` needs a `leave_command`, which ends the instance"))
        }
        (false, true) => Err(("mayfly.leave_command", "`leave_command` has an effect only with `leave = \"command\"`")),
        _ => Ok(Leave {
            configured: own.leave,
            strategy,
            command,
            poweroff_command: given(&own.poweroff_command).unwrap_or(usual.poweroff_command),
            fallback_after: own.leave_fallback_after.unwrap_or(usual.fallback_after),
        }),
    }
}

/// The default of `orphan_timeout`.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// The values of `log_level`, in any case; `panic` and `fatal` are gitlab-runner's.
pub const LOG_LEVELS: [&str; 8] = ["trace", "debug", "info", "warn", "warning", "error", "fatal", "panic"];
/// The values of `log_format`.
const LOG_FORMATS: [&str; 3] = ["runner", "text", "json"];

fn check_one_of(key: &'static str, given: Option<&str>, allowed: &[&str]) -> Result<(), InvalidValue> {
    match given {
        Some(given) if !given.is_empty() && !allowed.iter().any(|one| one.eq_ignore_ascii_case(given)) => {
            Err(InvalidValue::global(key, format!("`{key}` must be one of {}", allowed.join(", "))))
        }
        _ => Ok(()),
    }
}

/// Converts a runner. The error has the invalid key and the reason.
fn runner(path: &Path, raw: raw::Runner, labels: &BTreeMap<String, String>) -> Result<Runner, (&'static str, String)> {
    let executor = executor(&raw.executor).map_err(|why| ("executor", why))?;
    if let Some(shell) = raw.shell.as_deref().filter(|shell| !matches!(*shell, "" | "bash" | "sh")) {
        return Err(("shell", format!("`shell = \"{shell}\"`: mayfly supports bash and sh")));
    }
    let url = expand::expand(&raw.url);
    // `environment` below `[[runners]]` takes precedence over `[runners.docker]`.
    let mut environment = match is_of_containers(&raw.executor) {
        true => pairs("docker.environment", &raw.docker.environment)?,
        false => Vec::new(),
    };
    environment.extend(pairs("environment", &raw.environment)?);
    let life = raw.token_obtained_at.zip(raw.token_expires_at).map(|(from, to)| (from.to_string(), to.to_string()));
    let token = expand::expand(&raw.token);
    let reference = TokenReference::read(&token).map_err(|why| ("token", why))?;
    let mut all_labels = labels.clone();
    all_labels.extend(raw.labels);
    let builds_dir = given(raw.builds_dir);
    if let Some(directory) = builds_dir.as_deref().filter(|_| executor.has_containers())
        && (!directory.is_absolute() || directory == Path::new("/"))
    {
        let directory = directory.display();
        return Err((
            "builds_dir",
            format!(
                "`builds_dir = \"{directory}\"` is a directory in containers: write an absolute path other than /, such as \
             /builds"
            ),
        ));
    }
    Ok(Runner {
        position: 0,
        tls: tls_files(path, &url, raw.tls_ca_file, raw.tls_cert_file, raw.tls_key_file),
        name: raw.name,
        token: if reference.is_some() { Token::new("") } else { Token::new(token) },
        token_reference: reference,
        id: raw.id,
        url,
        token_life: life.filter(|(_, expires)| !expires.starts_with("0001-")),
        executor,
        shell: raw.shell.filter(|shell| !shell.is_empty()),
        limit: (raw.limit > 0).then_some(raw.limit),
        request_concurrency: raw.request_concurrency.unwrap_or(1).max(1),
        strict_check_interval: raw.strict_check_interval,
        output_limit: raw.output_limit.filter(|kibibytes| *kibibytes > 0).unwrap_or(4096).saturating_mul(1024),
        unhealthy_requests_limit: raw.unhealthy_requests_limit.filter(|limit| *limit > 0).unwrap_or(3),
        unhealthy_interval: raw.unhealthy_interval.unwrap_or(Duration::from_secs(3600)),
        final_tries: raw.job_status_final_update_retry_limit.filter(|tries| *tries > 0).unwrap_or(10),
        builds_dir,
        cache_dir: given(raw.cache_dir),
        cache: raw.cache,
        build_limits: StorageLimits { size: raw.mayfly.builds_max_size, age: raw.mayfly.builds_max_age },
        images_max_age: raw.mayfly.images_max_age,
        cache_volume_limits: StorageLimits {
            size: raw.mayfly.cache_volumes_max_size,
            age: raw.mayfly.cache_volumes_max_age,
        },
        cache_limits: StorageLimits { size: raw.mayfly.cache_max_size, age: raw.mayfly.cache_max_age },
        upload_timeout: positive(raw.artifact.upload_timeout).unwrap_or(UPLOAD_TIMEOUT),
        upload_answer_timeout: positive(raw.artifact.response_header_timeout).unwrap_or(UPLOAD_ANSWER_TIMEOUT),
        clone_url: raw.clone_url.filter(|url| !url.is_empty()),
        environment,
        pre_get_sources_script: raw.pre_get_sources_script,
        post_get_sources_script: raw.post_get_sources_script,
        pre_build_script: raw.pre_build_script,
        post_build_script: raw.post_build_script,
        prepare_timeout: positive(raw.prepare_timeout),
        get_sources_timeout: positive(raw.get_sources_timeout),
        debug_trace_disabled: raw.debug_trace_disabled,
        labels: all_labels,
        custom_build_dir: raw.custom_build_dir.enabled.unwrap_or(executor != ExecutorKind::Shell),
        feature_flags: raw.feature_flags,
        kill_grace: raw.mayfly.kill_grace.unwrap_or(Duration::from_secs(10)),
        cgroups: raw.mayfly.cgroups.unwrap_or(true),
        confined: confined(&raw.mayfly)?,
        docker: raw.docker,
        docker_text: String::new(),
        written: toml::Table::new(),
        key: None,
        container_builds_dir: given(raw.mayfly.builds_dir),
        container_cache_dir: given(raw.mayfly.cache_dir),
        ecr_login: raw.mayfly.ecr_login.unwrap_or(true),
        allowed_credential_helpers: helpers(raw.mayfly.allowed_credential_helpers)?,
        auto_scaling_group: raw.mayfly.auto_scaling_group.filter(|name| !name.is_empty()),
        region: raw.mayfly.region.filter(|name| !name.is_empty()),
        agent_role: raw.mayfly.agent_role.filter(|role| !role.is_empty()),
    })
}

/// Checks names of credential helpers. A path or the full program name is an error.
fn helpers(names: Vec<String>) -> Result<Vec<String>, (&'static str, String)> {
    const KEY: &str = "mayfly.allowed_credential_helpers";
    match names.iter().find(|name| !is_helper_name(name) || name.starts_with("docker-credential-")) {
        Some(name) => Err((KEY, format!("`{KEY}`: `{name}` is not a name; write what follows `docker-credential-`"))),
        None => Ok(names),
    }
}

/// Whether a text can be the name of a credential helper, without `docker-credential-` and without a path.
pub fn is_helper_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty() && name.bytes().all(is_plain)
}

/// Parses `KEY=VALUE` entries. An invalid entry may be a secret, so messages do not show it.
fn pairs(key: &'static str, texts: &[String]) -> Result<Vec<(String, String)>, (&'static str, String)> {
    let pair = |(index, text): (usize, &String)| match text.split_once('=').filter(|(name, _)| !name.is_empty()) {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err((key, format!("`{key}`: entry number {} is not KEY=VALUE", index + 1))),
    };
    texts.iter().enumerate().map(pair).collect()
}

/// Whether an executor runs jobs in containers.
pub(super) fn is_of_containers(executor: &str) -> bool {
    super::executor(executor).is_ok_and(ExecutorKind::has_containers)
}

/// Checks the settings of the sandbox.
fn confined(raw: &super::raw::RunnerMayfly) -> Result<Confined, (&'static str, String)> {
    let usual = Confined::default();
    let uid = raw.confined_uid.unwrap_or(usual.uid);
    if uid == 0 || uid >= u32::MAX - 1 {
        return Err(("confined_uid", format!("`confined_uid = {uid}` is not an unprivileged user; remove the key")));
    }
    let memory = match raw.confined_memory.map(|size| u64::try_from(size.0)) {
        None => usual.memory,
        Some(Ok(0) | Err(_)) => {
            return Err(("confined_memory", "`confined_memory` must be greater than 0".to_owned()));
        }
        Some(Ok(bytes)) => Some(bytes),
    };
    let processes = raw.confined_processes.filter(|processes| *processes > 0).unwrap_or(usual.processes);
    Ok(Confined { uid, memory, processes })
}

/// An empty path counts as not set.
fn given(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// Zero counts as not set.
fn positive(time: Option<Duration>) -> Option<Duration> {
    time.filter(|time| !time.is_zero())
}

/// Stores the tables as written, without tokens: the journal contains the table of each job's runner, and the process
/// that creates a job's containers parses `[runners.docker]` again.
pub(super) fn note_written(text: &str, config: &mut Config) {
    let (settings, tables) = carried::split(text);
    config.settings = settings;
    for runner in &mut config.runners {
        runner.written = tables.get(runner.position).cloned().unwrap_or_default();
        if let Some(docker) = runner.written.get("docker").and_then(toml::Value::as_table) {
            runner.docker_text = docker.to_string();
        }
    }
}

/// The configured certificate files, or those beside the configuration that are named after the server
/// (`certs/HOST.crt`, `HOST.auth.crt`, `HOST.auth.key`).
pub(super) fn tls_files(
    path: &Path,
    url: &str,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
) -> TlsFiles {
    let origin = crate::http::origin(url);
    let authority = origin.split_once("://").map_or(origin.as_str(), |(_, authority)| authority);
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let beside = |suffix: &str| {
        let file = path.parent()?.join("certs").join(format!("{host}{suffix}"));
        file.is_file().then_some(file)
    };
    TlsFiles {
        ca_file: given(ca).or_else(|| beside(".crt")),
        cert_file: given(cert).or_else(|| beside(".auth.crt")),
        key_file: given(key).or_else(|| beside(".auth.key")),
        ..TlsFiles::default()
    }
}
