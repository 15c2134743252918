//! Checks whether this machine can run the jobs of a runner, before each poll. A machine that fails every job within a
//! second would otherwise drain the queue of a whole fleet.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;

use crate::backoff::Backoff;
use crate::config::{self, Config, Runner, fitness};
use crate::executor::docker::engine::DockerEngine;
use crate::executor::docker::host;
use crate::executor::shell::find_program;
use crate::executor::user;
use crate::http::Address;
use crate::monitor::metrics::RunnerLabels;
use crate::sync;
use crate::sys::BootTime;

/// Timeout of a ping to the container engine.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a successful ping counts.
const ENGINE_VALID_FOR: Duration = Duration::from_secs(1);
/// How long a successful `git --version` counts.
const GIT_VALID_FOR: Duration = Duration::from_secs(60);
/// Interval between two checks of an unfit machine.
pub const RECHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The pause of a runner after system failures in a row; doubled after each further one.
const FAILURE_PAUSE: Backoff = Backoff::new(Duration::from_secs(30), Duration::from_secs(1800));

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
    /// The script runner of a runner whose jobs run as `user`. The configuration has rejected an invalid engine address
    /// before.
    pub fn of(runner: &Runner, user: Option<&str>, slots: u32) -> Self {
        match runner.executor.has_containers().then(|| host::address(&runner.docker)) {
            Some(Ok(address)) => Self::Engine(address),
            _ => Self::Shell { shell: runner.shell.clone(), user: user.map(str::to_owned), slots },
        }
    }
}

/// The reason why a machine is unfit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// A file system has too little free space.
    Space { what: &'static str, path: PathBuf, free: u64, wanted: u64 },
    /// A file system has too few free inodes.
    Inodes { what: &'static str, path: PathBuf, free: u64, wanted: u64 },
    /// The container engine does not answer.
    Engine { address: String, why: String },
    /// The user of the jobs does not exist.
    User(String),
    /// The shell is not installed.
    Shell(String),
    /// git is not installed or does not run.
    Git(String),
    /// Too many jobs in a row failed with `runner_system_failure`.
    Failures { count: u32, pause: Duration },
    /// The readiness commands have not succeeded within their timeout.
    NotReady(String),
}

impl Unfit {
    /// The reason, as a label for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Space { .. } => "disk_space",
            Self::Inodes { .. } => "inodes",
            Self::Engine { .. } => "container_engine",
            Self::User(_) => "user",
            Self::Shell(_) => "shell",
            Self::Git(_) => "git",
            Self::Failures { .. } => "system_failures",
            Self::NotReady(_) => "not_ready",
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Space { what, path, free, wanted } => write!(
                f,
                "{what} {} has {free} bytes free, {wanted} are wanted; free some space, or set `min_free_space` below \
                 [mayfly]",
                path.display()
            ),
            Self::Inodes { what, path, free, wanted } => write!(
                f,
                "{what} {} has {free} inodes free, {wanted} are wanted; remove files, or set `min_free_inodes` below \
                 [mayfly]",
                path.display()
            ),
            Self::Engine { address, why } => {
                write!(
                    f,
                    "the container engine at {address} does not answer: {why}; start it, or set `host` below [runners.docker]"
                )
            }
            Self::User(why) => write!(f, "{why}; create it, or set `user`"),
            Self::Shell(why) => write!(f, "{why}; install bash"),
            Self::Git(why) => write!(f, "{why}; install git"),
            Self::Failures { count, pause } => write!(
                f,
                "{count} jobs in a row failed with runner_system_failure, no request for {} seconds; the logs of those \
                 jobs name the cause",
                pause.as_secs()
            ),
            Self::NotReady(why) => write!(f, "the machine is not ready for jobs: {why}"),
        }
    }
}

/// The checks of one poller, with results that still count.
pub struct FitnessCheck {
    requirements: Requirements,
    engine_answered: Option<Instant>,
    git_ran: Option<Instant>,
}

impl FitnessCheck {
    pub fn new(requirements: Requirements) -> Self {
        Self { requirements, engine_answered: None, git_ran: None }
    }

