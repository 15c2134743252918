//! Where scripts run: the shell of the instance, or containers.

pub mod cgroup;
pub mod docker;
pub mod job_dirs;
pub mod roots;
pub mod shell;
pub mod user;

use std::path::PathBuf;

use crate::shim::spec::User;

/// How one job's steps are run on this machine.
pub trait Executor: Send + Sync {
    /// The line under the heading of the first section, unless it is said later.
    fn greeting(&self) -> Option<String>;

    /// Whom steps run as; `None` for the agent's own user.
    fn user(&self) -> Option<&User>;

    /// The environment a step starts with, before the job's variables.
    fn environment(&self) -> Vec<(String, String)>;

    /// Control groups for a step of this name.
    fn cgroups(&self, step: &str) -> Vec<PathBuf>;

    /// Control groups with limits, for a step of this name that is confined.
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
