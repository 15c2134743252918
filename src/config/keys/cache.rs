//! Keys of caches.

use super::ValueType::{Bool, Number, Text};
use super::{Key, OTHER_OBJECT_STORE, as_above, key, no_effect, table};

/// Keys below `[runners.cache]`.
pub(super) const CACHE: &[Key] = &[
    key("Type", Text, "none", "`\"s3\"`").flag("cache-type", "CACHE_TYPE"),
    key("Path", Text, "empty", "Prefix of all object names").flag("cache-path", "CACHE_PATH"),
    key("Shared", Bool, "`false`", "Share caches between runners: the object name does not contain the runner's token")
        .flag("cache-shared", "CACHE_SHARED"),
    key("MaxUploadedArchiveSize", Number, "0 (no limit)", "Bytes of the largest archive that the agent uploads")
        .flag("cache-max-uploaded-archive-size", "CACHE_MAXIMUM_UPLOADED_ARCHIVE_SIZE"),
    table("s3", "", "`[runners.cache.s3]`"),
    no_effect("gcs", OTHER_OBJECT_STORE),
    no_effect("azure", OTHER_OBJECT_STORE),
];

/// Keys below `[runners.cache.s3]`.
pub(super) const CACHE_S3: &[Key] = &[
    key("BucketName", Text, "required", "Bucket").flag("cache-s3-bucket-name", "CACHE_S3_BUCKET_NAME"),
    key("BucketLocation", Text, "`us-east-1`", "Region of the bucket")
        .flag("cache-s3-bucket-location", "CACHE_S3_BUCKET_LOCATION"),
    key("ServerAddress", Text, "Amazon S3", "Host and port of another S3 server")
        .flag("cache-s3-server-address", "CACHE_S3_SERVER_ADDRESS"),
    key("Insecure", Bool, "`false`", "Use HTTP instead of HTTPS").flag("cache-s3-insecure", "CACHE_S3_INSECURE"),
    key(
        "AuthenticationType",
        Text,
        "`access-key` if keys are set, else `iam`",
        "`access-key`, or `iam` for the credentials of the instance",
    )
    .flag("cache-s3-authentication-type", "CACHE_S3_AUTHENTICATION_TYPE"),
    key("AccessKey", Text, "none", "Access key").flag("cache-s3-access-key", "CACHE_S3_ACCESS_KEY"),
    as_above("SecretKey", Text).flag("cache-s3-secret-key", "CACHE_S3_SECRET_KEY"),
    as_above("SessionToken", Text).flag("cache-s3-session-token", "CACHE_S3_SESSION_TOKEN"),
    key("RoleARN", Text, "none", "Role that the agent assumes for the cache")
        .flag("cache-s3-role-arn", "CACHE_S3_ROLE_ARN"),
    as_above("UploadRoleARN", Text).flag("cache-s3-upload-role-arn", "CACHE_S3_UPLOAD_ROLE_ARN"),
    key("ServerSideEncryption", Text, "none", "`S3`, `AES256`, `KMS` or `DSSE-KMS`")
        .flag("cache-s3-server-side-encryption", "CACHE_S3_SERVER_SIDE_ENCRYPTION"),
    key("ServerSideEncryptionKeyID", Text, "none", "Key for `KMS` and `DSSE-KMS`")
        .flag("cache-s3-server-side-encryption-key-id", "CACHE_S3_SERVER_SIDE_ENCRYPTION_KEY_ID"),
    key("DualStack", Bool, "`true`", "Use the dual-stack endpoint of Amazon S3")
        .flag("cache-s3-dual-stack", "CACHE_S3_DUAL_STACK"),
    key("PathStyle", Bool, "by the server's host name", "Put the bucket in the path instead of the host name")
        .flag("cache-s3-path-style", "CACHE_S3_PATH_STYLE"),
    key("Accelerate", Bool, "`false`", "Use S3 Transfer Acceleration")
        .flag("cache-s3-accelerate", "CACHE_S3_ACCELERATE"),
    no_effect("AssumeRoleMaxConcurrency", "the agent assumes one role at a time"),
    no_effect(
        "DisableAssumeRoleCredentialsCaching",
        "the agent always caches credentials until shortly before they expire",
    ),
];

/// Keys below `[runners.cache.gcs]`.
pub(super) const CACHE_GCS: &[Key] = &[
    no_effect("AccessID", OTHER_OBJECT_STORE).flag("cache-gcs-access-id", "CACHE_GCS_ACCESS_ID"),
    no_effect("PrivateKey", OTHER_OBJECT_STORE).flag("cache-gcs-private-key", "CACHE_GCS_PRIVATE_KEY"),
    no_effect("BucketName", OTHER_OBJECT_STORE).flag("cache-gcs-bucket-name", "CACHE_GCS_BUCKET_NAME"),
];

/// Keys below `[runners.cache.azure]`.
pub(super) const CACHE_AZURE: &[Key] = &[
    no_effect("AccountName", OTHER_OBJECT_STORE).flag("cache-azure-account-name", "CACHE_AZURE_ACCOUNT_NAME"),
    no_effect("AccountKey", OTHER_OBJECT_STORE).flag("cache-azure-account-key", "CACHE_AZURE_ACCOUNT_KEY"),
    no_effect("ContainerName", OTHER_OBJECT_STORE).flag("cache-azure-container-name", "CACHE_AZURE_CONTAINER_NAME"),
    no_effect("StorageDomain", OTHER_OBJECT_STORE).flag("cache-azure-storage-domain", "CACHE_AZURE_STORAGE_DOMAIN"),
];