    /// Checks the machine. Errors: the first reason why it must not take a job.
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

/// Checks the file system of the directory, or of its nearest existing ancestor. If `statvfs` fails, the directory
/// counts as fit.
fn check_file_system(limits: &fitness::Fitness, what: &'static str, path: &Path) -> Result<(), Unfit> {
    let Some(stat) = path.ancestors().find_map(|path| statvfs(path).ok()) else { return Ok(()) };
    let (free, total) = (stat.blocks_available(), stat.blocks());
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    let (free, wanted) = (bytes(free), limits.wanted_space(bytes(total)));
    if free < wanted {
        return Err(Unfit::Space { what, path: path.to_owned(), free, wanted });
    }
    let (free, wanted) = (stat.files_available(), limits.wanted_inodes(stat.files()));
    if free < wanted {
        return Err(Unfit::Inodes { what, path: path.to_owned(), free, wanted });
    }
    Ok(())
}

fn check_shell(shell: Option<&str>, user: Option<&str>, slots: u32) -> Result<(), Unfit> {
    if let Some(user) = user {
        user::of_slots(user, slots).map_err(Unfit::User)?;
    }
    let wanted = shell.map_or(vec!["bash", "sh"], |shell| vec![shell]);
    if wanted.iter().any(|name| find_program(name).is_some()) {
        return Ok(());
    }
    Err(Unfit::Shell(format!("there is no `{}` on the machine", wanted.join("` or `"))))
}

fn check_engine(address: &Address) -> Result<(), Unfit> {
    let answered = DockerEngine::connect(address).and_then(|engine| engine.ping(ENGINE_TIMEOUT));
    answered.map_err(|error| Unfit::Engine { address: address.to_string(), why: error.to_string() })
}

fn check_git() -> Result<(), Unfit> {
    let Some(program) = find_program("git") else {
        return Err(Unfit::Git("there is no `git` on the machine".to_owned()));
    };
    let ran = Command::new(&program).arg("--version").env_clear().stdin(Stdio::null()).output();
    match ran {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or_default();
            Err(Unfit::Git(format!("`{} --version` fails ({}): {said}", program.display(), output.status)))
        }
        Err(error) => Err(Unfit::Git(format!("{} cannot be started: {error}", program.display()))),
    }
}

/// The runners that must not poll, and why. The pollers write it; the main loop and the metrics read it.
#[derive(Default)]
pub struct FitnessStatus {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By runner: the reason, and since when.
    unfit: BTreeMap<RunnerLabels, (Unfit, BootTime)>,
    /// The same for the whole machine, while the readiness commands have timed out.
    not_ready: Option<(Unfit, BootTime)>,
}

impl FitnessStatus {
    /// Records the result of a check. Logs a change once, and returns true for it.
    pub fn set(&self, runner_labels: &RunnerLabels, looked: &Result<(), Unfit>) -> bool {
        let mut inner = self.lock();
        let before = inner.unfit.remove(runner_labels);
        match looked {
            Ok(()) if before.is_some() => {
                log::info!("the machine is fit again; polling resumed runner={}", runner_labels.name);
                true
            }
            Ok(()) => false,
            Err(unfit) => {
                let is_new = before.as_ref().is_none_or(|(before, _)| before.reason() != unfit.reason());
                if is_new {
                    log::error!(
                        "unfit for jobs; polling paused runner={} reason={} cause={unfit}",
                        runner_labels.name,
                        unfit.reason()
                    );
                }
                let since = before.map_or_else(BootTime::now, |(_, since)| since);
                inner.unfit.insert(runner_labels.clone(), (unfit.clone(), since));
                is_new
            }
        }
    }

    /// Records that the readiness commands have timed out, or that they have succeeded.
    pub fn set_ready(&self, ready: Result<(), String>) {
        self.lock().not_ready = ready.err().map(|why| (Unfit::NotReady(why), BootTime::now()));
    }

    /// Removes runners that are no longer configured.
    pub fn keep_only(&self, runners: &[RunnerLabels]) {
        self.lock().unfit.retain(|runner_labels, _| runners.contains(runner_labels));
    }

