//! One of `[[runners]]`: the source of its jobs, and the settings for running them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::cache::{CacheConfig, StorageLimits};
use super::docker::DockerConfig;
use super::reference::TokenReference;
use crate::http::tls::TlsFiles;
use crate::monitor::metrics::RunnerLabels;
use crate::token::Token;

/// The default timeout of one upload of artifacts.
pub(super) const UPLOAD_TIMEOUT: Duration = Duration::from_secs(3600);
/// The default timeout for the response after an upload.
pub(super) const UPLOAD_RESPONSE_TIMEOUT: Duration = Duration::from_secs(600);

/// One of `[[runners]]`.
#[derive(Clone, Debug)]
pub struct Runner {
    /// The index among `[[runners]]`, from 0.
    pub position: usize,
    /// The name in logs and commands.
    pub name: String,
    /// The URL of GitLab.
    pub url: String,
    /// The authentication token; empty until it is fetched if it is stored in AWS.
    pub token: Token,
    /// Where the token is stored, if it is not in the file.
    pub token_reference: Option<TokenReference>,
    /// The id of the runner in GitLab, if known.
    pub id: Option<i64>,
    /// When the token was obtained and when it expires (RFC 3339), if it expires.
    pub token_life: Option<(String, String)>,
    pub tls: TlsFiles,
    pub executor: ExecutorKind,
    /// `bash` or `sh`; `None` for bash if it is installed, else sh.
    pub shell: Option<String>,
    /// Maximum number of concurrent jobs of this runner; `None` for no limit.
    pub limit: Option<u32>,
    /// Maximum number of concurrent polls, at least 1.
    pub request_concurrency: u32,
    /// Wait for `check_interval` even after a poll that returned a job.
    pub strict_check_interval: bool,
    /// Maximum size of a job's log, in bytes.
    pub output_limit: u64,
    /// Number of consecutive rejected polls after which polling pauses.
    pub unhealthy_requests_limit: u32,
    /// The length of that pause.
    pub unhealthy_interval: Duration,
    /// Attempts to report the final state of a job.
    pub final_report_attempts: u32,
    /// The directory for builds; `None` for `builds` in the working directory.
    pub builds_dir: Option<PathBuf>,
    /// The directory for local caches; `None` for `cache` in the working directory.
    pub cache_dir: Option<PathBuf>,
    /// The object store for caches.
    pub cache: CacheConfig,
    pub retention: Retention,
    /// Timeout of one upload of artifacts.
    pub upload_timeout: Duration,
    /// Timeout from the end of an upload to the response.
    pub upload_response_timeout: Duration,
    /// The URL from which git clones, instead of `url`.
    pub clone_url: Option<String>,
    /// Variables that every job gets.
    pub environment: Vec<(String, String)>,
    pub hooks: ScriptHooks,
    /// Timeout of the preparation before the sources are fetched.
    pub prepare_timeout: Option<Duration>,
    /// Timeout of fetching the sources.
    pub get_sources_timeout: Option<Duration>,
    /// Ignore `CI_DEBUG_TRACE`.
    pub debug_trace_disabled: bool,
    /// Labels of this runner manager in GitLab.
    pub labels: BTreeMap<String, String>,
    /// Whether `GIT_CLONE_PATH` is allowed.
    pub custom_build_dir: bool,
    /// Feature flags, which jobs cannot change.
    pub feature_flags: BTreeMap<String, bool>,
    /// Time between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// Create a control group for each script.
    pub cgroups: bool,
    /// The sandbox for file tasks.
    pub confined: SandboxSettings,
    /// `[runners.docker]`.
    pub docker: DockerConfig,
    /// The text of `[runners.docker]`, for the process that uses the engine.
    pub docker_text: String,
    /// The table as written, without the token.
    pub written: toml::Table,
    /// The value that replaces the token for a runner from the journal; see [`Runner::key`].
    pub key: Option<Token>,
    /// Where builds of containers are kept on the machine; `None` for `builds` in the working directory.
    pub container_builds_dir: Option<PathBuf>,
    /// The cache directory on the machine for jobs in containers; `None` for `cache` in the working directory.
    pub container_cache_dir: Option<PathBuf>,
    /// Fetch a login for Amazon ECR if no other is configured.
    pub ecr_login: bool,
    /// Credential helpers (`docker-credential-NAME`) that jobs may use.
    pub allowed_credential_helpers: Vec<String>,
    pub pool: PoolKeys,
}

/// Limits of what stays on the machine after a job.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    /// The limits of local caches.
    pub caches: StorageLimits,
    /// The limits of the build directories that finished jobs left.
    pub builds: StorageLimits,
    /// The time after which an unused image that a job pulled is removed; `None` to keep it.
    pub images_max_age: Option<Duration>,
    /// The limits of the volumes with caches of containers.
    pub cache_volumes: StorageLimits,
}

/// Scripts of the operator around the steps of each job.
#[derive(Clone, Debug, Default)]
pub struct ScriptHooks {
    /// Before the sources are fetched.
    pub pre_get_sources: Option<String>,
    /// After the sources are fetched.
    pub post_get_sources: Option<String>,
    /// Before the job's script, in the same shell.
    pub pre_build: Option<String>,
    /// After the job's script, in the same shell.
    pub post_build: Option<String>,
}

