//! File work of a job that the agent's program does itself, in a child of a shim and with the job user's rights.

use serde::{Deserialize, Serialize};

use super::{artifacts, cache, sources};

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Plan {
    /// Bring the sources into the project directory.
    Sources(sources::Plan),
    /// Take away what the job left in the project directory.
    CleanUp(sources::Plan),
    /// Unpack what caches hold.
    RestoreCache(cache::RestorePlan),
    /// Fetch what other jobs made.
    DownloadArtifacts(artifacts::DownloadPlan),
    /// Keep files for later jobs.
    SaveCache(cache::SavePlan),
    /// Hand files to GitLab.
    UploadArtifacts(artifacts::UploadPlan),
}

impl Plan {
    /// The form in which a shim hands it on.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

/// Does a plan in its written form; returns the exit status of the step.
pub fn run(plan: &str) -> i32 {
    match serde_json::from_str(plan) {
        Ok(Plan::Sources(plan)) => sources::run(&plan),
        Ok(Plan::CleanUp(plan)) => sources::clean_up(&plan),
        Ok(Plan::RestoreCache(plan)) => cache::restore(&plan),
        Ok(Plan::DownloadArtifacts(plan)) => artifacts::download(&plan),
        Ok(Plan::SaveCache(plan)) => cache::save(&plan),
        Ok(Plan::UploadArtifacts(plan)) => artifacts::upload(&plan),
        Err(error) => {
            eprintln!("the plan of this step cannot be read: {error}");
            1
        }
    }
}
