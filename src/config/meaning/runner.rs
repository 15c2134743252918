//! Converts one of `[[runners]]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{non_empty, positive};
use crate::config::cache::StorageLimits;
use crate::config::reference::TokenReference;
use crate::config::runner::{PoolKeys, Retention, SandboxSettings, ScriptHooks, executor};
use crate::config::{ExecutorKind, Runner, expand, raw};
use crate::http::tls::TlsFiles;
use crate::token::Token;

/// A key with an invalid value, and the reason.
type InvalidKey = (&'static str, String);

/// Converts a runner; `labels` are those of all runners.
pub fn interpret(path: &Path, raw: raw::Runner, labels: &BTreeMap<String, String>) -> Result<Runner, InvalidKey> {
    let mut runner = identify(path, &raw)?;
    runner.shell = shell(raw.shell.as_deref())?;
    runner.environment = environment(&raw, runner.executor)?;
    runner.labels = labels.clone().into_iter().chain(raw.labels.clone()).collect();
    set_limits(&mut runner, &raw);
    set_directories(&mut runner, &raw)?;
    set_timeouts(&mut runner, &raw);
    runner.hooks = ScriptHooks {
        pre_get_sources: raw.pre_get_sources_script,
        post_get_sources: raw.post_get_sources_script,
        pre_build: raw.pre_build_script,
        post_build: raw.post_build_script,
    };
    runner.clone_url = raw.clone_url.filter(|url| !url.is_empty());
    runner.debug_trace_disabled = raw.debug_trace_disabled;
    runner.custom_build_dir = raw.custom_build_dir.enabled.unwrap_or(runner.executor != ExecutorKind::Shell);
    runner.feature_flags = raw.feature_flags;
    runner.cache = raw.cache;
    runner.docker = raw.docker;
    set_own_keys(&mut runner, raw.mayfly)?;
    Ok(runner)
}

/// A runner with its server, token and executor, and with defaults for the rest.
fn identify(path: &Path, raw: &raw::Runner) -> Result<Runner, InvalidKey> {
    let url = expand::expand(&raw.url);
    let token = expand::expand(&raw.token);
    let token_reference = TokenReference::read(&token).map_err(|why| ("token", why))?;
    let token = if token_reference.is_some() { Token::new("") } else { Token::new(token) };
    let life = raw.token_obtained_at.zip(raw.token_expires_at).map(|(from, to)| (from.to_string(), to.to_string()));
    let files = [&raw.tls_ca_file, &raw.tls_cert_file, &raw.tls_key_file].map(Clone::clone);
    Ok(Runner {
        name: raw.name.clone(),
        token_reference,
        id: raw.id,
        // gitlab-runner writes year 1 for a token that does not expire.
        token_life: life.filter(|(_, expires)| !expires.starts_with("0001-")),
        tls: tls_files(path, &url, files),
        executor: executor(&raw.executor).map_err(|why| ("executor", why))?,
        ..Runner::with_defaults(&url, token)
    })
}

fn shell(name: Option<&str>) -> Result<Option<String>, InvalidKey> {
    match name {
        None | Some("") => Ok(None),
        Some(name @ ("bash" | "sh")) => Ok(Some(name.to_owned())),
        Some(other) => Err(("shell", format!("`shell = \"{other}\"`: mayfly supports bash and sh"))),
    }
}

/// The variables for jobs. `environment` below `[[runners]]` takes precedence over `[runners.docker]`.
fn environment(raw: &raw::Runner, executor: ExecutorKind) -> Result<Vec<(String, String)>, InvalidKey> {
    let mut environment = match executor.has_containers() {
        true => pairs("docker.environment", &raw.docker.environment)?,
        false => Vec::new(),
    };
    environment.extend(pairs("environment", &raw.environment)?);
    Ok(environment)
}

/// Parses `KEY=VALUE` entries. An invalid entry may be a secret, so messages do not show it.
fn pairs(key: &'static str, texts: &[String]) -> Result<Vec<(String, String)>, InvalidKey> {
    let pair = |(index, text): (usize, &String)| match text.split_once('=').filter(|(name, _)| !name.is_empty()) {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err((key, format!("`{key}`: entry number {} is not KEY=VALUE", index + 1))),
    };
    texts.iter().enumerate().map(pair).collect()
}

/// Limits of jobs, polls and reports. Zero stands for the default, and for no limit of jobs.
fn set_limits(runner: &mut Runner, raw: &raw::Runner) {
    const KIBIBYTE: u64 = 1024;
    runner.limit = Some(raw.limit).filter(|jobs| *jobs > 0);
    runner.request_concurrency = raw.request_concurrency.unwrap_or(1).max(1);
    runner.strict_check_interval = raw.strict_check_interval;
    if let Some(size) = raw.output_limit.filter(|size| *size > 0) {
        runner.output_limit = size.saturating_mul(KIBIBYTE);
    }
    if let Some(polls) = raw.unhealthy_requests_limit.filter(|polls| *polls > 0) {
        runner.unhealthy_requests_limit = polls;
    }
    if let Some(attempts) = raw.job_status_final_update_retry_limit.filter(|attempts| *attempts > 0) {
        runner.final_report_attempts = attempts;
    }
}

/// The directories of builds and caches. With containers, `builds_dir` is a directory in the container.
fn set_directories(runner: &mut Runner, raw: &raw::Runner) -> Result<(), InvalidKey> {
    runner.builds_dir = non_empty(raw.builds_dir.clone());
    runner.cache_dir = non_empty(raw.cache_dir.clone());
    let in_container = runner.builds_dir.as_deref().filter(|_| runner.executor.has_containers());
    match in_container.filter(|directory| !directory.is_absolute() || *directory == Path::new("/")) {
        None => Ok(()),
        Some(directory) => {
            let why = format!(
                "`builds_dir = \"{}\"` is a directory in containers: write an absolute path other than /, such as /builds",
                directory.display()
            );
            Err(("builds_dir", why))
        }
    }
}

fn set_timeouts(runner: &mut Runner, raw: &raw::Runner) {
    runner.unhealthy_interval = raw.unhealthy_interval.unwrap_or(runner.unhealthy_interval);
    runner.prepare_timeout = positive(raw.prepare_timeout);
    runner.get_sources_timeout = positive(raw.get_sources_timeout);
    runner.upload_timeout = positive(raw.artifact.upload_timeout).unwrap_or(runner.upload_timeout);
    let response_timeout = positive(raw.artifact.response_header_timeout);
    runner.upload_response_timeout = response_timeout.unwrap_or(runner.upload_response_timeout);
}

/// The keys of `[runners.mayfly]`.
fn set_own_keys(runner: &mut Runner, raw: raw::RunnerMayfly) -> Result<(), InvalidKey> {
    runner.confined = sandbox_settings(&raw)?;
    runner.kill_grace = raw.kill_grace.unwrap_or(runner.kill_grace);
    runner.cgroups = raw.cgroups.unwrap_or(true);
    runner.retention = Retention {
        caches: StorageLimits { size: raw.cache_max_size, age: raw.cache_max_age },
        builds: StorageLimits { size: raw.builds_max_size, age: raw.builds_max_age },
        images_max_age: raw.images_max_age,
        cache_volumes: StorageLimits { size: raw.cache_volumes_max_size, age: raw.cache_volumes_max_age },
    };
    runner.container_builds_dir = non_empty(raw.builds_dir);
    runner.container_cache_dir = non_empty(raw.cache_dir);
    runner.ecr_login = raw.ecr_login.unwrap_or(true);
    runner.allowed_credential_helpers = check_helpers(raw.allowed_credential_helpers)?;
    let non_empty = |text: &String| !text.is_empty();
    runner.pool = PoolKeys {
        auto_scaling_group: raw.auto_scaling_group.filter(non_empty),
        region: raw.region.filter(non_empty),
        agent_role: raw.agent_role.filter(non_empty),
    };
    Ok(())
}

/// Checks the settings of the sandbox.
fn sandbox_settings(raw: &raw::RunnerMayfly) -> Result<SandboxSettings, InvalidKey> {
    let defaults = SandboxSettings::default();
    let uid = raw.confined_uid.unwrap_or(defaults.uid);
    if uid == 0 || uid >= u32::MAX - 1 {
        return Err(("confined_uid", format!("`confined_uid = {uid}` is not an unprivileged user; remove the key")));
    }
    let memory = match raw.confined_memory.map(|size| u64::try_from(size.0)) {
        None => defaults.memory,
        Some(Ok(0) | Err(_)) => {
            return Err(("confined_memory", "`confined_memory` must be greater than 0".to_owned()));
        }
        Some(Ok(bytes)) => Some(bytes),
    };
    let processes = raw.confined_processes.filter(|processes| *processes > 0).unwrap_or(defaults.processes);
    Ok(SandboxSettings { uid, memory, processes })
}

/// Checks names of credential helpers. A path or the full program name is an error.
fn check_helpers(names: Vec<String>) -> Result<Vec<String>, InvalidKey> {
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

/// The configured certificate files (authority, certificate, key), or those beside the configuration that are named
/// after the server (`certs/HOST.crt`, `HOST.auth.crt`, `HOST.auth.key`).
pub fn tls_files(path: &Path, url: &str, [ca, cert, key]: [Option<PathBuf>; 3]) -> TlsFiles {
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
        ca_file: non_empty(ca).or_else(|| beside(".crt")),
        cert_file: non_empty(cert).or_else(|| beside(".auth.crt")),
        key_file: non_empty(key).or_else(|| beside(".auth.key")),
        ..TlsFiles::default()
    }
}