/// The keys of `[runners.mayfly]` for `mayfly manager`.
#[derive(Clone, Debug, Default)]
pub struct PoolKeys {
    /// The Auto Scaling group of a docker+machine pool.
    pub auto_scaling_group: Option<String>,
    /// The region of that group; `None` to detect it.
    pub region: Option<String>,
    /// The role whose signature admits agents to the pool.
    pub agent_role: Option<String>,
}

impl Runner {
    /// The value of `token` in the file, with variables replaced.
    pub fn written_token(&self) -> String {
        self.token_reference.as_ref().map_or_else(|| self.token.reveal().to_owned(), TokenReference::to_string)
    }

    /// A secret that only agents with this runner's token know. Jobs can neither guess it nor derive the token from it.
    pub fn key(&self) -> Token {
        let derived = || Token::new(crate::digest::sha256(format!("mayfly key\0{}", self.token.reveal()).as_bytes()));
        self.key.clone().unwrap_or_else(derived)
    }

    /// A runner with this server and token, and defaults for the rest. Its name is `unknown`.
    pub fn with_defaults(url: &str, token: Token) -> Self {
        Self {
            position: 0,
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
            final_report_attempts: 10,
            builds_dir: None,
            cache_dir: None,
            cache: CacheConfig::default(),
            retention: Retention::default(),
            upload_timeout: UPLOAD_TIMEOUT,
            upload_response_timeout: UPLOAD_RESPONSE_TIMEOUT,
            clone_url: None,
            environment: Vec::new(),
            hooks: ScriptHooks::default(),
            prepare_timeout: None,
            get_sources_timeout: None,
            debug_trace_disabled: false,
            labels: BTreeMap::new(),
            custom_build_dir: false,
            feature_flags: BTreeMap::new(),
            kill_grace: Duration::from_secs(10),
            cgroups: true,
            confined: SandboxSettings::default(),
            docker: DockerConfig::default(),
            docker_text: String::new(),
            written: toml::Table::new(),
            key: None,
            container_builds_dir: None,
            container_cache_dir: None,
            ecr_login: true,
            allowed_credential_helpers: Vec::new(),
            pool: PoolKeys::default(),
        }
    }
}

/// The default uid of the sandbox: outside of all ranges that systemd assigns (UIDS-GIDS.md).
pub const CONFINED_UID: u32 = 1_900_000_000;

/// The settings of the sandbox for file tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxSettings {
    pub uid: u32,
    /// The memory limit, if containers have none.
    pub memory: Option<u64>,
    /// The limit of processes and threads.
    pub processes: u64,
}

impl Default for SandboxSettings {
    /// Half of the machine's memory, but at least enough for a large repository.
    fn default() -> Self {
        const MIN_BYTES: u64 = 1 << 30;
        let half = nix::sys::sysinfo::sysinfo().ok().map(|machine| (machine.ram_total() / 2).max(MIN_BYTES));
        Self { uid: CONFINED_UID, memory: half, processes: 1024 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecutorKind {
    /// The instance's shell.
    Shell,
    /// The instance's shell, in a fleet.
    Instance,
    /// Containers.
    Docker,
    /// Containers, in a fleet of docker-autoscaler.
    DockerAutoscaler,
    /// Containers, in a fleet of docker+machine.
    DockerMachine,
    /// The manager at the runner's URL sends the executor with each job.
    FromManager,
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
            Self::FromManager => "manager",
        }
    }

    /// Whether jobs run in containers.
    pub fn has_containers(self) -> bool {
        matches!(self, Self::Docker | Self::DockerAutoscaler | Self::DockerMachine)
    }
}

/// Executors of gitlab-runner that mayfly does not support.
const UNSUPPORTED: [&str; 6] = ["docker-windows", "kubernetes", "ssh", "virtualbox", "parallels", "custom"];

/// Whether gitlab-runner has this executor and mayfly does not support it.
pub fn is_unsupported(name: &str) -> bool {
    UNSUPPORTED.contains(&name)
}

/// Whether the executor with this name runs jobs in containers.
pub fn executor_has_containers(name: &str) -> bool {
    executor(name).is_ok_and(ExecutorKind::has_containers)
}

/// The executor with a name. Fails if the name is missing, unknown, or of an unsupported executor.
pub fn executor(name: &str) -> Result<ExecutorKind, String> {
    match name {
        "shell" => Ok(ExecutorKind::Shell),
        "instance" => Ok(ExecutorKind::Instance),
        "" => Ok(ExecutorKind::FromManager),
        "docker" => Ok(ExecutorKind::Docker),
        "docker-autoscaler" => Ok(ExecutorKind::DockerAutoscaler),
        "docker+machine" => Ok(ExecutorKind::DockerMachine),
        name if is_unsupported(name) => Err(format!(
            "`executor = \"{name}\"` does not exist in mayfly, which runs jobs on its own instance; use \"shell\", \
             \"instance\" or \"docker\""
        )),
        other => Err(format!("`executor = \"{other}\"` is unknown; use \"shell\", \"instance\" or \"docker\"")),
    }
}

/// The labels of a runner in metrics.
impl From<&Runner> for RunnerLabels {
    fn from(runner: &Runner) -> Self {
        Self { token: runner.token.short(), name: runner.name.clone() }
    }
}
