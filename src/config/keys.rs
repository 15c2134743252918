//! Which keys of `config.toml` are honoured, and what is said of those that are not: none is dropped silently.

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It is honoured.
    Honoured,
    /// A table: its keys have entries of their own.
    Table,
    /// It is known and has no effect here; the text says why.
    NoEffect(&'static str),
}

use Support::{Honoured, NoEffect, Table};

const GATEWAY: &str = "this build has no metrics listener";
const SESSION: &str = "web terminals are not offered";
const MANAGER: &str = "the cloud's Auto Scaling group makes and removes instances, not this agent";
/// Said of the object stores that are not S3.
pub const KIND: &str = "this build keeps caches on the instance and in S3";
const DOCKER: &str = "this build runs jobs in the instance's shell";
const OTHER_EXECUTOR: &str = "this executor does not exist in mayfly";
const USAGE: &str = "mayfly reports to no one but GitLab";

/// Keys at the top level.
const GLOBAL: &[(&str, Support)] = &[
    ("concurrent", Honoured),
    ("check_interval", Honoured),
    ("log_level", Honoured),
    ("log_format", Honoured),
    ("user", Honoured),
    ("shutdown_timeout", Honoured),
    ("connection_max_age", Honoured),
    ("labels", Honoured),
    ("runners", Table),
    ("mayfly", Table),
    ("listen_address", NoEffect(GATEWAY)),
    ("sentry_dsn", NoEffect(USAGE)),
    ("session_server", NoEffect(SESSION)),
    ("machine", NoEffect(MANAGER)),
    ("experimental", NoEffect(USAGE)),
];

/// Keys below `[mayfly]`.
const MAYFLY: &[(&str, Support)] = &[("state_dir", Honoured), ("max_builds", Honoured), ("idle_timeout", Honoured)];

/// Keys below `[[runners]]`.
const RUNNER: &[(&str, Support)] = &[
    ("name", Honoured),
    ("url", Honoured),
    ("token", Honoured),
    ("id", Honoured),
    ("token_obtained_at", Honoured),
    ("token_expires_at", Honoured),
    ("tls-ca-file", Honoured),
    ("tls-cert-file", Honoured),
    ("tls-key-file", Honoured),
    ("executor", Honoured),
    ("limit", Honoured),
    ("request_concurrency", Honoured),
    ("strict_check_interval", Honoured),
    ("output_limit", Honoured),
    ("unhealthy_requests_limit", Honoured),
    ("unhealthy_interval", Honoured),
    ("job_status_final_update_retry_limit", Honoured),
    ("builds_dir", Honoured),
    ("cache_dir", Honoured),
    ("clone_url", Honoured),
    ("environment", Honoured),
    ("shell", Honoured),
    ("pre_get_sources_script", Honoured),
    ("post_get_sources_script", Honoured),
    ("pre_build_script", Honoured),
    ("post_build_script", Honoured),
    ("prepare_timeout", NoEffect("nothing is prepared that could take long")),
    ("get_sources_timeout", Honoured),
    ("debug_trace_disabled", Honoured),
    ("labels", Honoured),
    ("custom_build_dir", Table),
    ("feature_flags", Table),
    ("mayfly", Table),
    ("safe_directory_checkout", NoEffect("sources are fetched as the user that owns them")),
    ("clean_git_config", NoEffect("git's configuration is always written anew")),
    ("pre_clone_script", NoEffect("it is called pre_get_sources_script now")),
    ("post_clone_script", NoEffect("it is called post_get_sources_script now")),
    ("proxy_exec", NoEffect("the shim does what it did")),
    ("use_slot_cgroups", NoEffect("each script has a control group of its own")),
    ("slot_cgroup_template", NoEffect("each script has a control group of its own")),
    ("artifact", NoEffect("transfers have an hour, and ten minutes for an answer")),
    ("cache", Table),
    ("docker", NoEffect(DOCKER)),
    ("machine", NoEffect(MANAGER)),
    ("autoscaler", NoEffect(MANAGER)),
    ("instance", NoEffect(MANAGER)),
    ("ssh", NoEffect(OTHER_EXECUTOR)),
    ("kubernetes", NoEffect(OTHER_EXECUTOR)),
    ("custom", NoEffect(OTHER_EXECUTOR)),
    ("parallels", NoEffect(OTHER_EXECUTOR)),
    ("virtualbox", NoEffect(OTHER_EXECUTOR)),
    ("monitoring", NoEffect(GATEWAY)),
    ("referees", NoEffect(GATEWAY)),
    ("experimental", NoEffect(USAGE)),
];

