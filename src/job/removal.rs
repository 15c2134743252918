//! Removes the directories of jobs that have ended, in a process with no more rights than the jobs had: in the sandbox
//! for the files of containers, otherwise as the user of the jobs.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Uid;

use super::agent_task::AgentTask;
use super::file_task::FileTask;
use super::limits::limits;
use crate::config::Runner;
use crate::executor::cgroup::CgroupParents;
use crate::executor::job_dirs::is_job_dir;
use crate::random;
use crate::shim::spec::{Rights, Sandbox, StepEnd, StepProgram, StepSpec, StepStatus, User};
use crate::shim::{RunningShim, StepOutcome};
use crate::sys::BootTime;
use crate::trace::FilterSpec;

/// The time limit for one directory. Only a faulty disk takes longer.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(3600);
/// The time between SIGTERM and SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// The maximum length of an error message in bytes.
const MAX_ERROR_SIZE: u64 = 1000;
/// The directory for the files of the shim that removes. It is in memory, because the disk of the directory may be
/// full.
const RUNTIME: &str = "/run";

/// Removes the directories of one runner's jobs.
pub struct DirectoryRemoval {
    sandbox: Sandbox,
    parents: CgroupParents,
}

impl DirectoryRemoval {
    /// Creates the removal for the jobs of this runner; `parents` are the parents of the control groups of steps.
    pub fn new(runner: &Runner, parents: CgroupParents) -> Self {
        let sandbox = Sandbox {
            writable: Vec::new(),
            readable: Vec::new(),
            world_writable: false,
            uid: runner.confined.uid,
            network: None,
            ambient_capabilities: false,
            limits: limits(runner),
        };
        Self { sandbox, parents }
    }

    /// Removes a directory; logs an error if that fails.
    pub fn remove(&self, directory: &Path) {
        if let Err(error) = self.try_to_remove(directory) {
            log::warn!("cannot remove the directory of a job path={} error={error}", directory.display());
        }
    }

    /// Removes a directory of container jobs. Errors: something in it cannot be removed.
    pub fn try_to_remove(&self, directory: &Path) -> io::Result<()> {
        match directory.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found?,
        };
        self.run(FileTask::EmptyDirectory(directory.to_owned()), directory, None)?;
        fs::remove_dir(directory)
    }

    /// Removes the directory at `below` in `root`, and the files of its jobs beside it. `user`: of the jobs; `None` for
    /// container jobs. Follows no link below `root`. Errors: something cannot be removed.
    pub fn remove_below(&self, root: &Path, below: &Path, user: Option<User>) -> io::Result<()> {
        let task = FileTask::RemoveBelow { root: root.to_owned(), below: below.to_owned() };
        self.run(task, root, user)
    }

    /// Runs a task that changes only `directory`.
    fn run(&self, task: FileTask, directory: &Path, user: Option<User>) -> io::Result<()> {
        let parent = if Uid::effective().is_root() { PathBuf::from(RUNTIME) } else { std::env::temp_dir() };
        let name = format!("removal-{}-{}", std::process::id(), random::number());
        let shim_files = parent.join(format!("mayfly-{name}"));
        DirBuilder::new().mode(0o700).create(&shim_files)?;
        let done = self.run_in(&shim_files, name, task, directory, user);
        let _ = fs::remove_dir_all(&shim_files);
        done
    }

    /// Runs a task whose shim keeps its files in the directory `shim_files`.
    fn run_in(
        &self,
        shim_files: &Path,
        id: String,
        task: FileTask,
        directory: &Path,
        user: Option<User>,
    ) -> io::Result<()> {
        let (cgroups, rights) = match &user {
            Some(_) => (self.parents.step_groups(&id), Rights::User),
            None => {
                let sandbox = Sandbox { writable: vec![directory.to_owned()], ..self.sandbox.clone() };
                (self.parents.confined_groups(&id), Rights::Sandboxed(sandbox))
            }
        };
        let task = AgentTask::File(Box::new(task)).to_text()?;
        let spec = StepSpec {
            spool: shim_files.join("log"),
            status: shim_files.join("status"),
            filters: FilterSpec { limit: MAX_ERROR_SIZE, ..FilterSpec::default() },
            user,
            cgroups,
            grace: KILL_GRACE,
            deadline: Some(BootTime::now() + REMOVAL_TIMEOUT),
            stop_with_pid: Some(std::process::id().cast_signed()),
            task: StepProgram::AgentTask { task, rights },
            id,
        };
        let running = RunningShim::start(&spec)?;
        running.wait(None, None);
        match running.outcome() {
            StepOutcome::Ended(StepStatus { end: StepEnd::Exited(0), .. }) => Ok(()),
            StepOutcome::Ended(StepStatus { end: StepEnd::NotStarted(why), .. }) => Err(io::Error::other(why)),
            outcome => {
                let mut text = String::new();
                let _ = File::open(&spec.spool).map(|log| log.take(MAX_ERROR_SIZE).read_to_string(&mut text));
                Err(io::Error::other(match (text.trim(), outcome) {
                    ("", outcome) => format!("the process that removes it ended early: {outcome:?}"),
                    (text, _) => text.to_owned(),
                }))
            }
        }
    }
}

/// The job directories below the root of container builds that belong to no job in the journal.
pub fn abandoned_dirs(builds: &Path, kept: &[PathBuf]) -> Vec<PathBuf> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let all = entries(builds).flat_map(|of_runner| entries(&of_runner));
    all.filter(|directory| is_job_dir(directory) && !kept.contains(directory)).collect()
}
