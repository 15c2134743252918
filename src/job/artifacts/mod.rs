//! Artifacts: uploads to GitLab, and downloads from the jobs that a job depends on.
//!
//! The agent makes a plan from the payload. A child of the shim carries it out with the permissions of the job's user;
//! its output goes to the job's log. The child knows the job's token, but never the runner's.

mod download;
mod plan;
mod provenance;
mod upload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::archive::{ArchiveFormat, CompressionLevel};
use crate::http::is_same_server;
use crate::http::tls::TlsFiles;
use crate::job::transfer::ProjectDir;
use crate::job_id::JobId;

pub use download::run as download;
pub use plan::{ArtifactSettings, ScriptOutcome, download_plan, level, upload_plan};
pub use provenance::ProvenanceStatement;
pub use upload::run as upload;

/// The server for artifacts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArtifactServer {
    /// The base URL of the API, such as `https://gitlab.example.com/api/v4`.
    pub api: String,
    pub tls: TlsFiles,
    /// The `User-Agent` of requests.
    pub user_agent: String,
    /// The local artifacts directory, used instead of the server (`mayfly exec`): it contains the archives by job id
    /// and type.
    #[serde(default)]
    pub directory: Option<PathBuf>,
}

/// The path of an archive in the local artifacts directory.
pub fn local_archive(directory: &Path, job: &JobId, kind: &str) -> PathBuf {
    directory.join(job.to_string()).join(kind)
}

impl ArtifactServer {
    /// Whether data for GitLab may be sent to this URL: GitLab itself, or the same address with https instead of http.
    fn is_at(&self, url: &str) -> bool {
        let behind_tls = || self.api.strip_prefix("http://").map(|rest| format!("https://{rest}"));
        is_same_server(&self.api, url) || behind_tls().is_some_and(|api| is_same_server(&api, url))
    }
}

/// The plan of an upload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UploadPlan {
    pub project: ProjectDir,
    pub server: ArtifactServer,
    /// The job id.
    pub job: JobId,
    /// The job token.
    pub token: String,
    /// The files to upload, in order.
    pub uploads: Vec<Upload>,
    /// `ARTIFACT_COMPRESSION_LEVEL`.
    pub level: CompressionLevel,
    /// The timeout of each upload.
    pub timeout: Duration,
    /// The timeout from the end of an upload to the response.
    pub response_timeout: Duration,
    /// `TRANSFER_METER_FREQUENCY`.
    pub meter: Option<Duration>,
    /// The provenance statement to add.
    pub statement: Option<ProvenanceStatement>,
}

/// One archive or report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Upload {
    /// The file name without extension.
    pub name: String,
    /// `archive` or a report type.
    pub kind: String,
    pub format: UploadFormat,
    /// `expire_in` of the artifact, as written in the CI configuration.
    pub expire_in: String,
    /// Patterns of files to include.
    pub paths: Vec<String>,
    /// Patterns of files to exclude.
    pub exclude: Vec<String>,
    /// Whether to include files that git does not track.
    pub untracked: bool,
}

/// The format of an uploaded file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadFormat {
    /// An archive of the files.
    Archive(ArchiveFormat),
    /// Exactly one file, unchanged.
    Raw,
}

/// The plan of a download.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DownloadPlan {
    pub project: ProjectDir,
    /// `<project directory>.tmp`, for incomplete archives.
    pub temporary: PathBuf,
    pub server: ArtifactServer,
    /// The jobs whose artifacts to download, in order.
    pub dependencies: Vec<Dependency>,
    /// Request a redirect to the object store (`FF_USE_DIRECT_DOWNLOAD`).
    pub direct: bool,
    /// `TRANSFER_METER_FREQUENCY`.
    pub meter: Option<Duration>,
}

/// A job whose artifacts are downloaded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dependency {
    pub id: JobId,
    pub name: String,
    /// The job's own token.
    pub token: String,
}

#[cfg(test)]
mod tests;
