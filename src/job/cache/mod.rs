//! Caches: files that the agent keeps between jobs on the instance and, if configured, in an object store.
//!
//! The agent makes a plan from the payload. A child of the shim carries it out with the permissions of the job's user.
//! The child gets presigned URLs, never keys. A failure of a cache never fails a job.

mod key;
mod plan;
mod restore;
pub mod s3;
mod save;
mod store;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::archive::{ArchiveFormat, CompressionLevel};
use crate::http::tls::TlsFiles;
use crate::job::transfer::ProjectDir;

use crate::config::cache::StorageLimits;
pub use plan::{CacheSettings, restore_plan, save_plan};
pub use restore::run as restore;
pub use save::run as save;

/// The plan for restoring or saving caches.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CachePlan<T> {
    pub project: ProjectDir,
    /// Warnings to write first.
    pub warnings: Vec<String>,
    /// In order.
    pub caches: Vec<T>,
    pub transfer: TransferSettings,
    /// The limits of local caches.
    pub limits: StorageLimits,
    /// The directory of all local caches.
    pub store: PathBuf,
}

pub type RestorePlan = CachePlan<CacheRestore>;
pub type SavePlan = CachePlan<CacheSave>;

/// A cache to restore.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CacheRestore {
    /// Restore the first of these caches that exists.
    FirstOf {
        /// In order.
        locations: Vec<CacheLocation>,
        /// Patterns of files to delete if extraction fails; empty to keep them.
        clear: Vec<String>,
    },
    /// No cache, for this reason.
    Skip(String),
}

/// A cache to save.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CacheSave {
    Files {
        location: CacheLocation,
        /// Patterns of files to include.
        paths: Vec<String>,
        /// Whether to include files that git does not track.
        untracked: bool,
        format: ArchiveFormat,
        level: CompressionLevel,
        /// The largest archive to upload, in bytes.
        max_upload: Option<u64>,
    },
    /// No cache, for this reason.
    Skip(String),
}

impl RestorePlan {
    /// The presigned URLs for downloads.
    pub fn remotes(&self) -> impl Iterator<Item = &PresignedUrls> {
        let locations = self.caches.iter().flat_map(|cache| match cache {
            CacheRestore::FirstOf { locations, .. } => locations.as_slice(),
            CacheRestore::Skip(_) => &[],
        });
        locations.filter_map(|location| location.remote.as_ref())
    }
}

impl SavePlan {
    /// The presigned URLs for uploads.
    pub fn remotes(&self) -> impl Iterator<Item = &PresignedUrls> {
        self.caches.iter().filter_map(|cache| match cache {
            CacheSave::Files { location, .. } => location.remote.as_ref(),
            CacheSave::Skip(_) => None,
        })
    }
}

/// The location of a cache.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CacheLocation {
    /// The key, for messages.
    pub key: String,
    /// The archive on this machine.
    pub local: PathBuf,
    /// The object in the store.
    pub remote: Option<PresignedUrls>,
}

/// Presigned requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PresignedUrls {
    /// URL for GET.
    pub get: String,
    /// URL for HEAD.
    pub head: String,
    /// URL for PUT.
    pub put: String,
    /// Signed headers of the PUT request.
    pub put_headers: Vec<(String, String)>,
    /// The largest body that the store accepts in one request, in bytes, if known.
    #[serde(default)]
    pub max_size: Option<u64>,
}

/// The settings for transfers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransferSettings {
    /// Additional trusted certificate authorities.
    pub tls: TlsFiles,
    /// The `User-Agent` of requests.
    pub user_agent: String,
    /// `CACHE_REQUEST_TIMEOUT`, for each transfer.
    pub timeout: Duration,
    /// `TRANSFER_METER_FREQUENCY`.
    pub meter: Option<Duration>,
}

#[cfg(test)]
mod tests;
