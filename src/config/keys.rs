//! All keys of `config.toml`, with the reason for those that have no effect. No key is ignored silently.

/// The effect of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It has the effect that the documentation describes.
    Honoured,
    /// A table with its own entries.
    Table,
    /// It has no effect, for this reason.
    NoEffect(&'static str),
    /// `mayfly manager` honours it; for an agent it has no effect, for this reason.
    ManagerOnly(&'static str),
}

use Support::{Honoured, ManagerOnly, NoEffect, Table};

const MONITORING: &str = "metrics are the same for all runners; see `listen_address`";
const BUCKETS: &str = "an agent measures only its own instance";
const SESSION: &str = "mayfly has no web terminals";
const MANAGER: &str = "the Auto Scaling group creates and removes instances, not the agent";
/// The reason for object stores other than S3.
pub const KIND: &str = "mayfly stores caches only on the instance and in S3";
/// The reason for `[runners.docker]` if jobs do not run in containers.
pub const WITHOUT_CONTAINERS: &str = "this executor runs jobs in the instance's shell";
const HELPER: &str = "the agent needs no helper image";
const OTHER_EXECUTOR: &str = "this executor does not exist in mayfly";
const USAGE: &str = "mayfly sends no usage or error reports";

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
    ("listen_address", Honoured),
    ("sentry_dsn", NoEffect(USAGE)),
    ("session_server", NoEffect(SESSION)),
    ("machine", NoEffect(MANAGER)),
    ("experimental", NoEffect(USAGE)),
];

/// Keys below `[mayfly]`.
const MAYFLY: &[(&str, Support)] = &[
    ("state_dir", Honoured),
    ("block_instance_metadata", Honoured),
    ("max_builds", Honoured),
    ("idle_timeout", Honoured),
    ("max_age", Honoured),
    ("leave", Honoured),
    ("leave_command", Honoured),
    ("poweroff_command", Honoured),
    ("leave_fallback_after", Honoured),
    ("min_free_space", Honoured),
    ("min_free_inodes", Honoured),
    ("max_system_failures", Honoured),
    ("unfit", Honoured),
    ("unfit_timeout", Honoured),
    ("ready_command", Honoured),
    ("ready_timeout", Honoured),
    ("give_up_after", Honoured),
    ("orphan_timeout", Honoured),
    ("instance_id", Honoured),
    ("manager", Table),
    ("aws", Table),
];

/// Keys below `[mayfly.manager]`.
const MAYFLY_MANAGER: &[(&str, Support)] = &[
    ("listen", Honoured),
    ("certificate_file", Honoured),
    ("key_file", Honoured),
    ("plain_http", Honoured),
    ("agent_token", Honoured),
    ("state_dir", Honoured),
    ("registration_timeout", Honoured),
];

/// Keys below `[mayfly.aws]`.
const MAYFLY_AWS: &[(&str, Support)] = &[
    ("region", Honoured),
    ("auto_scaling_group", Honoured),
    ("lifecycle_hooks", Honoured),
    ("protect_while_busy", Honoured),
    ("raise_on_job", Table),
];

/// Keys below `[mayfly.aws.raise_on_job]`.
const RAISE: &[(&str, Support)] =
    &[("idle_count", Honoured), ("scale_factor", Honoured), ("scale_factor_limit", Honoured)];

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
    ("prepare_timeout", Honoured),
    ("get_sources_timeout", Honoured),
    ("debug_trace_disabled", Honoured),
    ("labels", Honoured),
    ("custom_build_dir", Table),
    ("feature_flags", Table),
    ("mayfly", Table),
    ("safe_directory_checkout", NoEffect("the user that owns the sources fetches them")),
    ("clean_git_config", NoEffect("the agent always rewrites git's configuration")),
    ("pre_clone_script", NoEffect("it was renamed to pre_get_sources_script")),
    ("post_clone_script", NoEffect("it was renamed to post_get_sources_script")),
    ("proxy_exec", NoEffect("the shim replaces it")),
    ("use_slot_cgroups", NoEffect("each script has its own control group")),
    ("slot_cgroup_template", NoEffect("each script has its own control group")),
    ("artifact", Table),
    ("cache", Table),
    ("docker", Table),
    ("machine", Table),
    ("autoscaler", Table),
    ("instance", NoEffect(MANAGER)),
    ("ssh", NoEffect(OTHER_EXECUTOR)),
    ("kubernetes", NoEffect(OTHER_EXECUTOR)),
    ("custom", NoEffect(OTHER_EXECUTOR)),
    ("parallels", NoEffect(OTHER_EXECUTOR)),
    ("virtualbox", NoEffect(OTHER_EXECUTOR)),
    ("monitoring", NoEffect(MONITORING)),
    ("referees", NoEffect("mayfly does not upload machine metrics with a job")),
    ("experimental", NoEffect(USAGE)),
];

