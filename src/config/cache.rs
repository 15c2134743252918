//! `[runners.cache]`: the object store for caches.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An object store for caches; without `Type`, caches are stored only on the machine.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CacheConfig {
    /// `s3`; gitlab-runner also supports `gcs` and `azure`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// The prefix of all object names.
    pub path: String,
    /// Whether object names omit the part that is specific to the runner.
    pub shared: bool,
    /// The largest archive to upload, in bytes; 0 for no limit.
    pub max_uploaded_archive_size: u64,
    #[serde(rename = "s3")]
    pub s3: S3,
}

/// `[runners.cache.s3]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct S3 {
    /// Host and port; empty for Amazon S3.
    pub server_address: String,
    pub access_key: String,
    pub secret_key: String,
    /// The session token of temporary keys.
    pub session_token: String,
    pub bucket_name: String,
    /// The region; empty for `us-east-1`.
    pub bucket_location: String,
    /// Use http.
    pub insecure: bool,
    /// `access-key` or `iam`; if empty, `access-key` if keys are set.
    pub authentication_type: String,
    /// `S3`, `AES256`, `KMS` or `DSSE-KMS`.
    pub server_side_encryption: String,
    /// The KMS key for `KMS` and `DSSE-KMS`.
    #[serde(rename = "ServerSideEncryptionKeyID")]
    pub server_side_encryption_key_id: String,
    /// Use Amazon's dual-stack (IPv4 and IPv6) endpoints; on by default.
    pub dual_stack: Option<bool>,
    /// Put the bucket in the path instead of the host name; by default decided by the host.
    pub path_style: Option<bool>,
    /// Use S3 Transfer Acceleration.
    pub accelerate: bool,
    /// A role to assume.
    #[serde(rename = "RoleARN")]
    pub role_arn: String,
    /// The older name of `role_arn`.
    #[serde(rename = "UploadRoleARN")]
    pub upload_role_arn: String,
}

/// The limits of local caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageLimits {
    /// The total size of all archives, in bytes.
    pub size: Option<u64>,
    /// The time since an archive was last used.
    pub age: Option<Duration>,
}
