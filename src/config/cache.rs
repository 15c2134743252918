//! `[runners.cache]`: where caches are kept besides this machine.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An object store for caches; without a type there is none.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Cache {
    /// `s3`; `gcs` and `azure` are known to gitlab-runner.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Prefix of all object names.
    pub path: String,
    /// Leave out the part of the name that is this runner's own.
    pub shared: bool,
    /// Bytes of an archive that are uploaded at most; 0 for no limit.
    pub max_uploaded_archive_size: u64,
    /// Settings of S3.
    #[serde(rename = "s3")]
    pub s3: S3,
}

/// `[runners.cache.s3]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct S3 {
    /// Host and port; Amazon's own where empty.
    pub server_address: String,
    /// Public part of a key pair.
    pub access_key: String,
    /// Secret part of it.
    pub secret_key: String,
    /// Belongs to keys that are lent for a time.
    pub session_token: String,
    /// The bucket.
    pub bucket_name: String,
    /// Its region; `us-east-1` where empty.
    pub bucket_location: String,
    /// Plain http.
    pub insecure: bool,
    /// `access-key` or `iam`; by whether keys are there where empty.
    pub authentication_type: String,
    /// `S3`, `AES256`, `KMS` or `DSSE-KMS`.
    pub server_side_encryption: String,
    /// Key for the latter two.
    #[serde(rename = "ServerSideEncryptionKeyID")]
    pub server_side_encryption_key_id: String,
    /// Amazon's addresses for IPv4 and IPv6; on where nothing is said.
    pub dual_stack: Option<bool>,
    /// The bucket in the path rather than in the host; by the host where nothing is said.
    pub path_style: Option<bool>,
    /// Amazon's transfer acceleration.
    pub accelerate: bool,
    /// A role to assume.
    #[serde(rename = "RoleARN")]
    pub role_arn: String,
    /// The same, by its older name.
    #[serde(rename = "UploadRoleARN")]
    pub upload_role_arn: String,
}

/// What the local store may grow to; `None` without bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheLimits {
    /// Bytes of all archives.
    pub size: Option<u64>,
    /// Time since an archive was last used.
    pub age: Option<Duration>,
}