/// Keys below `[runners.custom_build_dir]` and `[runners.mayfly]`.
const CUSTOM_BUILD_DIR: &[(&str, Support)] = &[("enabled", Honoured)];
const RUNNER_MAYFLY: &[(&str, Support)] = &[
    ("kill_grace", Honoured),
    ("cgroups", Honoured),
    ("builds_dir", Honoured),
    ("cache_dir", Honoured),
    ("cache_max_size", Honoured),
    ("cache_max_age", Honoured),
    ("builds_max_size", Honoured),
    ("builds_max_age", Honoured),
    ("images_max_age", Honoured),
    ("cache_volumes_max_size", Honoured),
    ("cache_volumes_max_age", Honoured),
    ("ecr_login", Honoured),
    ("confined_uid", Honoured),
    ("confined_memory", Honoured),
    ("confined_processes", Honoured),
    ("allowed_credential_helpers", Honoured),
    ("auto_scaling_group", Honoured),
    ("region", Honoured),
    ("agent_role", Honoured),
];

const FLOOR: &str = "MinSize of the Auto Scaling group is the minimum, and every instance polls by itself";
const CEILING: &str = "MaxSize of the Auto Scaling group is the limit";
const GROWTH: &str = "the Auto Scaling group starts instances according to its desired capacity";
const TEMPLATE: &str = "the launch template of the Auto Scaling group defines the instances";
const ON_THE_SPOT: &str = "the agent runs on the instance; nothing connects to it";
const OFF_PEAK: &str = "gitlab-runner 14.0 removed it; use [[runners.machine.autoscaling]]";
const OWN_END: &str = "an instance terminates itself, within leave_fallback_after";

/// Keys below `[runners.machine]`.
const MACHINE: &[(&str, Support)] = &[
    ("MaxBuilds", Honoured),
    ("IdleTime", Honoured),
    ("autoscaling", Table),
    ("IdleCount", ManagerOnly(FLOOR)),
    ("IdleCountMin", ManagerOnly(FLOOR)),
    ("IdleScaleFactor", ManagerOnly(FLOOR)),
    ("MaxGrowthRate", ManagerOnly(GROWTH)),
    ("MachineName", NoEffect(TEMPLATE)),
    ("MachineDriver", NoEffect(TEMPLATE)),
    ("MachineOptions", NoEffect(TEMPLATE)),
    ("MachineOptionsWithName", NoEffect(TEMPLATE)),
    ("MaxRemovalAttempts", NoEffect(OWN_END)),
    ("OffPeakPeriods", NoEffect(OFF_PEAK)),
    ("OffPeakTimezone", NoEffect(OFF_PEAK)),
    ("OffPeakIdleCount", NoEffect(OFF_PEAK)),
    ("OffPeakIdleTime", NoEffect(OFF_PEAK)),
    ("shutdown_drain", NoEffect(OWN_END)),
];

/// Keys below `[[runners.machine.autoscaling]]`.
const MACHINE_AUTOSCALING: &[(&str, Support)] = &[
    ("Periods", Honoured),
    ("Timezone", Honoured),
    ("IdleTime", Honoured),
    ("IdleCount", ManagerOnly(FLOOR)),
    ("IdleCountMin", ManagerOnly(FLOOR)),
    ("IdleScaleFactor", ManagerOnly(FLOOR)),
];

