//! Flags of `register` that only write keys to the configuration; gitlab-runner has one for each key.

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use toml_edit::{Array, Item, Table, Value};

use crate::cli::boolean;
use crate::decode;

/// The type of a value.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Number,
    Bool,
    /// The flag is repeatable.
    List,
    /// `NAME:true`, or a JSON object.
    Flags,
}

use Kind::{Bool, Flags, List, Number, Text};

/// A flag: its name, its environment variable (or empty), the table below `[[runners]]` (or empty), key and type.
type Key = (&'static str, &'static str, &'static str, &'static str, Kind);

const RUNNER: &[Key] = &[
    ("cache-dir", "RUNNER_CACHE_DIR", "", "cache_dir", Text),
    ("strict-check-interval", "RUNNER_STRICT_CHECK_INTERVAL", "", "strict_check_interval", Bool),
    ("unhealthy-requests-limit", "RUNNER_UNHEALTHY_REQUESTS_LIMIT", "", "unhealthy_requests_limit", Number),
    ("unhealthy-interval", "", "", "unhealthy_interval", Text),
    (
        "job-status-final-update-retry-limit",
        "RUNNER_job_status_final_update_retry_limit",
        "",
        "job_status_final_update_retry_limit",
        Number,
    ),
    ("prepare-timeout", "RUNNER_PREPARE_TIMEOUT", "", "prepare_timeout", Text),
    ("get-sources-timeout", "RUNNER_GET_SOURCES_TIMEOUT", "", "get_sources_timeout", Text),
    ("debug-trace-disabled", "RUNNER_DEBUG_TRACE_DISABLED", "", "debug_trace_disabled", Bool),
    ("safe-directory-checkout", "", "", "safe_directory_checkout", Bool),
    ("clean-git-config", "", "", "clean_git_config", Bool),
    ("proxy-exec", "", "", "proxy_exec", Bool),
    ("custom-build-dir-enabled", "CUSTOM_BUILD_DIR_ENABLED", "custom_build_dir", "enabled", Bool),
    ("feature-flags", "FEATURE_FLAGS", "", "feature_flags", Flags),
];

const CACHE: &[Key] = &[
    ("cache-type", "CACHE_TYPE", "cache", "Type", Text),
    ("cache-path", "CACHE_PATH", "cache", "Path", Text),
    ("cache-shared", "CACHE_SHARED", "cache", "Shared", Bool),
    (
        "cache-max-uploaded-archive-size",
        "CACHE_MAXIMUM_UPLOADED_ARCHIVE_SIZE",
        "cache",
        "MaxUploadedArchiveSize",
        Number,
    ),
    ("cache-s3-server-address", "CACHE_S3_SERVER_ADDRESS", "cache.s3", "ServerAddress", Text),
    ("cache-s3-access-key", "CACHE_S3_ACCESS_KEY", "cache.s3", "AccessKey", Text),
    ("cache-s3-secret-key", "CACHE_S3_SECRET_KEY", "cache.s3", "SecretKey", Text),
    ("cache-s3-session-token", "CACHE_S3_SESSION_TOKEN", "cache.s3", "SessionToken", Text),
    ("cache-s3-bucket-name", "CACHE_S3_BUCKET_NAME", "cache.s3", "BucketName", Text),
    ("cache-s3-bucket-location", "CACHE_S3_BUCKET_LOCATION", "cache.s3", "BucketLocation", Text),
    ("cache-s3-insecure", "CACHE_S3_INSECURE", "cache.s3", "Insecure", Bool),
    ("cache-s3-authentication-type", "CACHE_S3_AUTHENTICATION_TYPE", "cache.s3", "AuthenticationType", Text),
    ("cache-s3-server-side-encryption", "CACHE_S3_SERVER_SIDE_ENCRYPTION", "cache.s3", "ServerSideEncryption", Text),
    (
        "cache-s3-server-side-encryption-key-id",
        "CACHE_S3_SERVER_SIDE_ENCRYPTION_KEY_ID",
        "cache.s3",
        "ServerSideEncryptionKeyID",
        Text,
    ),
    ("cache-s3-dual-stack", "CACHE_S3_DUAL_STACK", "cache.s3", "DualStack", Bool),
    ("cache-s3-path-style", "CACHE_S3_PATH_STYLE", "cache.s3", "PathStyle", Bool),
    ("cache-s3-accelerate", "CACHE_S3_ACCELERATE", "cache.s3", "Accelerate", Bool),
    ("cache-s3-role-arn", "CACHE_S3_ROLE_ARN", "cache.s3", "RoleARN", Text),
    ("cache-s3-upload-role-arn", "CACHE_S3_UPLOAD_ROLE_ARN", "cache.s3", "UploadRoleARN", Text),
    ("cache-gcs-access-id", "CACHE_GCS_ACCESS_ID", "cache.gcs", "AccessID", Text),
    ("cache-gcs-private-key", "CACHE_GCS_PRIVATE_KEY", "cache.gcs", "PrivateKey", Text),
    ("cache-gcs-bucket-name", "CACHE_GCS_BUCKET_NAME", "cache.gcs", "BucketName", Text),
    ("cache-azure-account-name", "CACHE_AZURE_ACCOUNT_NAME", "cache.azure", "AccountName", Text),
    ("cache-azure-account-key", "CACHE_AZURE_ACCOUNT_KEY", "cache.azure", "AccountKey", Text),
    ("cache-azure-container-name", "CACHE_AZURE_CONTAINER_NAME", "cache.azure", "ContainerName", Text),
    ("cache-azure-storage-domain", "CACHE_AZURE_STORAGE_DOMAIN", "cache.azure", "StorageDomain", Text),
];

