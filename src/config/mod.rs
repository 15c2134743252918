//! `config.toml` as types; defaults in one place.
//!
//! The file is gitlab-runner's: a fleet moves over by swapping the binary. What is ours alone stands below `[mayfly]`
//! and `[runners.mayfly]`. This layer reads and edits the file; it asks no server and runs nothing.

pub mod aws;
pub mod cache;
pub mod docker;
pub mod duration;
pub mod edit;
mod expand;
mod findings;
mod keys;
pub mod lifetime;
pub mod period;
mod place;
mod raw;
pub mod reference;
pub mod system_id;

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use findings::Finding;

use crate::coordinator::Token;
use crate::decode;
use crate::http::tls::TlsFiles;
use cache::Limits;
use docker::Docker;
use lifetime::{Leave, Lifetime, Terms};
use place::Place;
use reference::Reference;

/// How long one upload of artifacts may take where `[runners.artifact]` says nothing else.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long the server may think then, where `[runners.artifact]` says nothing else.
const UPLOAD_ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// What the whole agent does.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file.
    pub path: PathBuf,
    /// Jobs at once, at least 1.
    pub concurrent: u32,
    /// Between two requests of a runner that got no job.
    pub check_interval: Duration,
    /// `debug`, `info`, `warn`, `error`, as written.
    pub log_level: Option<String>,
    /// `runner`, `text` or `json`.
    pub log_format: Option<String>,
    /// Whom jobs run as; `None` for the agent's own user.
    pub user: Option<String>,
    /// Where metrics are served, if anywhere.
    pub listen_address: Option<String>,
    /// How long jobs may go on after SIGTERM.
    pub shutdown_timeout: Duration,
    /// How long an unused connection is kept.
    pub connection_max_age: Duration,
    /// The bounds of the instance's life.
    pub lifetime: Lifetime,
    /// How the instance goes.
    pub leave: Leave,
    /// Our own keys.
    pub mayfly: Mayfly,
    /// Where jobs come from.
    pub runners: Vec<Runner>,
}

/// `[mayfly]`.
#[derive(Clone, Debug, Default)]
pub struct Mayfly {
    /// Where the journal and the logs of running jobs are kept.
    pub state_dir: Option<PathBuf>,
    /// What is told of the instance in AWS; being there, it says that this is one.
    pub aws: Option<aws::Aws>,
    /// Jobs are kept from the instance's metadata, and from its credentials with that.
    pub block_instance_metadata: bool,
}

/// One of `[[runners]]`.
#[derive(Clone, Debug)]
pub struct Runner {
    /// For people.
    pub name: String,
    /// The server.
    pub url: String,
    /// The runner's own secret; empty until it is fetched, where there is a reference.
    pub token: Token,
    /// Where the secret is kept, if it does not stand in the file.
    pub token_reference: Option<Reference>,
    /// Its number on the server, where it is known.
    pub id: Option<i64>,
    /// When the token was obtained and when it dies (RFC 3339), if it does.
    pub token_life: Option<(String, String)>,
    /// Certificates.
    pub tls: TlsFiles,
    /// How jobs are run.
    pub executor: ExecutorKind,
    /// `bash` or `sh`; `None` takes what is there.
    pub shell: Option<String>,
    /// Jobs of this runner at once; `None` without bound.
    pub limit: Option<u32>,
    /// Requests of this runner at once, at least 1.
    pub request_concurrency: u32,
    /// Rest between requests even after a job.
    pub strict_check_interval: bool,
    /// Bytes of a job's log.
    pub output_limit: u64,
    /// Refusals in a row before the runner rests.
    pub unhealthy_requests_limit: u32,
    /// How long it rests.
    pub unhealthy_interval: Duration,
    /// Tries of a job's final state.
    pub final_tries: u32,
    /// Where jobs work; `None` for `builds` in the working directory.
    pub builds_dir: Option<PathBuf>,
    /// Where caches are kept on this machine; `None` for `cache` in the working directory.
    pub cache_dir: Option<PathBuf>,
    /// The object store for caches.
    pub cache: cache::Cache,
    /// What the caches on this machine may grow to.
    pub cache_limits: Limits,
    /// How long one upload of artifacts may take.
    pub upload_timeout: Duration,
    /// How long the server may think once it has all of an upload.
    pub upload_answer_timeout: Duration,
    /// Overrides the server's URL for git.
    pub clone_url: Option<String>,
    /// Variables for every job.
    pub environment: Vec<(String, String)>,
    /// Lines before the sources.
    pub pre_get_sources_script: Option<String>,
    /// Lines after the sources.
    pub post_get_sources_script: Option<String>,
    /// Lines before the job's script, in its shell.
    pub pre_build_script: Option<String>,
    /// Lines after the job's script, in its shell.
    pub post_build_script: Option<String>,
    /// Limit of what is prepared before the sources.
    pub prepare_timeout: Option<Duration>,
    /// Limit of the sources.
    pub get_sources_timeout: Option<Duration>,
    /// `CI_DEBUG_TRACE` is refused.
    pub debug_trace_disabled: bool,
    /// What GitLab is told of this runner manager.
    pub labels: BTreeMap<String, String>,
    /// `GIT_CLONE_PATH` is allowed.
    pub custom_build_dir: bool,
    /// Flags that jobs cannot change.
    pub feature_flags: BTreeMap<String, bool>,
    /// From TERM to KILL.
    pub kill_grace: Duration,
    /// Give each script a control group.
    pub cgroups: bool,
    /// What containers are made of.
    pub docker: Docker,
    /// The same as it is written, for another process.
    pub docker_text: String,
    /// Where builds of containers are kept on the machine; `None` for `builds` in the working directory.
    pub container_builds_dir: Option<PathBuf>,
    /// Where caches of containers are kept on the machine; `None` for `cache` in the working directory.
    pub container_cache_dir: Option<PathBuf>,
    /// Fetch a login for Amazon's registries where no other is configured.
    pub ecr_login: bool,
}

