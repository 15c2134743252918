//! Where scripts run: in the instance's shell, or in containers.
//!
//! This layer starts what a job needs and runs one script or file task. It never sends a request to GitLab or a
//! manager, and does not decide which stage comes next.

pub mod cgroup;
pub mod docker;
pub mod job_dirs;
pub mod roots;
pub mod shell;
pub mod user;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::shim::spec::User;

/// Numbers that distinguish the jobs that run at the same time on this machine. A job gets the smallest free numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConcurrentIds {
    /// `CI_CONCURRENT_ID`: among the jobs of the runner.
    pub of_runner: u32,
    /// `CI_CONCURRENT_PROJECT_ID`: among the jobs of the runner and the project.
    pub of_project: u32,
}

/// How the steps of one job run on this machine.
pub trait Executor: Send + Sync {
    /// The line under the heading of the first section of the log; `None` if another process writes that line.
    fn greeting(&self) -> Option<String>;

    /// The user that runs steps; `None` for the agent's own user.
    fn user(&self) -> Option<&User>;

    /// The initial environment of a step, before the job's variables.
    fn environment(&self) -> Vec<(String, String)>;

    /// The control groups for a step with this name.
    fn cgroups(&self, step: &str) -> Vec<PathBuf>;

    /// The control groups, with limits, for a step in the sandbox.
    fn confined_cgroups(&self, step: &str) -> Vec<PathBuf> {
        self.cgroups(step)
    }

    /// `CI_SHARED_ENVIRONMENT` or `CI_DISPOSABLE_ENVIRONMENT`.
    fn environment_marker(&self) -> &'static str;

    /// Whether jobs of other users share the caches of this one.
    fn shares_caches(&self) -> bool {
        false
    }
}