/// Their environment variables (`DOCKER_HOST`, …) also configure the Docker client, so only the flags are read.
const DOCKER: &[Key] = &[
    ("docker-host", "", "docker", "host", Text),
    ("docker-cert-path", "", "docker", "tls_cert_path", Text),
    ("docker-tlsverify", "", "docker", "tls_verify", Bool),
    ("docker-image", "", "docker", "image", Text),
    ("docker-pull-policy", "", "docker", "pull_policy", List),
    ("docker-allowed-pull-policies", "", "docker", "allowed_pull_policies", List),
    ("docker-allowed-images", "", "docker", "allowed_images", List),
    ("docker-allowed-services", "", "docker", "allowed_services", List),
    ("docker-allowed-privileged-images", "", "docker", "allowed_privileged_images", List),
    ("docker-allowed-privileged-services", "", "docker", "allowed_privileged_services", List),
    ("docker-helper-image", "", "docker", "helper_image", Text),
    ("docker-helper-image-flavor", "", "docker", "helper_image_flavor", Text),
    ("docker-user", "", "docker", "user", Text),
    ("docker-allowed-users", "", "docker", "allowed_users", List),
    ("docker-group-add", "", "docker", "group_add", List),
    ("docker-privileged", "", "docker", "privileged", Bool),
    ("docker-services-privileged", "", "docker", "services_privileged", Bool),
    ("docker-cap-add", "", "docker", "cap_add", List),
    ("docker-cap-drop", "", "docker", "cap_drop", List),
    ("docker-security-opt", "", "docker", "security_opt", List),
    ("docker-services-security-opt", "", "docker", "services_security_opt", List),
    ("docker-userns", "", "docker", "userns_mode", Text),
    ("docker-disable-entrypoint-overwrite", "", "docker", "disable_entrypoint_overwrite", Bool),
    ("docker-memory", "", "docker", "memory", Text),
    ("docker-memory-swap", "", "docker", "memory_swap", Text),
    ("docker-memory-reservation", "", "docker", "memory_reservation", Text),
    ("docker-cpus", "", "docker", "cpus", Text),
    ("docker-cpu-shares", "", "docker", "cpu_shares", Number),
    ("docker-cpuset-cpus", "", "docker", "cpuset_cpus", Text),
    ("docker-cpuset-mems", "", "docker", "cpuset_mems", Text),
    ("docker-cgroup-parent", "", "docker", "cgroup_parent", Text),
    ("docker-oom-kill-disable", "", "docker", "oom_kill_disable", Bool),
    ("docker-oom-score-adjust", "", "docker", "oom_score_adjust", Number),
    ("docker-shm-size", "", "docker", "shm_size", Number),
    ("docker-gpus", "", "docker", "gpus", Text),
    ("docker-devices", "", "docker", "devices", List),
    ("docker-device-cgroup-rules", "", "docker", "device_cgroup_rules", List),
    ("docker-runtime", "", "docker", "runtime", Text),
    ("docker-isolation", "", "docker", "isolation", Text),
    ("docker-service-memory", "", "docker", "service_memory", Text),
    ("docker-service-memory-swap", "", "docker", "service_memory_swap", Text),
    ("docker-service-memory-reservation", "", "docker", "service_memory_reservation", Text),
    ("docker-service-cpus", "", "docker", "service_cpus", Text),
    ("docker-service-cpu-shares", "", "docker", "service_cpu_shares", Number),
    ("docker-service-cpuset-cpus", "", "docker", "service_cpuset_cpus", Text),
    ("docker-service-cgroup-parent", "", "docker", "service_cgroup_parent", Text),
    ("docker-service-gpus", "", "docker", "service_gpus", Text),
    ("docker-services-devices", "", "docker", "services_devices", List),
    ("docker-services-limit", "", "docker", "services_limit", Number),
    ("docker-wait-for-services-timeout", "", "docker", "wait_for_services_timeout", Number),
    ("docker-volumes", "", "docker", "volumes", List),
    ("docker-volumes-from", "", "docker", "volumes_from", List),
    ("docker-volume-driver", "", "docker", "volume_driver", Text),
    ("docker-volume-keep", "", "docker", "volume_keep", Bool),
    ("docker-cache-dir", "", "docker", "cache_dir", Text),
    ("docker-disable-cache", "", "docker", "disable_cache", Bool),
    ("docker-network-mode", "", "docker", "network_mode", Text),
    ("docker-network-mtu", "", "docker", "network_mtu", Number),
    ("docker-enable-ipv6", "", "docker", "enable_ipv6", Bool),
    ("docker-dns", "", "docker", "dns", List),
    ("docker-dns-search", "", "docker", "dns_search", List),
    ("docker-extra-hosts", "", "docker", "extra_hosts", List),
    ("docker-links", "", "docker", "links", List),
    ("docker-hostname", "", "docker", "hostname", Text),
    ("docker-mac-address", "", "docker", "mac_address", Text),
    ("docker-pid-mode", "", "docker", "pid_mode", Text),
    ("docker-ipcmode", "", "docker", "ipcmode", Text),
];