/// Executors of this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecutorKind {
    /// The shell of the instance.
    Shell,
    /// The same, in fleets.
    Instance,
    /// Containers.
    Docker,
    /// The same, in fleets.
    DockerAutoscaler,
    /// The same, in fleets of the kind before.
    DockerMachine,
}

impl ExecutorKind {
    /// The name in the file and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Instance => "instance",
            Self::Docker => "docker",
            Self::DockerAutoscaler => "docker-autoscaler",
            Self::DockerMachine => "docker+machine",
        }
    }

    /// Jobs run in containers.
    pub fn has_containers(self) -> bool {
        matches!(self, Self::Docker | Self::DockerAutoscaler | Self::DockerMachine)
    }
}

/// A configuration and what is to be said of it.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Keys without effect, unknown keys, a file that others can read.
    pub findings: Vec<Finding>,
}

/// Why a configuration cannot be used.
#[derive(Debug)]
pub enum Error {
    /// The file cannot be read.
    Unreadable(PathBuf, std::io::Error),
    /// What is wrong in it, with its line.
    Invalid(PathBuf, String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(path, error) => write!(
                f,
                "{}: {error}; make it with `mayfly register`, or name another file with --config",
                path.display()
            ),
            Self::Invalid(path, why) => write!(f, "{}: {why}", path.display()),
        }
    }
}

impl std::error::Error for Error {}

impl Runner {
    /// The token as it stands in the file, variables replaced.
    pub fn written_token(&self) -> String {
        self.token_reference.as_ref().map_or_else(|| self.token.reveal().to_owned(), Reference::to_string)
    }

    /// A runner of which only server and token are known, with defaults for the rest.
    pub fn unnamed(url: &str, token: Token) -> Self {
        Self {
            name: "unknown".to_owned(),
            url: url.to_owned(),
            token,
            token_reference: None,
            id: None,
            token_life: None,
            tls: TlsFiles::default(),
            executor: ExecutorKind::Shell,
            shell: None,
            limit: None,
            request_concurrency: 1,
            strict_check_interval: false,
            output_limit: 4 << 20,
            unhealthy_requests_limit: 3,
            unhealthy_interval: Duration::from_secs(3600),
            final_tries: 10,
            builds_dir: None,
            cache_dir: None,
            cache: cache::Cache::default(),
            cache_limits: Limits::default(),
            upload_timeout: UPLOAD_TIMEOUT,
            upload_answer_timeout: UPLOAD_ANSWER_TIMEOUT,
            clone_url: None,
            environment: Vec::new(),
            pre_get_sources_script: None,
            post_get_sources_script: None,
            pre_build_script: None,
            post_build_script: None,
            prepare_timeout: None,
            get_sources_timeout: None,
            debug_trace_disabled: false,
            labels: BTreeMap::new(),
            custom_build_dir: false,
            feature_flags: BTreeMap::new(),
            kill_grace: Duration::from_secs(10),
            cgroups: true,
            docker: Docker::default(),
            docker_text: String::new(),
            container_builds_dir: None,
            container_cache_dir: None,
            ecr_login: true,
        }
    }
}