/// Keys below `[runners.autoscaler]`.
const AUTOSCALER: &[(&str, Support)] = &[
    ("max_use_count", Honoured),
    ("capacity_per_instance", Honoured),
    ("policy", Table),
    ("max_instances", ManagerOnly(CEILING)),
    ("plugin", ManagerOnly(TEMPLATE)),
    ("plugin_config", ManagerOnly(TEMPLATE)),
    ("connector_config", NoEffect(ON_THE_SPOT)),
    ("log_internal_ip", NoEffect(ON_THE_SPOT)),
    ("log_external_ip", NoEffect(ON_THE_SPOT)),
    ("instance_ready_command", Honoured),
    ("instance_acquire_timeout", ManagerOnly("the agent polls only if a slot is free")),
    ("update_interval", ManagerOnly(GROWTH)),
    ("update_interval_when_expecting", ManagerOnly(GROWTH)),
    ("deletion_retry_interval", ManagerOnly(OWN_END)),
    ("delete_instances_on_shutdown", ManagerOnly(OWN_END)),
    ("shutdown_deletion_interval", ManagerOnly(OWN_END)),
    ("shutdown_deletion_retries", ManagerOnly(OWN_END)),
    ("failure_threshold", ManagerOnly("the Auto Scaling group checks the health of its instances")),
    ("reservation_throttling", NoEffect("the agent polls only if a slot is free")),
    ("scale_throttle", ManagerOnly(GROWTH)),
    ("instance_operation_time_buckets", NoEffect(BUCKETS)),
    ("instance_creation_time_buckets", NoEffect(BUCKETS)),
    ("instance_is_running_time_buckets", NoEffect(BUCKETS)),
    ("instance_deletion_time_buckets", NoEffect(BUCKETS)),
    ("instance_readiness_time_buckets", NoEffect(BUCKETS)),
    ("instance_life_duration_buckets", NoEffect(BUCKETS)),
    ("vm_isolation", NoEffect("mayfly runs no virtual machines inside an instance")),
    ("state_storage", NoEffect("the journal below state_dir is always on")),
];

/// Keys below `[[runners.autoscaler.policy]]`.
const AUTOSCALER_POLICY: &[(&str, Support)] = &[
    ("periods", Honoured),
    ("timezone", Honoured),
    ("idle_time", Honoured),
    ("idle_count", ManagerOnly(FLOOR)),
    ("scale_factor", ManagerOnly(FLOOR)),
    ("scale_factor_limit", ManagerOnly(CEILING)),
    ("preemptive_mode", ManagerOnly(FLOOR)),
];

/// Keys below `[runners.artifact]`.
const ARTIFACT: &[(&str, Support)] = &[("upload_timeout", Honoured), ("response_header_timeout", Honoured)];

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
    ("AssumeRoleMaxConcurrency", NoEffect("the agent assumes one role at a time")),
    (
        "DisableAssumeRoleCredentialsCaching",
        NoEffect("the agent always caches credentials until shortly before they expire"),
    ),
];

/// Keys below `[runners.docker]`.
const DOCKER: &[(&str, Support)] = &[
    ("host", Honoured),
    ("tls_cert_path", Honoured),
    ("tls_verify", Honoured),
    ("image", Honoured),
    ("pull_policy", Honoured),
    ("allowed_pull_policies", Honoured),
    ("allowed_images", Honoured),
    ("allowed_services", Honoured),
    ("allowed_privileged_images", Honoured),
    ("allowed_privileged_services", Honoured),
    ("disable_entrypoint_overwrite", Honoured),
    ("user", Honoured),
    ("allowed_users", Honoured),
    ("group_add", Honoured),
    ("privileged", Honoured),
    ("services_privileged", Honoured),
    ("cap_add", Honoured),
    ("cap_drop", Honoured),
    ("security_opt", Honoured),
    ("services_security_opt", Honoured),
    ("userns_mode", Honoured),
    ("sysctls", Honoured),
    ("memory", Honoured),
    ("memory_swap", Honoured),
    ("memory_reservation", Honoured),
    ("cpus", Honoured),
    ("cpu_shares", Honoured),
    ("cpuset_cpus", Honoured),
    ("cpuset_mems", Honoured),
    ("cgroup_parent", Honoured),
    ("service_memory", Honoured),
    ("service_memory_swap", Honoured),
    ("service_memory_reservation", Honoured),
    ("service_cpus", Honoured),
    ("service_cpu_shares", Honoured),
    ("service_cpuset_cpus", Honoured),
    ("service_cgroup_parent", Honoured),
    ("oom_kill_disable", Honoured),
    ("oom_score_adjust", Honoured),
    ("shm_size", Honoured),
    ("ulimit", Honoured),
    ("devices", Honoured),
    ("services_devices", Honoured),
    ("device_cgroup_rules", Honoured),
    ("gpus", Honoured),
    ("service_gpus", Honoured),
    ("runtime", Honoured),
    ("isolation", Honoured),
    ("volumes", Honoured),
    ("volumes_from", Honoured),
    ("volume_driver", Honoured),
    ("volume_driver_ops", Honoured),
    ("volume_keep", Honoured),
    ("cache_dir", Honoured),
    ("disable_cache", Honoured),
    ("tmpfs", Honoured),
    ("services_tmpfs", Honoured),
    ("network_mode", Honoured),
    ("network_mtu", Honoured),
    ("enable_ipv6", Honoured),
    ("dns", Honoured),
    ("dns_search", Honoured),
    ("extra_hosts", Honoured),
    ("links", Honoured),
    ("hostname", Honoured),
    ("mac_address", Honoured),
    ("pid_mode", Honoured),
    ("ipcmode", Honoured),
    ("services_limit", Honoured),
    ("wait_for_services_timeout", Honoured),
    ("container_labels", Honoured),
    ("log_options", Honoured),
    ("environment", Honoured),
    ("services", Table),
    ("helper_image", NoEffect(HELPER)),
    ("helper_image_flavor", NoEffect(HELPER)),
    ("service_slot_cgroup_template", NoEffect("services have their own control groups")),
];

