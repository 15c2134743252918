//! The checks of the machine: free space, inodes, read-only mounts, the container engine, the user and the shell of the
//! jobs, git.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::Unfit;
use crate::config::{self, Config, Runner, fitness};
use crate::executor::docker::engine::{DockerEngine, DockerError};
use crate::executor::docker::host;
use crate::executor::shell::{find_git, find_program};
use crate::executor::user;
use crate::http::Address;
use crate::timed_child;

/// Timeout of a ping to the container engine.
pub const ENGINE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the result of a successful ping is valid.
const ENGINE_VALID_FOR: Duration = Duration::from_secs(1);
/// Timeout of `git --version`.
const GIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the result of a successful `git --version` is valid.
const GIT_VALID_FOR: Duration = Duration::from_secs(60);

/// The requirements of a runner's jobs on this machine.
pub struct Requirements {
    /// The thresholds of the configuration.
    pub limits: fitness::Fitness,
    /// Directories that need free space, each with its purpose.
    pub directories: Vec<(&'static str, PathBuf)>,
    pub scripts: ScriptRunner,
}

impl Requirements {
    pub fn new(config: &Config, builds: PathBuf, caches: PathBuf, scripts: ScriptRunner) -> Self {
        let directories = vec![
            ("the state directory", config::state_dir(config)),
            ("the builds directory", builds),
            ("the cache directory", caches),
        ];
        Self { limits: config.mayfly.fitness.clone(), directories, scripts }
    }
}

/// The program that runs the scripts of a runner.
pub enum ScriptRunner {
    /// A shell of this machine.
    Shell {
        /// `bash` or `sh`; `None` for the first of the two that exists.
        shell: Option<String>,
        /// The user of the jobs; `None` for the agent's user.
        user: Option<String>,
        /// Number of slots, because each slot may have its own user.
        slots: u32,
    },
    /// The container engine at this address.
    Engine(Address),
}

impl ScriptRunner {
    /// The program that runs the scripts of this runner's jobs as `user`. The validation of the configuration has
    /// already rejected an invalid engine address.
    pub fn new(runner: &Runner, user: Option<&str>, slots: u32) -> Self {
        match runner.executor.has_containers().then(|| host::address(&runner.docker)) {
            Some(Ok(address)) => Self::Engine(address),
            _ => Self::Shell { shell: runner.shell.clone(), user: user.map(str::to_owned), slots },
        }
    }
}

/// The checks of one poller, with the times of the last successful ping and `git --version`.
pub struct FitnessCheck {
    requirements: Requirements,
    engine_answered: Option<Instant>,
    git_ran: Option<Instant>,
}

impl FitnessCheck {
    pub fn new(requirements: Requirements) -> Self {
        Self { requirements, engine_answered: None, git_ran: None }
    }

