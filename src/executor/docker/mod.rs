//! Jobs in containers, through the Engine API: without the docker command line and without a helper image.
//!
//! Each job has one container, which is created before the first script and started for each script. Its processes are
//! children of the engine, so a child process of the shim represents the script: it lives as long as the script runs.
//! File tasks run beside the container, in a directory of the machine that the container sees as its builds directory.

pub mod cache_volumes;
pub mod console;
pub mod create;
pub mod credentials;
pub mod engine;
pub mod host;
pub mod images;
pub mod names;
pub mod network_mode;
pub mod policy;
pub mod prepare;
pub mod prepared;
pub mod pulled;
pub mod reference;
pub mod removal;
pub mod removal_gate;
pub mod resolved_image;
mod retry;
mod safe_dirs;
pub mod script;
mod security_options;
pub mod services;
pub mod volumes;

use std::path::PathBuf;

use super::cgroup::CgroupParents;
use super::shell::PATH;
use super::{Executor, user};
use crate::config::Runner;
use crate::http::Address;
use crate::instance::aws::ecr::EcrTokens;
use crate::shim::spec::User;
use names::ContainerOwner;

/// The builds directory in containers unless `builds_dir` is set.
pub const BUILDS: &str = "/builds";

/// The container executor of one runner.
pub struct DockerExecutor {
    /// The engine's address.
    pub address: Address,
    /// The owner of the containers.
    pub owner: ContainerOwner,
    /// The builds directory in containers.
    pub builds: PathBuf,
    /// The running removals.
    pub removals: removal::ContainerRemovals,
    /// Tokens for Amazon ECR.
    pub tokens: EcrTokens,
    /// The parents of the control groups of steps.
    pub parents: CgroupParents,
    home: PathBuf,
}

impl DockerExecutor {
    /// Fails if the engine's address is invalid.
    pub fn new(
        runner: &Runner,
        owner: ContainerOwner,
        removals: removal::ContainerRemovals,
        parents: CgroupParents,
    ) -> Result<Self, String> {
        let builds = runner.builds_dir.clone().unwrap_or_else(|| PathBuf::from(BUILDS));
        Ok(Self {
            address: host::address(&runner.docker)?,
            owner,
            builds,
            removals,
            tokens: EcrTokens::default(),
            home: user::current().home,
            parents,
        })
    }
}

impl Executor for DockerExecutor {
    fn greeting(&self) -> Option<String> {
        // The process that resolves the image writes this line.
        None
    }

    fn user(&self) -> Option<&User> {
        None
    }

    fn environment(&self) -> Vec<(String, String)> {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![pair("HOME", &self.home.display().to_string()), pair("PATH", PATH)]
    }

    fn cgroups(&self, step: &str) -> Vec<PathBuf> {
        self.parents.step_groups(step)
    }

    fn confined_cgroups(&self, step: &str) -> Vec<PathBuf> {
        self.parents.confined_groups(step)
    }

    fn environment_marker(&self) -> &'static str {
        "CI_DISPOSABLE_ENVIRONMENT"
    }
}