    /// All reasons, each with the name of the runner; `None` for the whole machine.
    pub fn reasons(&self) -> Vec<(Option<String>, Unfit)> {
        let inner = self.lock();
        let machine = inner.not_ready.iter().map(|(unfit, _)| (None, unfit.clone()));
        machine
            .chain(
                inner.unfit.iter().map(|(runner_labels, (unfit, _))| (Some(runner_labels.name.clone()), unfit.clone())),
            )
            .collect()
    }

    /// How long the machine has been unfit, by the oldest reason.
    pub fn unfit_for(&self) -> Option<Duration> {
        let inner = self.lock();
        let since = inner.unfit.values().chain(&inner.not_ready).map(|(_, since)| *since).min()?;
        Some(since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        sync::lock(&self.inner)
    }
}

/// Counts the system failures in a row of each runner.
#[derive(Default)]
pub struct FailureStreaks {
    /// The number of failures, and the time of the last one.
    streaks: Mutex<BTreeMap<RunnerLabels, (u32, BootTime)>>,
}

impl FailureStreaks {
    /// Records the result of a job.
    pub fn record(&self, runner_labels: &RunnerLabels, is_system_failure: bool) {
        let mut streaks = sync::lock(&self.streaks);
        match is_system_failure {
            true => {
                let (count, at) = streaks.entry(runner_labels.clone()).or_default();
                *count = count.saturating_add(1);
                *at = BootTime::now();
            }
            false => drop(streaks.remove(runner_labels)),
        }
    }

    /// Errors: the runner must pause, because at least `most` jobs in a row have failed and the pause is not over.
    pub fn check(&self, runner_labels: &RunnerLabels, most: Option<u32>) -> Result<(), Unfit> {
        let streaks = sync::lock(&self.streaks);
        let (Some(most), Some((count, at))) = (most, streaks.get(runner_labels)) else { return Ok(()) };
        let pause = pause_after(*count, most);
        let over = at.elapsed() >= pause;
        if over { Ok(()) } else { Err(Unfit::Failures { count: *count, pause }) }
    }
}

/// The pause after `count` failures in a row, if fewer than `most` are allowed.
fn pause_after(count: u32, most: u32) -> Duration {
    match count.checked_sub(most) {
        None => Duration::ZERO,
        Some(further) => FAILURE_PAUSE.delay(further),
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

    #[test]
    fn pauses_grow_with_failures_in_a_row_and_end_with_a_success() {
        let seconds: Vec<u64> = (0..12).map(|count| pause_after(count, 3).as_secs()).collect();
        assert_eq!(seconds, [0, 0, 0, 30, 60, 120, 240, 480, 960, 1800, 1800, 1800]);
        let runner_labels = RunnerLabels { token: "t".to_owned(), name: "r".to_owned() };
        let streaks = FailureStreaks::default();
        for _ in 0..2 {
            streaks.record(&runner_labels, true);
            assert_eq!(streaks.check(&runner_labels, Some(3)), Ok(()));
        }
        streaks.record(&runner_labels, true);
        assert_eq!(
            streaks.check(&runner_labels, Some(3)).expect_err("polling must be paused").reason(),
            "system_failures"
        );
        assert_eq!(streaks.check(&runner_labels, None), Ok(()));
        streaks.record(&runner_labels, false);
        assert_eq!(streaks.check(&runner_labels, Some(3)), Ok(()));
    }

    #[test]
    fn the_status_keeps_the_first_time_and_reports_changes() {
        let runner_labels = RunnerLabels { token: "t".to_owned(), name: "r".to_owned() };
        let status = FitnessStatus::default();
        assert!(status.unfit_for().is_none());
        assert!(status.set(&runner_labels, &Err(Unfit::User("gone".to_owned()))));
        assert!(!status.set(&runner_labels, &Err(Unfit::User("gone".to_owned()))));
        assert!(status.set(&runner_labels, &Err(Unfit::Shell("gone".to_owned()))));
        assert!(status.unfit_for().is_some());
        assert_eq!(status.reasons()[0].0.as_deref(), Some("r"));
        assert!(status.set(&runner_labels, &Ok(())) && !status.set(&runner_labels, &Ok(())));
        assert!(status.unfit_for().is_none() && status.reasons().is_empty());
        status.set_ready(Err("a command fails".to_owned()));
        assert_eq!(status.reasons()[0].1.reason(), "not_ready");
    }
}
