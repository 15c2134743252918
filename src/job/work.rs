//! File work of a job that the agent's program does itself, in a child of a shim and with the job user's rights.

use serde::{Deserialize, Serialize};

use super::{artifacts, cache, sources};
use crate::decode;
use crate::executor::docker::prepared::Prepared;
use crate::executor::docker::{prepare, script};
use crate::failure::JobError;
use crate::shim::spec::Worked;

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
    /// Get a container ready.
    PrepareContainer(Box<prepare::Plan>),
    /// Run a script in it.
    ContainerScript(Box<script::Plan>),
}

/// What is to be told of work beside its exit status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Report {
    /// Whose fault it is that it failed.
    Failed(JobError),
    /// The container that is ready.
    Prepared(Box<Prepared>),
}

impl Report {
    /// The report of work that has ended; `None` where there is none.
    pub fn of_text(text: &str) -> Option<Self> {
        decode::json(text.as_bytes()).ok()
    }
}

impl Plan {
    /// The form in which a shim hands it on.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

/// Does a plan in its written form.
pub fn run(plan: &str) -> Worked {
    let code = match decode::json(plan.as_bytes()) {
        Ok(Plan::Sources(plan)) => sources::run(&plan),
        Ok(Plan::CleanUp(plan)) => sources::clean_up(&plan),
        Ok(Plan::RestoreCache(plan)) => cache::restore(&plan),
        Ok(Plan::DownloadArtifacts(plan)) => artifacts::download(&plan),
        Ok(Plan::SaveCache(plan)) => cache::save(&plan),
        Ok(Plan::UploadArtifacts(plan)) => artifacts::upload(&plan),
        Ok(Plan::PrepareContainer(plan)) => return reported(prepare::run(&plan).map(|made| Some(Box::new(made)))),
        Ok(Plan::ContainerScript(plan)) => return reported(script::run(&plan).map(|()| None)),
        Err(error) => {
            eprintln!("the plan of this step cannot be read: {error}");
            1
        }
    };
    Worked { code, report: String::new() }
}

fn reported(outcome: Result<Option<Box<Prepared>>, JobError>) -> Worked {
    let (code, report) = match outcome {
        Ok(None) => return Worked::default(),
        Ok(Some(prepared)) => (0, Report::Prepared(prepared)),
        Err(error) => (1, Report::Failed(error)),
    };
    match serde_json::to_string(&report) {
        Ok(report) => Worked { code, report },
        Err(error) => {
            eprintln!("the outcome of this step cannot be told: {error}");
            Worked { code: 1, report: String::new() }
        }
    }
}
