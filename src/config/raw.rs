//! `config.toml` as written, without defaults: types for serde.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::duration;
use super::leave::LeaveStrategy;
use super::lifetime::{Autoscaler, Machine};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    pub concurrent: Option<i64>,
    pub check_interval: Option<i64>,
    pub log_level: Option<String>,
    pub log_format: Option<String>,
    pub user: Option<String>,
    pub listen_address: Option<String>,
    pub shutdown_timeout: Option<u64>,
    #[serde(deserialize_with = "duration::read")]
    pub connection_max_age: Option<Duration>,
    pub labels: BTreeMap<String, String>,
    pub mayfly: Mayfly,
    pub runners: Vec<Runner>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Mayfly {
    pub state_dir: Option<PathBuf>,
    pub block_instance_metadata: bool,
    pub max_builds: Option<u32>,
    #[serde(deserialize_with = "duration::read")]
    pub idle_timeout: Option<Duration>,
    #[serde(deserialize_with = "duration::read")]
    pub max_age: Option<Duration>,
    pub leave: Option<LeaveStrategy>,
    pub leave_command: Option<String>,
    pub poweroff_command: Option<String>,
    #[serde(deserialize_with = "duration::read")]
    pub leave_fallback_after: Option<Duration>,
    pub min_free_space: Option<u64>,
    pub min_free_inodes: Option<u64>,
    pub max_system_failures: Option<u32>,
    pub unfit: super::fitness::WhenUnfit,
    #[serde(deserialize_with = "duration::read")]
    pub unfit_timeout: Option<Duration>,
    pub ready_command: Option<String>,
    #[serde(deserialize_with = "duration::read")]
    pub ready_timeout: Option<Duration>,
    #[serde(deserialize_with = "duration::read")]
    pub give_up_after: Option<Duration>,
    #[serde(deserialize_with = "duration::read")]
    pub orphan_timeout: Option<Duration>,
    pub instance_id: Option<String>,
    pub manager: Option<super::manager::Table>,
    pub aws: Option<super::aws::AwsConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Runner {
    pub name: String,
    pub url: String,
    pub token: String,
    pub id: Option<i64>,
    pub token_obtained_at: Option<toml::value::Datetime>,
    pub token_expires_at: Option<toml::value::Datetime>,
    #[serde(rename = "tls-ca-file")]
    pub tls_ca_file: Option<PathBuf>,
    #[serde(rename = "tls-cert-file")]
    pub tls_cert_file: Option<PathBuf>,
    #[serde(rename = "tls-key-file")]
    pub tls_key_file: Option<PathBuf>,
    pub executor: String,
    pub limit: u32,
    pub request_concurrency: Option<u32>,
    pub strict_check_interval: bool,
    pub output_limit: Option<u64>,
    pub unhealthy_requests_limit: Option<u32>,
    #[serde(deserialize_with = "duration::read")]
    pub unhealthy_interval: Option<Duration>,
    pub job_status_final_update_retry_limit: Option<u32>,
    pub builds_dir: Option<PathBuf>,
    pub cache_dir: Option<PathBuf>,
    pub cache: super::cache::CacheConfig,
    pub clone_url: Option<String>,
    pub environment: Vec<String>,
    pub shell: Option<String>,
    pub pre_get_sources_script: Option<String>,
    pub post_get_sources_script: Option<String>,
    pub pre_build_script: Option<String>,
    pub post_build_script: Option<String>,
    #[serde(deserialize_with = "duration::read")]
    pub prepare_timeout: Option<Duration>,
    #[serde(deserialize_with = "duration::read")]
    pub get_sources_timeout: Option<Duration>,
    pub debug_trace_disabled: bool,
    pub labels: BTreeMap<String, String>,
    pub custom_build_dir: CustomBuildDir,
    pub artifact: Artifact,
    pub feature_flags: BTreeMap<String, bool>,
    pub machine: Option<Machine>,
    pub autoscaler: Option<Autoscaler>,
    pub mayfly: RunnerMayfly,
    pub docker: super::docker::DockerConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CustomBuildDir {
    pub enabled: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Artifact {
    /// The timeout of one upload, from its start to the response.
    #[serde(deserialize_with = "duration::read")]
    pub upload_timeout: Option<Duration>,
    /// The timeout from the end of an upload to the response.
    #[serde(deserialize_with = "duration::read")]
    pub response_header_timeout: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RunnerMayfly {
    #[serde(deserialize_with = "duration::read")]
    pub kill_grace: Option<Duration>,
    pub cgroups: Option<bool>,
    pub builds_dir: Option<PathBuf>,
    pub cache_dir: Option<PathBuf>,
    pub ecr_login: Option<bool>,
    /// The uid of the sandbox for file tasks.
    pub confined_uid: Option<u32>,
    /// The memory limit of the sandbox if `[runners.docker]` has none.
    pub confined_memory: Option<super::docker::values::Size>,
    /// The process limit of the sandbox.
    pub confined_processes: Option<u64>,
    pub allowed_credential_helpers: Vec<String>,
    /// The Auto Scaling group of a docker+machine pool, and its region.
    pub auto_scaling_group: Option<String>,
    pub region: Option<String>,
    /// The role whose signature admits agents to the pool.
    pub agent_role: Option<String>,
    /// The size limit of local caches, in bytes.
    pub cache_max_size: Option<u64>,
    /// The maximum size of the build directories that finished jobs left, in bytes.
    pub builds_max_size: Option<u64>,
    /// How long an unused build directory is kept.
    #[serde(deserialize_with = "duration::read")]
    pub builds_max_age: Option<Duration>,
    /// How long an unused image that a job pulled is kept.
    #[serde(deserialize_with = "duration::read")]
    pub images_max_age: Option<Duration>,
    /// The size limit of the volumes with caches of containers, in bytes.
    pub cache_volumes_max_size: Option<u64>,
    /// How long an unused volume with caches is kept.
    #[serde(deserialize_with = "duration::read")]
    pub cache_volumes_max_age: Option<Duration>,
    /// How long an unused local cache is kept.
    #[serde(deserialize_with = "duration::read")]
    pub cache_max_age: Option<Duration>,
}