/// Keys below `[runners.custom_build_dir]` and `[runners.mayfly]`.
const CUSTOM_BUILD_DIR: &[(&str, Support)] = &[("enabled", Honoured)];
const RUNNER_MAYFLY: &[(&str, Support)] =
    &[("kill_grace", Honoured), ("cgroups", Honoured), ("cache_max_size", Honoured), ("cache_max_age", Honoured)];

/// Keys below `[runners.cache]`.
const CACHE: &[(&str, Support)] = &[
    ("Type", Honoured),
    ("Path", Honoured),
    ("Shared", Honoured),
    ("MaxUploadedArchiveSize", Honoured),
    ("s3", Table),
    ("gcs", NoEffect(KIND)),
    ("azure", NoEffect(KIND)),
];

/// Keys below `[runners.cache.s3]`.
const CACHE_S3: &[(&str, Support)] = &[
    ("ServerAddress", Honoured),
    ("AccessKey", Honoured),
    ("SecretKey", Honoured),
    ("SessionToken", Honoured),
    ("BucketName", Honoured),
    ("BucketLocation", Honoured),
    ("Insecure", Honoured),
    ("AuthenticationType", Honoured),
    ("ServerSideEncryption", Honoured),
    ("ServerSideEncryptionKeyID", Honoured),
    ("DualStack", Honoured),
    ("PathStyle", Honoured),
    ("Accelerate", Honoured),
    ("RoleARN", Honoured),
    ("UploadRoleARN", Honoured),
    ("AssumeRoleMaxConcurrency", NoEffect("roles are assumed one at a time")),
    ("DisableAssumeRoleCredentialsCaching", NoEffect("lent credentials are used until shortly before they expire")),
];

/// Feature flags that change what mayfly does; the others are only passed on to jobs.
const FEATURE_FLAGS: &[(&str, Support)] = &[
    ("FF_DISABLE_AUTOMATIC_TOKEN_ROTATION", Honoured),
    ("FF_ENABLE_BASH_EXIT_CODE_CHECK", Honoured),
    ("FF_HASH_CACHE_KEYS", Honoured),
    ("FF_SCRIPT_SECTIONS", Honoured),
    ("FF_TIMESTAMPS", Honoured),
    ("FF_USE_DIRECT_DOWNLOAD", Honoured),
    ("FF_USE_GITALY_CORRELATION_ID", Honoured),
];

/// Some keys of a table that is told as a whole: enough to say where a misplaced one belongs.
const DOCKER_KEYS: &[(&str, Support)] = &[
    ("image", NoEffect(DOCKER)),
    ("privileged", NoEffect(DOCKER)),
    ("volumes", NoEffect(DOCKER)),
    ("pull_policy", NoEffect(DOCKER)),
    ("allowed_images", NoEffect(DOCKER)),
    ("allowed_services", NoEffect(DOCKER)),
    ("helper_image", NoEffect(DOCKER)),
    ("network_mode", NoEffect(DOCKER)),
    ("extra_hosts", NoEffect(DOCKER)),
    ("shm_size", NoEffect(DOCKER)),
    ("disable_cache", NoEffect(DOCKER)),
    ("cap_add", NoEffect(DOCKER)),
    ("cap_drop", NoEffect(DOCKER)),
    ("memory", NoEffect(DOCKER)),
    ("cpus", NoEffect(DOCKER)),
];

/// Every table with its keys, by path.
pub const TABLES: &[(&str, &[(&str, Support)])] = &[
    ("", GLOBAL),
    ("mayfly", MAYFLY),
    ("runners", RUNNER),
    ("runners.mayfly", RUNNER_MAYFLY),
    ("runners.custom_build_dir", CUSTOM_BUILD_DIR),
    ("runners.feature_flags", FEATURE_FLAGS),
    ("runners.docker", DOCKER_KEYS),
    ("runners.cache", CACHE),
    ("runners.cache.s3", CACHE_S3),
];

/// The keys of the table at `path` (`runners`, `runners.mayfly`, …; empty for the top level).
pub fn of(path: &str) -> &'static [(&'static str, Support)] {
    TABLES.iter().find(|(table, _)| *table == path).map_or(&[], |(_, known)| known)
}

/// Where the keys of a table are written, in words.
pub fn place_of(path: &str) -> String {
    match path {
        "" => "at the top, before every table".to_owned(),
        "runners" => "below [[runners]]".to_owned(),
        path => format!("below [{path}]"),
    }
}