impl Config {
    /// Reads the file at `path`. Errors: unreadable, not TOML, or a value that is none; the message shows the line.
    pub fn load(path: &Path) -> Result<Loaded, Error> {
        let text = fs::read_to_string(path).map_err(|error| Error::Unreadable(path.to_owned(), error))?;
        let config = Self::parse(path, &text)?;
        let mut findings = findings::of_keys(&text);
        findings.extend(findings::of_containers(&text, &config.runners));
        findings.extend(findings::of_mode(path));
        Ok(Loaded { config, findings })
    }

    /// The configuration that a text is, or would be at `path`. Errors: as for [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let invalid = |why: String| Error::Invalid(path.to_owned(), why);
        let raw: raw::Config = decode::toml(text).map_err(|error| invalid(place::of_error(text, &error)))?;
        let mut config = from_raw(path, raw).map_err(|wrong| invalid(wrong.shown(text)))?;
        note_docker_texts(text, &mut config.runners);
        Ok(config)
    }
}

/// Keeps `[runners.docker]` of each runner as it is written: the process that makes a job's containers reads it again.
fn note_docker_texts(text: &str, runners: &mut [Runner]) {
    let Ok(table) = text.parse::<toml::Table>() else { return };
    let written = table.get("runners").and_then(toml::Value::as_array);
    for (runner, written) in runners.iter_mut().zip(written.into_iter().flatten()) {
        if let Some(docker) = written.get("docker").and_then(toml::Value::as_table) {
            runner.docker_text = docker.to_string();
        }
    }
}

/// A value that TOML allows and that makes no sense.
struct Wrong {
    place: Place,
    why: String,
}

impl Wrong {
    fn global(key: &'static str, why: impl Into<String>) -> Self {
        Self { place: Place { runner: None, key }, why: why.into() }
    }

    fn shown(&self, text: &str) -> String {
        self.place.show(text, &self.why)
    }
}

fn from_raw(path: &Path, mut raw: raw::Config) -> Result<Config, Wrong> {
    let concurrent = raw.concurrent.unwrap_or(1);
    let concurrent = u32::try_from(concurrent).ok().filter(|jobs| *jobs > 0);
    let concurrent = concurrent
        .ok_or_else(|| Wrong::global("concurrent", "`concurrent` must be at least 1, or no job would ever run"))?;
    check_one_of("log_level", raw.log_level.as_deref(), &LOG_LEVELS)?;
    check_one_of("log_format", raw.log_format.as_deref(), &LOG_FORMATS)?;
    let listen_address = raw.listen_address.filter(|address| !address.is_empty());
    if let Some(address) = &listen_address {
        let unusable = |why| Wrong::global("listen_address", format!("`listen_address`: {why}"));
        crate::monitor::listener::check_address(address).map_err(unusable)?;
    }
    let interval = raw.check_interval.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    let terms = |runner: &mut raw::Runner| Terms::of(&runner.executor, runner.machine.take(), runner.autoscaler.take());
    let terms: Vec<Terms> = raw.runners.iter_mut().map(terms).collect();
    if let Some(aws) = &raw.mayfly.aws
        && aws.raise_on_job.is_some()
        && aws.protect_while_busy == Some(false)
    {
        let why = "`protect_while_busy = false`: `raise_on_job` tells instances with a job by their protection; leave \
                   one of them out";
        return Err(Wrong::global("mayfly.aws.protect_while_busy", why));
    }
    let labels = raw.labels;
    let runners = raw.runners.into_iter().enumerate().map(|(index, runner)| {
        let place = if runner.name.is_empty() { format!("number {}", index + 1) } else { format!("`{}`", runner.name) };
        let runner = self::runner(path, runner, &labels).map_err(|(key, why)| Wrong {
            place: Place { runner: Some(index), key },
            why: format!("runner {place}: {why}"),
        })?;
        Ok(Runner { limit: runner.limit.into_iter().chain(terms[index].capacity).min(), ..runner })
    });
    Ok(Config {
        path: path.to_owned(),
        concurrent: lifetime::capacity(&terms).map_or(concurrent, |capacity| capacity.min(concurrent)),
        check_interval: Duration::from_secs(interval.unwrap_or(3)),
        log_level: raw.log_level,
        log_format: raw.log_format,
        user: raw.user.filter(|user| !user.is_empty()),
        listen_address,
        shutdown_timeout: Duration::from_secs(raw.shutdown_timeout.filter(|seconds| *seconds > 0).unwrap_or(30)),
        connection_max_age: raw.connection_max_age.unwrap_or(Duration::from_secs(15 * 60)),
        lifetime: Lifetime::of(&raw.mayfly, &terms),
        leave: Leave::of(&raw.mayfly).map_err(|(key, why)| Wrong::global(key, why))?,
        mayfly: Mayfly {
            state_dir: raw.mayfly.state_dir,
            aws: raw.mayfly.aws,
            block_instance_metadata: raw.mayfly.block_instance_metadata,
        },
        runners: runners.collect::<Result<_, _>>()?,
    })
}

