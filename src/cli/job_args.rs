//! Options of `run` and `check` for the jobs of this machine.

use std::path::PathBuf;

use clap::Args;

use crate::agent;
use crate::config::Config;

#[derive(Args)]
pub struct JobArgs {
    /// The working directory: the base of a relative `builds_dir` and `cache_dir`
    #[arg(short = 'd', long, value_name = "DIR")]
    working_directory: Option<PathBuf>,
    /// Run jobs as this user
    #[arg(short, long)]
    pub user: Option<String>,
}

impl JobArgs {
    /// The working directory as an absolute path. Fails if it does not exist.
    pub fn working_directory(&self) -> Result<PathBuf, String> {
        agent::working_directory(self.working_directory.as_deref())
    }

    /// The user that runs jobs; `None` for the agent's own user.
    pub fn user_or_configured<'a>(&'a self, config: &'a Config) -> Option<&'a str> {
        self.user.as_deref().or(config.user.as_deref())
    }
}
