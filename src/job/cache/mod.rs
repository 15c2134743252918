//! Caches: kept between jobs, on this instance and, where one is configured, in an object store.
//!
//! A plan is made from the payload; its work runs in a child of the shim with the job user's rights. It gets presigned
//! URLs, never keys. Nothing that goes wrong with a cache fails a job.

mod key;
mod plan;
mod restore;
pub mod s3;
mod save;
mod store;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::archive::{Format, Level};
use crate::http::tls::TlsFiles;
use crate::job::transfer::ProjectDir;

use crate::config::cache::StorageLimits;
pub use plan::{CacheSettings, restore_plan, save_plan};
pub use restore::run as restore;
pub use save::run as save;

/// Everything that restoring needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RestorePlan {
    /// Where the job's files are.
    pub project: ProjectDir,
    /// What to say first.
    pub warnings: Vec<String>,
    /// The caches, in order.
    pub caches: Vec<CacheRestore>,
    /// How to transfer.
    pub transfer: TransferSettings,
    /// What the local store may grow to.
    pub limits: StorageLimits,
    /// The directory that all local copies lie in.
    pub store: PathBuf,
}

/// One cache to restore.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CacheRestore {
    /// The first of these that is there.
    FirstOf {
        /// In order.
        locations: Vec<CacheLocation>,
        /// Patterns of what goes when an archive breaks off; none where it stays.
        clear: Vec<String>,
    },
    /// None, for this reason.
    Skip(String),
}

/// Everything that saving needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavePlan {
    /// Where the job's files are.
    pub project: ProjectDir,
    /// What to say first.
    pub warnings: Vec<String>,
    /// The caches, in order.
    pub caches: Vec<CacheSave>,
    /// How to transfer.
    pub transfer: TransferSettings,
    /// What the local store may grow to.
    pub limits: StorageLimits,
    /// The directory that all local copies lie in.
    pub store: PathBuf,
}

/// One cache to save.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CacheSave {
    /// These files.
    Files {
        /// Where to.
        location: CacheLocation,
        /// Patterns.
        paths: Vec<String>,
        /// Also what git does not track.
        untracked: bool,
        /// What to make of them.
        format: Format,
        /// How hard to try.
        level: Level,
        /// Bytes that are uploaded at most.
        max_upload: Option<u64>,
    },
    /// None, for this reason.
    Skip(String),
}

impl RestorePlan {
    /// The addresses that it asks for objects.
    pub fn remotes(&self) -> impl Iterator<Item = &PresignedUrls> {
        let locations = self.caches.iter().flat_map(|cache| match cache {
            CacheRestore::FirstOf { locations, .. } => locations.as_slice(),
            CacheRestore::Skip(_) => &[],
        });
        locations.filter_map(|location| location.remote.as_ref())
    }
}

impl SavePlan {
    /// The addresses that it hands objects to.
    pub fn remotes(&self) -> impl Iterator<Item = &PresignedUrls> {
        self.caches.iter().filter_map(|cache| match cache {
            CacheSave::Files { location, .. } => location.remote.as_ref(),
            CacheSave::Skip(_) => None,
        })
    }
}

/// Where a cache is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CacheLocation {
    /// As people know it.
    pub key: String,
    /// The archive on this machine.
    pub local: PathBuf,
    /// The object in the store.
    pub remote: Option<PresignedUrls>,
}

/// Requests that are signed already.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PresignedUrls {
    /// URL for GET.
    pub get: String,
    /// URL for HEAD.
    pub head: String,
    /// URL for PUT.
    pub put: String,
    /// Headers that are signed into the latter.
    pub put_headers: Vec<(String, String)>,
    /// Bytes that the store takes in one request, as far as is known.
    #[serde(default)]
    pub max_size: Option<u64>,
}

/// How to transfer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransferSettings {
    /// Certificates to trust beside the system's.
    pub tls: TlsFiles,
    /// The name in the store's logs.
    pub user_agent: String,
    /// `CACHE_REQUEST_TIMEOUT`: for each transfer.
    pub timeout: Duration,
    /// `TRANSFER_METER_FREQUENCY`.
    pub meter: Option<Duration>,
}

#[cfg(test)]
mod tests;