/// What `log_level` may be, in any case; `panic` and `fatal` are gitlab-runner's.
pub const LOG_LEVELS: [&str; 8] = ["trace", "debug", "info", "warn", "warning", "error", "fatal", "panic"];
/// What `log_format` may be.
pub const LOG_FORMATS: [&str; 3] = ["runner", "text", "json"];

fn check_one_of(key: &'static str, given: Option<&str>, allowed: &[&str]) -> Result<(), Wrong> {
    match given {
        Some(given) if !given.is_empty() && !allowed.iter().any(|one| one.eq_ignore_ascii_case(given)) => {
            Err(Wrong::global(key, format!("`{key}` must be one of {}", allowed.join(", "))))
        }
        _ => Ok(()),
    }
}

/// Fills in defaults. Errors: the key whose value is wrong, and why.
fn runner(path: &Path, raw: raw::Runner, labels: &BTreeMap<String, String>) -> Result<Runner, (&'static str, String)> {
    let executor = executor(&raw.executor).map_err(|why| ("executor", why))?;
    if let Some(shell) = raw.shell.as_deref().filter(|shell| !matches!(*shell, "" | "bash" | "sh")) {
        return Err(("shell", format!("`shell = \"{shell}\"`: this build knows bash and sh")));
    }
    let url = expand::expand(&raw.url);
    // What stands in the right place counts.
    let mut environment = match is_of_containers(&raw.executor) {
        true => pairs("docker.environment", &raw.docker.environment)?,
        false => Vec::new(),
    };
    environment.extend(pairs("environment", &raw.environment)?);
    let life = raw.token_obtained_at.zip(raw.token_expires_at).map(|(from, to)| (from.to_string(), to.to_string()));
    let token = expand::expand(&raw.token);
    let reference = Reference::read(&token).map_err(|why| ("token", why))?;
    let mut all_labels = labels.clone();
    all_labels.extend(raw.labels);
    Ok(Runner {
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
        builds_dir: raw.builds_dir,
        cache_dir: raw.cache_dir,
        cache: raw.cache,
        cache_limits: Limits { size: raw.mayfly.cache_max_size, age: raw.mayfly.cache_max_age },
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
        docker: raw.docker,
        docker_text: String::new(),
        container_builds_dir: raw.mayfly.builds_dir,
        container_cache_dir: raw.mayfly.cache_dir,
        ecr_login: raw.mayfly.ecr_login.unwrap_or(true),
    })
}

/// `KEY=VALUE` each. Errors: one is not; its text may be a secret that lost its name, and is not shown.
fn pairs(key: &'static str, texts: &[String]) -> Result<Vec<(String, String)>, (&'static str, String)> {
    let pair = |(index, text): (usize, &String)| match text.split_once('=').filter(|(name, _)| !name.is_empty()) {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err((key, format!("`{key}`: entry number {} is not KEY=VALUE", index + 1))),
    };
    texts.iter().enumerate().map(pair).collect()
}

