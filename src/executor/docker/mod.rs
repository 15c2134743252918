//! Jobs in containers, through the Engine API: no docker command line, no helper image.
//!
//! One container a job: made before the first script and started for each. Its processes are the engine's, so a child of
//! the shim stands for them: as long as it lives the script does. File work is done beside the container, in a directory
//! of the machine that the container sees as its builds directory.

pub mod console;
pub mod create;
pub mod credentials;
pub mod engine;
pub mod host;
pub mod images;
pub mod names;
pub mod policy;
pub mod prepare;
pub mod prepared;
pub mod reference;
pub mod removal;
pub mod resolved_image;
mod retry;
mod safe_dirs;
pub mod script;
pub mod services;
pub mod volumes;

use std::path::PathBuf;

use super::cgroup::CgroupParents;
use super::shell::PATH;
use super::{Executor, user};
use crate::config::Runner;
use crate::http::Address;
use crate::instance::aws::ecr::Tokens;
use crate::shim::spec::User;
use names::Owner;

/// Where containers have their builds unless `builds_dir` says otherwise.
pub const BUILDS: &str = "/builds";

/// The containers of one runner's jobs.
pub struct Docker {
    /// The engine.
    pub address: Address,
    /// Whose they are.
    pub owner: Owner,
    /// Where containers have their builds.
    pub builds: PathBuf,
    /// Those that are being removed.
    pub removals: removal::ContainerRemovals,
    /// For Amazon's registries.
    pub tokens: Tokens,
    home: PathBuf,
    parents: CgroupParents,
}

impl Docker {
    /// Containers as a runner's configuration has them. Errors: the engine's address is none.
    pub fn new(
        runner: &Runner,
        owner: Owner,
        removals: removal::ContainerRemovals,
        parents: CgroupParents,
    ) -> Result<Self, String> {
        let builds = runner.builds_dir.clone().unwrap_or_else(|| PathBuf::from(BUILDS));
        Ok(Self {
            address: host::address(&runner.docker)?,
            owner,
            builds,
            removals,
            tokens: Tokens::default(),
            home: user::current().home,
            parents,
        })
    }
}

impl Executor for Docker {
    fn greeting(&self) -> Option<String> {
        // The image is said by whoever chooses it.
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
        self.parents.of_step(step)
    }

    fn confined_cgroups(&self, step: &str) -> Vec<PathBuf> {
        self.parents.of_confined(step)
    }

    fn environment_marker(&self) -> &'static str {
        "CI_DISPOSABLE_ENVIRONMENT"
    }
}
