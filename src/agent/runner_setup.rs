//! Sets up a runner of the configuration on this machine: the client of its GitLab, its executor, its directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{Config, Runner};
use crate::coordinator::gitlab::{GitLab, RunnerManagerInfo};
use crate::executor::cgroup::CgroupParents;
use crate::executor::docker::DockerExecutor;
use crate::executor::docker::names::ContainerOwner;
use crate::executor::docker::removal::ContainerRemovals;
use crate::executor::shell::Shell;
use crate::job::context::JobExecutor;

/// The executor of a runner whose jobs run as `user`, with `slots` slots. Errors: the configuration of the executor is
/// not usable.
pub fn executor_of(
    runner: &Runner,
    user: Option<&str>,
    slots: u32,
    parents: CgroupParents,
    (owner, removals): (ContainerOwner, ContainerRemovals),
) -> Result<Arc<dyn JobExecutor>, String> {
    match runner.executor.has_containers() {
        true => Ok(Arc::new(DockerExecutor::new(runner, owner, removals, parents)?)),
        false => Ok(Arc::new(Shell::new(runner.shell.as_deref(), user, slots, parents)?)),
    }
}

/// Creates the GitLab client of a runner. Errors: its URL or certificates are not usable.
pub fn gitlab(config: &Config, runner: &Runner) -> Result<GitLab, String> {
    let shell = runner.shell.as_deref().unwrap_or("bash");
    let info = RunnerManagerInfo::new(runner.executor, shell, &runner.labels);
    GitLab::new(&runner.url, &runner.tls, info, config.connection_max_age)
        .map_err(|error| format!("runner `{}`: {error}", runner.name))
}

/// The root directories for builds and local caches of a runner on this machine. For containers, `builds_dir` and
/// `cache_dir` are paths inside the container, so other keys give the paths on the machine.
pub fn directories_of(working_directory: &Path, runner: &Runner) -> [PathBuf; 2] {
    let (builds, caches) = match runner.executor.has_containers() {
        true => (&runner.container_builds_dir, &runner.container_cache_dir),
        false => (&runner.builds_dir, &runner.cache_dir),
    };
    let below =
        |given: &Option<PathBuf>, usual: &str| working_directory.join(given.as_deref().unwrap_or(Path::new(usual)));
    [below(builds, "builds"), below(caches, "cache")]
}

/// The absolute working directory. Errors: it does not exist.
pub fn working_directory(given: Option<&Path>) -> Result<PathBuf, String> {
    let given = given.unwrap_or(Path::new("."));
    fs::canonicalize(given).map_err(|error| format!("working directory {}: {error}", given.display()))
}