fn all() -> impl Iterator<Item = &'static Key> {
    RUNNER.iter().chain(CACHE).chain(DOCKER)
}

/// The values of these flags.
#[derive(Default)]
pub struct OtherKeys(Vec<(&'static str, &'static str, Value)>);

impl OtherKeys {
    /// Writes the keys to the table of a runner.
    pub fn write(&self, runner: &mut Table) {
        for (section, key, value) in &self.0 {
            let mut table = &mut *runner;
            for part in section.split('.').filter(|part| !part.is_empty()) {
                let inner = table.entry(part).or_insert_with(|| Item::Table(Table::new()));
                let Item::Table(inner) = inner else { return };
                table = inner;
            }
            table[key] = Item::Value(value.clone());
        }
    }
}

impl Args for OtherKeys {
    fn augment_args(command: Command) -> Command {
        all().fold(command, |command, key| command.arg(argument(key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OtherKeys {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |key: &Key| Some((key.2, key.3, given(matches, key)?));
        Ok(Self(all().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn argument((flag, variable, _, _, kind): &Key) -> Arg {
    let argument = Arg::new(*flag).long(*flag).hide(true);
    let argument = if variable.is_empty() { argument } else { argument.env(*variable) };
    // gitlab-runner spells these two with underscores.
    let argument = match *flag {
        "cache-max-uploaded-archive-size" => argument.alias("cache-max_uploaded_archive_size"),
        "cache-s3-authentication-type" => argument.alias("cache-s3-authentication_type"),
        _ => argument,
    };
    match kind {
        Bool => argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(ValueParser::new(boolean)),
        Number => argument.value_parser(value_parser!(i64)).allow_negative_numbers(true),
        Flags => argument.value_parser(ValueParser::new(flags)),
        List => argument.action(ArgAction::Append),
        Text => argument,
    }
}

fn given(matches: &ArgMatches, (flag, _, _, _, kind): &Key) -> Option<Value> {
    match kind {
        Text => matches.get_one::<String>(flag).filter(|text| !text.is_empty()).map(Value::from),
        Number => matches.get_one::<i64>(flag).map(|number| Value::from(*number)),
        Bool => matches.get_one::<bool>(flag).map(|on| Value::from(*on)),
        List => matches.get_many::<String>(flag).map(|items| Value::from(items.collect::<Array>())),
        Flags => matches.get_one::<toml_edit::InlineTable>(flag).map(|flags| Value::from(flags.clone())),
    }
}

/// Parses feature flags: `{"FF_A": true}` or `FF_A:true,FF_B:false`.
fn flags(text: &str) -> Result<toml_edit::InlineTable, String> {
    let wrong = |_| "write FF_NAME:true, or a JSON object".to_owned();
    if text.trim_start().starts_with('{') {
        let flags: std::collections::BTreeMap<String, bool> =
            decode::json(text.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        return Ok(flags.into_iter().collect());
    }
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (name, on) = pair.split_once([':', '=']).ok_or_else(|| wrong(String::new()))?;
        Ok((name.trim().to_owned(), boolean(on).map_err(wrong)?))
    };
    pairs.map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(arguments: &[&str]) -> Result<String, clap::Error> {
        let command = OtherKeys::augment_args(Command::new("register").no_binary_name(true));
        let matches = command.try_get_matches_from(arguments)?;
        let mut table = Table::new();
        OtherKeys::from_arg_matches(&matches)?.write(&mut table);
        Ok(toml_edit::DocumentMut::from(table).to_string())
    }

    #[test]
    fn writes_each_type_of_flag_to_its_table() {
        let text = written(&[
            "--docker-volumes=/cache",
            "--docker-volumes",
            "/certs",
            "--docker-privileged",
            "--docker-services-limit=-1",
            "--cache-type=s3",
            "--cache-s3-bucket-name",
            "b",
            "--cache-shared=false",
            "--cache-s3-authentication_type=iam",
            "--unhealthy-requests-limit=5",
            "--feature-flags",
            "FF_A:true,FF_B=0",
        ]);
        let table: toml::Table = text.expect("parsed").parse().expect("TOML");
        assert_eq!(table["docker"]["volumes"].as_array().map(Vec::len), Some(2));
        assert_eq!(table["docker"]["privileged"].as_bool(), Some(true));
        assert_eq!(table["docker"]["services_limit"].as_integer(), Some(-1));
        assert_eq!(table["cache"]["Type"].as_str(), Some("s3"));
        assert_eq!(table["cache"]["s3"]["BucketName"].as_str(), Some("b"));
        assert_eq!(table["cache"]["Shared"].as_bool(), Some(false));
        assert_eq!(table["unhealthy_requests_limit"].as_integer(), Some(5));
        assert_eq!(table["feature_flags"]["FF_A"].as_bool(), Some(true));
        assert_eq!(table["feature_flags"]["FF_B"].as_bool(), Some(false));
        assert_eq!(written(&[]).expect("parsed"), "");
    }

    #[test]
    fn refuses_a_value_of_another_type() {
        for flag in
            ["--docker-shm-size=big", "--docker-privileged=maybe", "--feature-flags=FF_A", "--docker-colour=red"]
        {
            assert!(written(&[flag]).is_err(), "{flag}");
        }
    }
}