/// Whether an executor runs jobs in containers.
fn is_of_containers(executor: &str) -> bool {
    self::executor(executor).is_ok_and(ExecutorKind::has_containers)
}

/// A time of zero is as good as none.
fn positive(time: Option<Duration>) -> Option<Duration> {
    time.filter(|time| !time.is_zero())
}

/// The executor by name. Errors: it is missing, unknown, or none of this build's.
pub fn executor(name: &str) -> Result<ExecutorKind, String> {
    match name {
        "shell" => Ok(ExecutorKind::Shell),
        "instance" => Ok(ExecutorKind::Instance),
        "" => Err("`executor` is missing; write executor = \"shell\"".to_owned()),
        "docker" => Ok(ExecutorKind::Docker),
        "docker-autoscaler" => Ok(ExecutorKind::DockerAutoscaler),
        "docker+machine" => Ok(ExecutorKind::DockerMachine),
        "docker-windows" | "kubernetes" | "ssh" | "virtualbox" | "parallels" | "custom" => Err(format!(
            "`executor = \"{name}\"` does not exist in mayfly, which runs jobs on its own instance; use \"shell\", \
             \"instance\" or \"docker\""
        )),
        other => Err(format!("`executor = \"{other}\"` is unknown; use \"shell\", \"instance\" or \"docker\"")),
    }
}

/// The certificate files that are configured, or those beside the configuration that carry the server's name.
/// (`certs/HOST.crt`, `HOST.auth.crt`, `HOST.auth.key`).
pub fn tls_files(path: &Path, url: &str, ca: Option<PathBuf>, cert: Option<PathBuf>, key: Option<PathBuf>) -> TlsFiles {
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
    let given = |file: Option<PathBuf>| file.filter(|file| !file.as_os_str().is_empty());
    TlsFiles {
        ca_file: given(ca).or_else(|| beside(".crt")),
        cert_file: given(cert).or_else(|| beside(".auth.crt")),
        key_file: given(key).or_else(|| beside(".auth.key")),
        ..TlsFiles::default()
    }
}

/// The file that is used when none is named: mayfly's own, or else gitlab-runner's where that is there already.
pub fn default_path() -> PathBuf {
    let directories = if nix::unistd::Uid::effective().is_root() {
        [PathBuf::from("/etc/mayfly"), PathBuf::from("/etc/gitlab-runner")]
    } else {
        let home = env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        [home.join(".mayfly"), home.join(".gitlab-runner")]
    };
    let files = directories.map(|directory| directory.join("config.toml"));
    files.iter().find(|file| file.exists()).unwrap_or(&files[0]).clone()
}

/// Where the journal is kept: configured, given by systemd, or usual for the user.
pub fn state_dir(config: &Config) -> PathBuf {
    if let Some(configured) = &config.mayfly.state_dir {
        return configured.clone();
    }
    if let Some(given) = env::var_os("STATE_DIRECTORY").filter(|given| !given.is_empty()) {
        return PathBuf::from(given);
    }
    if nix::unistd::Uid::effective().is_root() {
        return PathBuf::from("/var/lib/mayfly");
    }
    let home = env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    env::var_os("XDG_STATE_HOME").map_or_else(|| home.join(".local/state"), PathBuf::from).join("mayfly")
}

#[cfg(test)]
mod tests {
    use super::lifetime::Strategy;
    use super::*;

