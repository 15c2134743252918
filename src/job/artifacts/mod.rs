//! Artifacts: to GitLab, and from the jobs this one depends on.
//!
//! A plan is made from the payload; its work runs in a child of the shim with the job user's rights, and what it prints
//! goes into the job's log. It holds the job's token, never the runner's.

mod download;
mod plan;
mod provenance;
mod upload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::archive::{Format, Level};
use crate::http::is_same_server;
use crate::http::tls::TlsFiles;
use crate::job::transfer::ProjectDir;

pub use download::run as download;
pub use plan::{ArtifactSettings, ScriptOutcome, download_plan, level, upload_plan};
pub use provenance::ProvenanceStatement;
pub use upload::run as upload;

/// How long an upload or a download is retried: GitLab may be restarting, and the files exist only here.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

/// Where to send and fetch, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArtifactServer {
    /// The API's base, such as `https://gitlab.example.com/api/v4`.
    pub api: String,
    /// Certificates.
    pub tls: TlsFiles,
    /// The name in the server's logs.
    pub user_agent: String,
    /// A directory of this machine that takes the server's place (`mayfly exec`): the archive of each job lies in it,
    /// by the number of the job and the type of artifact.
    #[serde(default)]
    pub directory: Option<PathBuf>,
}

/// Where the archive of a job lies in a directory that takes the server's place.
pub fn local_archive(directory: &Path, job: i64, kind: &str) -> PathBuf {
    directory.join(job.to_string()).join(kind)
}

impl ArtifactServer {
    /// Whether what is meant for GitLab may go to this URL: GitLab itself, or the same place behind TLS.
    fn is_at(&self, url: &str) -> bool {
        let behind_tls = || self.api.strip_prefix("http://").map(|rest| format!("https://{rest}"));
        is_same_server(&self.api, url) || behind_tls().is_some_and(|api| is_same_server(&api, url))
    }
}

/// Everything that an upload needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UploadPlan {
    /// Where the job's files are.
    pub project: ProjectDir,
    /// GitLab.
    pub server: ArtifactServer,
    /// The job.
    pub job: i64,
    /// Its token.
    pub token: String,
    /// What to upload, in order.
    pub uploads: Vec<Upload>,
    /// `ARTIFACT_COMPRESSION_LEVEL`.
    pub level: Level,
    /// For each upload as a whole.
    pub timeout: Duration,
    /// From the end of an upload to the server's answer.
    pub answer_timeout: Duration,
    /// `TRANSFER_METER_FREQUENCY`.
    pub meter: Option<Duration>,
    /// What to say about where the files come from, if anything.
    pub statement: Option<ProvenanceStatement>,
}

/// One archive or report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Upload {
    /// File name without its ending.
    pub name: String,
    /// `archive` or a type of report.
    pub kind: String,
    /// What to make of the files.
    pub format: UploadFormat,
    /// As the author wrote it.
    pub expire_in: String,
    /// Patterns of what to take.
    pub paths: Vec<String>,
    /// Patterns of what to leave out.
    pub exclude: Vec<String>,
    /// Also what git does not track.
    pub untracked: bool,
}

/// What a file on the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadFormat {
    /// An archive of the files.
    Archive(Format),
    /// The one file itself.
    Raw,
}

/// Everything that a download needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DownloadPlan {
    /// Where the job's files are.
    pub project: ProjectDir,
    /// `<project directory>.tmp`, for archives that are not whole yet.
    pub temporary: PathBuf,
    /// GitLab.
    pub server: ArtifactServer,
    /// Whose artifacts, in order.
    pub dependencies: Vec<Dependency>,
    /// Ask for a redirect to the object store (`FF_USE_DIRECT_DOWNLOAD`).
    pub direct: bool,
    /// `TRANSFER_METER_FREQUENCY`.
    pub meter: Option<Duration>,
}

/// A job whose artifacts are needed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dependency {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Its own token.
    pub token: String,
}

#[cfg(test)]
mod tests;
