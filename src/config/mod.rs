//! `config.toml` as types; defaults in one place.
//!
//! The file is gitlab-runner's: a fleet moves over by swapping the binary. What is ours alone stands below `[mayfly]`
//! and `[runners.mayfly]`. This layer reads and edits the file; it asks no server and runs nothing.

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
mod keys;
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
pub use meaning::{LOG_LEVELS, is_helper_name};
pub use offered::OfferedRunner;
pub use runner::{ExecutorKind, Runner, executor};

use crate::decode;
use leave::Leave;
use lifetime::Lifetime;

/// What the whole agent does.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file.
    pub path: PathBuf,
    /// Jobs at once, at least 1.
    pub concurrent: u32,
    /// The file says `concurrent`; an agent of a manager takes it from its pool otherwise.
    pub concurrent_is_set: bool,
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
    /// Runners that mayfly cannot run; the others work without them.
    pub unusable: Vec<Unusable>,
    /// The file as it is written, without `[[runners]]`.
    pub settings: toml::Table,
}

/// One of `[[runners]]` that mayfly cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// Which of `[[runners]]` it is, from 0.
    pub position: usize,
    /// Its name, why it cannot be used, and what to do.
    pub why: String,
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
    /// When the machine is fit for jobs.
    pub fitness: fitness::Fitness,
    /// What must succeed before the first request for a job.
    pub ready: Option<fitness::Ready>,
    /// An agent without any runner powers the machine off after this time; `None` for never.
    pub give_up_after: Option<Duration>,
    /// An agent of a manager that does not answer for this time leaves once it has no job; `None` for never.
    pub orphan_timeout: Option<Duration>,
    /// The instance id that a manager knows this machine by, where it is not found out.
    pub instance_id: Option<String>,
    /// `[mayfly.manager]`.
    pub manager: Option<manager::Manager>,
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

/// Who reads a configuration: some keys mean something else for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The agent on an instance.
    Agent,
    /// The manager of a fleet.
    Manager,
}

impl Config {
    /// Reads the file at `path`. Errors: unreadable, not TOML, or a value that is none; the message shows the line.
    pub fn load(path: &Path) -> Result<Loaded, Error> {
        Self::load_as(path, Role::Agent)
    }

    /// The same for `role`.
    pub fn load_as(path: &Path, role: Role) -> Result<Loaded, Error> {
        let text = fs::read_to_string(path).map_err(|error| Error::Unreadable(path.to_owned(), error))?;
        let config = Self::parse_as(path, &text, role)?;
        let mut findings = findings::of_unusable(&text, &config.unusable);
        findings.extend(findings::of_keys(&text, role));
        findings.extend(findings::of_executors(&text, &config.runners));
        findings.extend(findings::of_containers(&text, &config.runners));
        findings.extend(findings::of_mode(path));
        Ok(Loaded { config, findings })
    }

    /// Whether a runner's token is stored in AWS.
    pub fn has_stored_tokens(&self) -> bool {
        self.runners.iter().any(|runner| runner.token_reference.is_some())
    }

    /// The configuration that a text is, or would be at `path`. Errors: as for [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        Self::parse_as(path, text, Role::Agent)
    }

    /// The same for `role`. Errors: as for [`Config::load`].
    pub fn parse_as(path: &Path, text: &str, role: Role) -> Result<Self, Error> {
        let invalid = |why: String| Error::Invalid(path.to_owned(), why);
        let raw: raw::Config = decode::toml(text).map_err(|error| invalid(location::of_error(text, &error)))?;
        let mut config = meaning::of(path, raw, role).map_err(|wrong| invalid(wrong.shown(text)))?;
        meaning::note_written(text, &mut config);
        Ok(config)
    }
}

/// The file that is used when none is named: mayfly's own, or gitlab-runner's if only that exists.
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

/// Where the journal is kept: configured, given by systemd, or usual for the user. A configuration file that is not the
/// default one has a directory of its own below, so that two agents on one machine do not share one.
pub fn state_dir(config: &Config) -> PathBuf {
    if let Some(configured) = &config.mayfly.state_dir {
        return configured.clone();
    }
    let usual = usual_state_dir();
    if default_paths().contains(&config.path) {
        return usual;
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, config.path.as_os_str().as_encoded_bytes());
    let name: String = digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    usual.join(format!("config-{name}"))
}

fn usual_state_dir() -> PathBuf {
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
