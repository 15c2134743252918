//! `config.toml` as types; all defaults are in one place.
//!
//! The format is gitlab-runner's, so that a fleet migrates by replacing the binary. mayfly's own keys are below
//! `[mayfly]` and `[runners.mayfly]`. This layer reads and edits the file; it contacts no server and runs nothing.

pub mod aws;
pub mod cache;
pub mod carried;
pub mod docker;
pub mod duration;
pub mod edit;
mod expand;
pub mod feature_flags;
mod findings;
pub mod fitness;
pub mod fleet;
pub mod keys;
pub mod leave;
pub mod lifetime;
mod location;
pub mod manager;
mod meaning;
mod offered;
pub mod period;
mod raw;
pub mod reference;
mod runner;
pub mod system_id;

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use findings::{Finding, Severity};
pub use location::{show_error, show_error_without_line};
pub use meaning::LOG_LEVELS;
pub use meaning::runner::is_helper_name;
pub use offered::OfferedRunner;
#[cfg(test)]
pub use runner::CONFINED_UID;
pub use runner::{ExecutorKind, PoolKeys, Runner, executor};

use crate::decode;
use crate::digest::hex;
use leave::LeaveSettings;
use lifetime::LifetimeBounds;

/// The configuration of the agent.
#[derive(Clone, Debug)]
pub struct Config {
    pub path: PathBuf,
    /// The number of concurrent jobs, at least 1.
    pub concurrent: u32,
    /// Whether the file sets `concurrent`; without it, an agent takes the number from the pool of its manager.
    pub concurrent_is_set: bool,
    /// The interval between two polls of a runner that got no job.
    pub check_interval: Duration,
    /// `debug`, `info`, `warn`, `error`, as written.
    pub log_level: Option<String>,
    /// `runner`, `text` or `json`.
    pub log_format: Option<String>,
    /// The user that runs jobs; `None` for the agent's own user.
    pub user: Option<String>,
    /// The address for metrics and health.
    pub listen_address: Option<String>,
    /// How long running jobs may continue after SIGTERM.
    pub shutdown_timeout: Duration,
    /// How long an unused connection is kept.
    pub connection_max_age: Duration,
    pub lifetime: LifetimeBounds,
    pub leave: LeaveSettings,
    /// `[mayfly]`
    pub mayfly: Mayfly,
    pub runners: Vec<Runner>,
    /// Runners that mayfly cannot use; the others work without them.
    pub unusable: Vec<UnusableRunner>,
    /// The file as written, without `[[runners]]`.
    pub settings: toml::Table,
}

/// A `[[runners]]` that mayfly cannot use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusableRunner {
    /// The index of the runner, from 0.
    pub position: usize,
    /// The `name` in the file.
    pub name: String,
    /// The name of the runner, the reason, and what to do.
    pub why: String,
}

/// `[mayfly]`
#[derive(Clone, Debug, Default)]
pub struct Mayfly {
    /// The directory of the journal and the logs of running jobs.
    pub state_dir: Option<PathBuf>,
    /// Settings for AWS. If the table exists, the machine counts as an EC2 instance.
    pub aws: Option<aws::AwsConfig>,
    /// Block access of jobs to the instance metadata service, and so to the instance's credentials.
    pub block_instance_metadata: bool,
    pub fitness: fitness::Fitness,
    /// The readiness commands.
    pub ready: Option<fitness::ReadinessCommands>,
    /// The time after which an agent without any runner powers the machine off; `None` for never.
    pub give_up_after: Option<Duration>,
    /// The time without a response of its managers after which an agent without jobs leaves; `None` for never.
    pub orphan_timeout: Option<Duration>,
    /// The instance id for managers, if it cannot be detected.
    pub instance_id: Option<String>,
    /// `[mayfly.manager]`.
    pub manager: Option<manager::Manager>,
}

/// A configuration and the findings about it.
#[derive(Debug)]
pub struct LoadedConfig {
    pub config: Config,
    /// Keys without effect, unknown keys, a file that others can read.
    pub findings: Vec<Finding>,
}