/// Keys below `[[runners.docker.services]]`.
const DOCKER_SERVICE: &[(&str, Support)] = &[
    ("name", Honoured),
    ("alias", Honoured),
    ("command", Honoured),
    ("entrypoint", Honoured),
    ("environment", Honoured),
];

/// All tables with their keys, by path.
pub const TABLES: &[(&str, &[(&str, Support)])] = &[
    ("", GLOBAL),
    ("mayfly", MAYFLY),
    ("mayfly.manager", MAYFLY_MANAGER),
    ("mayfly.aws", MAYFLY_AWS),
    ("mayfly.aws.raise_on_job", RAISE),
    ("runners", RUNNER),
    ("runners.mayfly", RUNNER_MAYFLY),
    ("runners.custom_build_dir", CUSTOM_BUILD_DIR),
    // The keys of this table are in `feature_flags::FLAGS`.
    ("runners.feature_flags", &[]),
    ("runners.docker", DOCKER),
    ("runners.docker.services", DOCKER_SERVICE),
    ("runners.machine", MACHINE),
    ("runners.machine.autoscaling", MACHINE_AUTOSCALING),
    ("runners.autoscaler", AUTOSCALER),
    ("runners.autoscaler.policy", AUTOSCALER_POLICY),
    ("runners.artifact", ARTIFACT),
    ("runners.cache", CACHE),
    ("runners.cache.s3", CACHE_S3),
];

/// The keys with periods, and their tables.
pub const PERIODS: [&str; 2] = ["runners.machine.autoscaling.Periods", "runners.autoscaler.policy.periods"];

/// The keys of the table at `path` (`runners`, `runners.mayfly`, …; empty for the top level).
pub fn of(path: &str) -> &'static [(&'static str, Support)] {
    TABLES.iter().find(|(table, _)| *table == path).map_or(&[], |(_, known)| known)
}

/// The place of a table's keys in the file, in words.
pub fn place_of(path: &str) -> String {
    match path {
        "" => "at the top level, before all tables".to_owned(),
        "runners" | "runners.docker.services" | "runners.machine.autoscaling" | "runners.autoscaler.policy" => {
            format!("below [[{path}]]")
        }
        path => format!("below [{path}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_migration_guide_lists_every_fleet_setting() {
        let page = include_str!("../../docs/guides/migration.md");
        let fleet = |path: &str| ["runners.machine", "runners.autoscaler"].iter().any(|table| path.starts_with(table));
        let keys = TABLES.iter().filter(|(path, _)| fleet(path)).flat_map(|(_, keys)| keys.iter());
        let missing: Vec<&str> =
            keys.map(|(key, _)| *key).filter(|key| !page.contains(&format!("\n| `{key}` |"))).collect();
        assert!(missing.is_empty(), "not in docs/guides/migration.md: {missing:?}");
    }
}
