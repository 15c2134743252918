//! The files that a job keeps, uploads and downloads: caches, artifacts, and artifacts of other jobs.

use serde::Deserialize;

use super::lenient;
use crate::job_id::JobId;

/// Files to upload to GitLab.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Artifact {
    #[serde(deserialize_with = "lenient::value")]
    pub name: Option<String>,
    #[serde(deserialize_with = "lenient::switch")]
    pub untracked: bool,
    #[serde(deserialize_with = "lenient::texts")]
    pub paths: Vec<String>,
    #[serde(deserialize_with = "lenient::texts")]
    pub exclude: Vec<String>,
    #[serde(deserialize_with = "lenient::text")]
    pub when: String,
    #[serde(deserialize_with = "lenient::text")]
    pub artifact_type: String,
    #[serde(deserialize_with = "lenient::text")]
    pub artifact_format: String,
    #[serde(deserialize_with = "lenient::text")]
    pub expire_in: String,
}

/// Files to keep between jobs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Cache {
    #[serde(deserialize_with = "lenient::text")]
    pub key: String,
    #[serde(deserialize_with = "lenient::switch")]
    pub untracked: bool,
    #[serde(deserialize_with = "lenient::texts")]
    pub paths: Vec<String>,
    #[serde(deserialize_with = "lenient::text")]
    pub policy: String,
    #[serde(deserialize_with = "lenient::text")]
    pub when: String,
    #[serde(deserialize_with = "lenient::texts")]
    pub fallback_keys: Vec<String>,
}

/// A job whose artifacts this job downloads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Dependency {
    #[serde(deserialize_with = "lenient::job_id")]
    pub id: JobId,
    #[serde(deserialize_with = "lenient::text")]
    pub name: String,
    #[serde(deserialize_with = "lenient::text")]
    pub token: String,
    #[serde(deserialize_with = "lenient::value")]
    pub artifacts_file: ArtifactsFile,
}

/// The artifacts archive of a [`Dependency`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ArtifactsFile {
    #[serde(deserialize_with = "lenient::text")]
    pub filename: String,
    #[serde(deserialize_with = "lenient::number")]
    pub size: i64,
}