    /// Checks the machine. Errors: the first reason why the machine must not take a job.
    pub fn run(&mut self) -> Result<(), Unfit> {
        for (what, path) in &self.requirements.directories {
            check_file_system(&self.requirements.limits, what, path)?;
        }
        match &self.requirements.scripts {
            ScriptRunner::Shell { shell, user, slots } => check_shell(shell.as_deref(), user.as_deref(), *slots)?,
            ScriptRunner::Engine(address) if !is_fresh(self.engine_answered, ENGINE_VALID_FOR) => {
                check_engine(address)?;
                self.engine_answered = Some(Instant::now());
            }
            ScriptRunner::Engine(_) => {}
        }
        if !is_fresh(self.git_ran, GIT_VALID_FOR) {
            check_git()?;
            self.git_ran = Some(Instant::now());
        }
        Ok(())
    }
}

fn is_fresh(since: Option<Instant>, valid_for: Duration) -> bool {
    since.is_some_and(|since| since.elapsed() < valid_for)
}

/// Checks the file system of the directory, or of its nearest existing ancestor. If `statvfs` fails, the check passes.
fn check_file_system(limits: &fitness::Fitness, what: &'static str, path: &Path) -> Result<(), Unfit> {
    let Some(stat) = path.ancestors().find_map(|path| statvfs(path).ok()) else { return Ok(()) };
    if stat.flags().contains(FsFlags::ST_RDONLY) {
        return Err(Unfit::ReadOnly { what, path: path.to_owned() });
    }
    let (free, total) = (stat.blocks_available(), stat.blocks());
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    let (free, wanted) = (bytes(free), limits.required_space(bytes(total)));
    if free < wanted {
        return Err(Unfit::Space { what, path: path.to_owned(), free, wanted });
    }
    let (free, wanted) = (stat.files_available(), limits.required_inodes(stat.files()));
    if free < wanted {
        return Err(Unfit::Inodes { what, path: path.to_owned(), free, wanted });
    }
    Ok(())
}

fn check_shell(shell: Option<&str>, user: Option<&str>, slots: u32) -> Result<(), Unfit> {
    if let Some(user) = user {
        user::slot_users(user, slots).map_err(Unfit::User)?;
    }
    let wanted = shell.map_or(vec!["bash", "sh"], |shell| vec![shell]);
    if wanted.iter().any(|name| find_program(name).is_some()) {
        return Ok(());
    }
    Err(Unfit::Shell(format!("there is no `{}` on the machine", wanted.join("` or `"))))
}

fn check_engine(address: &Address) -> Result<(), Unfit> {
    DockerEngine::connect_within(address, ENGINE_TIMEOUT).map(drop).map_err(|error| {
        Unfit::Engine(match error {
            DockerError::ErrorResponse { message, .. } => format!(
                "the container engine at {address} returns an error: {message}; look at its log (journalctl -u docker)"
            ),
            DockerError::InvalidResponse { .. } => {
                format!("{error}; restart the engine, or correct `host` below [runners.docker]")
            }
            error => error.to_string(),
        })
    })
}

/// Checks that git runs. Returns what `git --version` prints.
pub fn check_git() -> Result<String, Unfit> {
    let Some(program) = find_git() else {
        return Err(Unfit::Git("no working `git` in the PATH of the agent".to_owned()));
    };
    git_version(&program).map_err(|why| Unfit::Git(format!("`{} --version` fails: {why}", program.display())))
}

fn git_version(program: &Path) -> Result<String, String> {
    let mut command = Command::new(program);
    command.arg("--version").env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    let output = timed_child::output(&mut command, GIT_TIMEOUT)?;
    let first_line = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    match output.status.success() {
        true => Ok(first_line(&output.stdout)),
        false => Err(format!("{}: {}", output.status, first_line(&output.stderr))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitness_check(directory: &Path, limits: fitness::Fitness, scripts: ScriptRunner) -> FitnessCheck {
        FitnessCheck::new(Requirements {
            limits,
            directories: vec![("state directory", directory.to_owned())],
            scripts,
        })
    }

    fn shell(shell: Option<&str>, user: Option<&str>) -> ScriptRunner {
        ScriptRunner::Shell { shell: shell.map(str::to_owned), user: user.map(str::to_owned), slots: 1 }
    }

    #[test]
    fn names_what_is_missing_and_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let not_there_yet = directory.path().join("a/b");
        let fit = fitness::Fitness { min_free_space: Some(1), min_free_inodes: Some(0), ..Default::default() };
        let check = |limits: &fitness::Fitness, scripts| fitness_check(&not_there_yet, limits.clone(), scripts).run();
        assert_eq!(check(&fit, shell(None, None)), Ok(()));
        let full = fitness::Fitness { min_free_space: Some(u64::MAX), ..fit.clone() };
        let unfit = check(&full, shell(None, None)).expect_err("a full disk must be reported");
        assert_eq!(unfit.reason(), "disk_space");
        assert!(unfit.to_string().contains("min_free_space") && unfit.to_string().contains("a/b"), "{unfit}");
        let unfit = check(&fit, shell(Some("no-such-shell"), None)).expect_err("a missing shell must be reported");
        assert_eq!((unfit.reason(), unfit.to_string().contains("no-such-shell")), ("shell", true));
        let unfit = check(&fit, shell(None, Some("no-such-user"))).expect_err("a missing user must be reported");
        assert_eq!((unfit.reason(), unfit.to_string().contains("no-such-user")), ("user", true));
        let socket = Address::Unix(directory.path().join("docker.sock"));
        let unfit = check(&fit, ScriptRunner::Engine(socket)).expect_err("an unreachable engine must be reported");
        assert_eq!((unfit.reason(), unfit.to_string().contains("docker.sock")), ("container_engine", true));
    }
}
