//! Where the git of a job runs.

use std::path::Path;

/// Where git runs, and as which user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GitContext {
    /// The job's user, on the machine.
    AsJob,
    /// The agent, outside the job's container.
    BesideContainer,
}

impl GitContext {
    /// The context of a job whose temporary directory has this path in its container, if it has one.
    pub fn new(temporary_in_container: Option<&Path>) -> Self {
        if temporary_in_container.is_some() { Self::BesideContainer } else { Self::AsJob }
    }
}