    fn load(text: &str) -> Result<Loaded, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        fs::write(&path, text).expect("written");
        Config::load(&path).map_err(|error| error.to_string())
    }

    const RUNNER: &str = "[[runners]]\nname = \"a\"\nurl = \"https://h\"\ntoken = \"t\"\nexecutor = \"shell\"\n";

    #[test]
    fn fills_in_the_defaults() {
        let config = load(RUNNER).expect("loaded").config;
        let runner = &config.runners[0];
        assert_eq!((config.concurrent, config.check_interval.as_secs(), config.shutdown_timeout.as_secs()), (1, 3, 30));
        assert_eq!((runner.output_limit, runner.limit, runner.request_concurrency), (4 << 20, None, 1));
        assert_eq!(runner.kill_grace, Duration::from_secs(10));
        assert_eq!((runner.upload_timeout.as_secs(), runner.upload_answer_timeout.as_secs()), (3600, 600));
    }

    #[test]
    fn uploads_have_the_time_that_is_configured() {
        let artifact = "[runners.artifact]\nupload_timeout = \"2h\"\nresponse_header_timeout = \"0s\"\n";
        let loaded = load(&format!("{RUNNER}{artifact}")).expect("loaded");
        let runner = &loaded.config.runners[0];
        assert_eq!((runner.upload_timeout.as_secs(), runner.upload_answer_timeout.as_secs()), (7200, 600));
        assert!(!loaded.findings.iter().any(|finding| finding.message.contains("artifact")));
    }

    #[test]
    fn a_wrong_value_shows_its_line() {
        let error = load(&format!("concurrent = \"two\"\n{RUNNER}")).expect_err("wrong");
        assert!(error.contains("line 1") && error.contains("concurrent"), "{error}");
        let error = load(&format!("{RUNNER}unhealthy_interval = \"soon\"\n")).expect_err("wrong");
        assert!(error.contains("line 6") && error.contains("not a duration"), "{error}");
        assert!(load(&format!("concurrent = 0\n{RUNNER}")).expect_err("wrong").contains("at least 1"));
    }

    #[test]
    fn a_value_that_makes_no_sense_shows_its_line() {
        let second = RUNNER.replace("\"a\"", "\"b\"");
        let cases = [
            (format!("\nconcurrent = 0\n{RUNNER}"), "line 2", "concurrent = 0"),
            (format!("log_format = \"xml\"\n{RUNNER}"), "line 1", "runner, text, json"),
            (format!("log_level = \"loud\"\n{RUNNER}"), "line 1", "debug"),
            (format!("listen_address = \":http\"\n{RUNNER}"), "line 1", "`http` is no port"),
            (format!("{RUNNER}{}", second.replace("shell", "ssh")), "line 10", "runner `b`"),
            (format!("{RUNNER}shell = \"pwsh\"\n"), "line 6", "pwsh"),
            (format!("{RUNNER}environment = [\n\"A=1\",\n\"hidden\"]\n"), "line 6", "number 2"),
            (RUNNER.replace("executor = \"shell\"\n", ""), "line 1", "`executor` is missing"),
        ];
        for (text, line, part) in cases {
            let error = load(&text).expect_err("refused");
            assert!(error.contains(line) && error.contains(part), "{error}");
            assert!(!error.contains("hidden"), "{error}");
        }
    }

    #[test]
    fn a_bad_period_or_zone_shows_its_line() {
        let table = format!("{RUNNER}[runners.machine]\nMaxBuilds = 3\n[[runners.machine.autoscaling]]\n");
        let policy = format!("{RUNNER}[[runners.autoscaler.policy]]\n");
        for (text, line, part) in [
            (format!("{table}Periods = [\"* * 9-25 * * * *\"]\n"), "line 9", "the hour `25`"),
            (format!("{table}Periods = [\n  \"* * * * *\",\n  \"* * 9-25 * * * *\",\n]\n"), "line 9", "the hour `25`"),
            (format!("{table}Timezone = \"Mars/Olympus\"\n"), "line 9", "`Mars/Olympus` is not known"),
            (format!("{policy}timezone = \"Mars/Olympus\"\n"), "line 7", "`Mars/Olympus` is not known"),
            (format!("{policy}periods = [\"* * * * * * *\"]\n"), "line 7", "has 7 fields"),
            (format!("{policy}idle_time = \"soon\"\n"), "line 7", "not a duration"),
        ] {
            let error = load(&text).expect_err("refused");
            assert!(error.contains(line) && error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_tables_of_a_fleet_are_taken_over_and_our_own_keys_beat_them() {
        let tables = "limit = 10\n[runners.machine]\nMaxBuilds = 250\nIdleTime = 600\n\
                      [runners.autoscaler]\nmax_use_count = 9\ncapacity_per_instance = 2\n\
                      [[runners.autoscaler.policy]]\nidle_time = \"7m\"\n";
        let config = load(&format!("concurrent = 40\n{RUNNER}{tables}")).expect("loaded").config;
        assert_eq!((config.concurrent, config.runners[0].limit), (2, Some(2)));
        let now = jiff::Timestamp::now();
        assert_eq!(config.lifetime.max_builds, Some(9));
        assert_eq!(config.lifetime.idle_timeout(now), Some(Duration::from_secs(420)));
        let own = "[mayfly]\nmax_builds = 3\nidle_timeout = \"1m\"\nmax_age = \"24h\"\n";
        let config = load(&format!("concurrent = 40\n{own}{RUNNER}{tables}")).expect("loaded").config;
        assert_eq!(config.lifetime.max_builds, Some(3));
        assert_eq!(config.lifetime.idle_timeout(now), Some(Duration::from_secs(60)));
        assert_eq!(config.lifetime.max_age, Some(Duration::from_secs(86400)));
        let unbounded = load(&format!("[mayfly]\nmax_builds = 0\n{RUNNER}{tables}")).expect("loaded").config;
        assert_eq!(unbounded.lifetime.max_builds, None);
    }

    #[test]
    fn how_an_instance_goes_must_make_sense() {
        let leave = |text: &str| load(&format!("[mayfly]\n{text}\n{RUNNER}")).map(|loaded| loaded.config.leave);
        assert_eq!(leave("").expect("loaded").strategy, Strategy::Exit);
        let raise = "aws = { raise_on_job = {}, protect_while_busy = false }";
        assert!(leave(raise).expect_err("no").to_string().contains("leave one of them out"));
        let asg = leave("leave = \"aws-asg\"\nleave_fallback_after = \"2m\"").expect("loaded");
        assert_eq!((asg.strategy, asg.fallback_after), (Strategy::AwsAsg, Duration::from_secs(120)));
        assert_eq!(asg.poweroff_command, "systemctl poweroff");
        for (text, line, part) in [
            ("leave = \"explode\"", "line 2", "aws-asg"),
            ("leave = \"command\"", "line 2", "needs a `leave_command`"),
            ("\nleave_command = \"true\"", "line 3", "only"),
        ] {
            let error = leave(text).expect_err("refused");
            assert!(error.contains(line) && error.contains(part), "{error}");
        }
    }

    #[test]
    fn odd_periods_are_named_with_their_line() {
        let text = format!(
            "{RUNNER}[[runners.machine.autoscaling]]\nPeriods = [\n\"* * * * *\",\n\"* * * 30 2 * *\"]\nIdleTime = 1\n\
             [[runners.machine.autoscaling]]\nPeriods = [\"0 * 9 * * * *\"]\n"
        );
        let told: Vec<String> = findings::of_keys(&text).iter().map(Finding::to_string).collect();
        assert_eq!(told.len(), 3, "{told:#?}");
        assert!(told[0].starts_with("line 9: the period `* * * 30 2 * *` never comes"), "{told:#?}");
        assert!(told.iter().any(|told| told.starts_with("line 12: ") && told.contains("names seconds")), "{told:#?}");
        assert!(told.iter().any(|told| told.starts_with("line 12: ") && told.contains("`IdleTime`")), "{told:#?}");
    }

    #[test]
    fn a_broken_line_with_a_secret_is_not_shown() {
        for line in [
            "token = glrt-secret",
            "token = \"glrt-secret",
            "token = 4711",
            "SecretKey = \"secret",
            "\"token\" = secret",
        ] {
            let error = load(&format!("[[runners]]\n{line}\n")).expect_err("broken");
            assert!(error.contains("line 2"), "{error}");
            assert!(!error.contains("secret") && !error.contains("4711"), "{error}");
        }
    }

    #[test]
    fn executors_that_do_not_exist_are_said() {
        for (executor, part) in
            [("docker-windows", "does not exist"), ("kubernetes", "does not exist"), ("", "missing"), ("x", "unknown")]
        {
            let text = RUNNER.replace("\"shell\"", &format!("\"{executor}\""));
            let error = load(&text).expect_err("refused");
            assert!(error.contains("runner `a`") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn certificates_are_looked_for_beside_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("certs")).expect("made");
        fs::write(directory.path().join("certs/gitlab.test.crt"), "x").expect("written");
        let path = directory.path().join("config.toml");
        let files = tls_files(&path, "https://gitlab.test:8443/x", None, None, None);
        assert_eq!(files.ca_file, Some(directory.path().join("certs/gitlab.test.crt")));
        assert_eq!(files.cert_file, None);
    }
}