impl LoadedConfig {
    /// Writes the findings into the log.
    pub fn log(&self) {
        for finding in &self.findings {
            let level = match finding.severity {
                Severity::Note => log::Level::Debug,
                Severity::Warning | Severity::UnknownKey => log::Level::Warn,
                Severity::UnusableRunner => log::Level::Error,
            };
            log::log!(level, "problem in the configuration path={} problem={finding}", self.config.path.display());
        }
    }
}

#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable(PathBuf, std::io::Error),
    /// The error in the file, with its line.
    Invalid(PathBuf, String),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(path, error) => write!(
                f,
                "{}: {error}; create it with `mayfly register`, or select another file with --config",
                path.display()
            ),
            Self::Invalid(path, why) => write!(f, "{}: {why}", path.display()),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The program that reads a configuration. The meaning of some keys depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The agent on an instance.
    Agent,
    /// The manager of a fleet.
    Manager,
}

impl Config {
    /// Reads the file at `path`. Fails if it is unreadable, not TOML, or has an invalid value; the message shows the
    /// line.
    pub fn load(path: &Path) -> Result<LoadedConfig, ConfigError> {
        Self::load_as(path, Role::Agent)
    }

    /// As [`Config::load`], for `role`.
    pub fn load_as(path: &Path, role: Role) -> Result<LoadedConfig, ConfigError> {
        let text = fs::read_to_string(path).map_err(|error| ConfigError::Unreadable(path.to_owned(), error))?;
        let config = Self::parse_as(path, &text, role)?;
        let mut findings = findings::unusable_runners(&text, &config.unusable);
        findings.extend(findings::check_keys(&text, role));
        findings.extend(findings::missing_executors(&text, &config.runners));
        findings.extend(findings::check_containers(&text, &config.runners));
        findings.extend(findings::check_mode(path));
        Ok(LoadedConfig { config, findings })
    }

    /// Whether a runner's token is stored in AWS.
    pub fn has_stored_tokens(&self) -> bool {
        self.runners.iter().any(|runner| runner.token_reference.is_some())
    }

    /// Parses `text` as the content of the file at `path`, which need not exist. Errors: as for [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::parse_as(path, text, Role::Agent)
    }

    /// As [`Config::parse`], for `role`.
    pub fn parse_as(path: &Path, text: &str, role: Role) -> Result<Self, ConfigError> {
        let invalid = |why: String| ConfigError::Invalid(path.to_owned(), why);
        let raw: raw::Config =
            decode::toml(text).map_err(|error| invalid(location::show_error(text, error.span(), error.message())))?;
        let mut config = meaning::interpret(path, raw, role).map_err(|wrong| invalid(wrong.show(text)))?;
        meaning::store_written_tables(text, &mut config);
        Ok(config)
    }
}

/// The default file: mayfly's own, or gitlab-runner's if only that exists.
pub fn default_path() -> PathBuf {
    let files = default_paths();
    files.iter().find(|file| file.exists()).unwrap_or(&files[0]).clone()
}

fn default_paths() -> [PathBuf; 2] {
    let directories = if nix::unistd::Uid::effective().is_root() {
        [PathBuf::from("/etc/mayfly"), PathBuf::from("/etc/gitlab-runner")]
    } else {
        let home = env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        [home.join(".mayfly"), home.join(".gitlab-runner")]
    };
    directories.map(|directory| directory.join("config.toml"))
}

/// The state directory: configured, given by systemd, or the user's default. A configuration file other than the
/// default one has its own directory below it, so that two agents on one machine never share one.
pub fn state_dir(config: &Config) -> PathBuf {
    if let Some(configured) = &config.mayfly.state_dir {
        return configured.clone();
    }
    let default = default_state_dir();
    if default_paths().contains(&config.path) {
        return default;
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, config.path.as_os_str().as_encoded_bytes());
    default.join(format!("config-{}", hex(&digest.as_ref()[..6])))
}

/// The directory for the state of a manager.
pub fn manager_state_dir(config: &Config, manager: &manager::Manager) -> PathBuf {
    manager.state_dir.clone().unwrap_or_else(|| state_dir(config).join("manager"))
}

fn default_state_dir() -> PathBuf {
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
mod tests;

#[cfg(test)]
mod documentation;
