//! `[runners.docker]`: the settings of containers.
//!
//! A value that is invalid by itself is refused with its line. Values that contradict each other
//! ([`DockerConfig::contradictions`]) are reported at the start and fail the jobs that would use them.

mod contradictions;
mod list;
mod service;
pub mod values;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub use contradictions::Contradiction;
pub use list::Patterns;
pub use service::Service;
pub use values::{Cpus, Device, Gpus, Host, LogOptions, MacAddress, PullPolicy, Size, Swap, Ulimit};

/// The default timeout for services to start.
const WAIT_FOR_SERVICES: Duration = Duration::from_secs(30);

/// `[runners.docker]`, with gitlab-runner's names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DockerConfig {
    /// `unix://…` or `tcp://…`; if empty, `DOCKER_HOST` or the default socket.
    pub host: String,
    /// A directory with `ca.pem`, `cert.pem` and `key.pem`.
    pub tls_cert_path: Option<PathBuf>,
    /// Whether to verify the engine's certificate.
    pub tls_verify: bool,

    /// The image for jobs that request none.
    pub image: String,
    /// The pull policies, in the order of attempts; `always` if empty.
    #[serde(deserialize_with = "values::policies")]
    pub pull_policy: Vec<PullPolicy>,
    /// The policies that jobs may request; `pull_policy` if empty.
    #[serde(deserialize_with = "values::policies")]
    pub allowed_pull_policies: Vec<PullPolicy>,
    /// The images that jobs may use.
    pub allowed_images: Patterns,
    /// The images that services of jobs may use.
    pub allowed_services: Patterns,
    /// The images to which `privileged` applies.
    pub allowed_privileged_images: Patterns,
    /// The service images to which `services_privileged` applies.
    pub allowed_privileged_services: Patterns,
    /// Jobs cannot replace the image's entrypoint.
    pub disable_entrypoint_overwrite: bool,

    /// The user of the job's container.
    pub user: String,
    /// The users that jobs may request.
    pub allowed_users: Vec<String>,
    /// Supplementary groups of the user of the job's container.
    pub group_add: Vec<String>,
    /// Run the job's container privileged.
    pub privileged: bool,
    /// Run services privileged; if not set, `privileged` applies.
    pub services_privileged: Option<bool>,
    /// Capabilities to add to the engine's default.
    pub cap_add: Vec<String>,
    /// Capabilities to drop.
    pub cap_drop: Vec<String>,
    /// `no-new-privileges`, `seccomp=FILE`, …
    pub security_opt: Vec<String>,
    /// See `security_opt`, for services.
    pub services_security_opt: Vec<String>,
    /// The user namespace; `host` for none.
    pub userns_mode: String,
    pub sysctls: BTreeMap<String, String>,

    /// Memory limit.
    pub memory: Option<Size>,
    /// Limit of memory and swap together.
    #[serde(deserialize_with = "values::optional")]
    pub memory_swap: Option<Swap>,
    /// Soft memory limit.
    pub memory_reservation: Option<Size>,
    /// CPU limit.
    #[serde(deserialize_with = "values::optional")]
    pub cpus: Option<Cpus>,
    /// Relative CPU weight.
    pub cpu_shares: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    /// The parent cgroup of the container.
    pub cgroup_parent: String,
    /// See `memory`, for services.
    pub service_memory: Option<Size>,
    /// See `memory_swap`, for services.
    #[serde(deserialize_with = "values::optional")]
    pub service_memory_swap: Option<Swap>,
    /// See `memory_reservation`, for services.
    pub service_memory_reservation: Option<Size>,
    /// See `cpus`, for services.
    #[serde(deserialize_with = "values::optional")]
    pub service_cpus: Option<Cpus>,
    /// See `cpu_shares`, for services.
    pub service_cpu_shares: i64,
    /// See `cpuset_cpus`, for services.
    pub service_cpuset_cpus: String,
    /// See `cgroup_parent`, for services.
    pub service_cgroup_parent: String,
    /// On memory exhaustion, pause processes instead of killing them.
    pub oom_kill_disable: Option<bool>,
    /// The preference of the kernel's OOM killer.
    pub oom_score_adjust: i64,
    /// The size of `/dev/shm`, in bytes.
    pub shm_size: Size,
    /// Resource limits of processes.
    #[serde(deserialize_with = "values::ulimits")]
    pub ulimit: Vec<Ulimit>,
    /// Devices of the machine.
    #[serde(deserialize_with = "values::list")]
    pub devices: Vec<Device>,
    /// Devices for services, by the image's name.
    #[serde(deserialize_with = "list::devices")]
    pub services_devices: Vec<(Patterns, Vec<Device>)>,
    /// Rules of the kernel's device cgroup.
    pub device_cgroup_rules: Vec<String>,
    /// GPUs for jobs.
    #[serde(deserialize_with = "values::optional")]
    pub gpus: Option<Gpus>,
    /// GPUs for services.
    #[serde(deserialize_with = "values::optional")]
    pub service_gpus: Option<Gpus>,
    /// The container runtime.
    pub runtime: String,
    /// Only `default` on Linux.
    #[serde(deserialize_with = "values::isolation")]
    pub isolation: String,

    /// `[source:]destination[:mode]`.
    pub volumes: Vec<String>,
    /// Containers whose volumes the job's container mounts.
    pub volumes_from: Vec<String>,
    pub volume_driver: String,
    pub volume_driver_ops: BTreeMap<String, String>,
    /// Whether anonymous volumes are kept after the job.
    pub volume_keep: bool,
    /// A directory of the machine for volumes without a source.
    pub cache_dir: String,
    /// Whether volumes without a source are removed after the job.
    pub disable_cache: bool,
    /// In-memory file systems: path and mount options.
    pub tmpfs: BTreeMap<String, String>,
    /// See `tmpfs`, for services.
    pub services_tmpfs: BTreeMap<String, String>,

    /// `bridge`, `host`, `none`, `container:NAME`, or a network's name.
    pub network_mode: String,
    /// The MTU of the job's own network.
    pub network_mtu: u32,
    /// Enable IPv6 in the job's own network.
    pub enable_ipv6: bool,
    /// DNS servers.
    pub dns: Vec<IpAddr>,
    /// DNS search domains.
    pub dns_search: Vec<String>,
    /// `NAME:ADDRESS`.
    #[serde(deserialize_with = "values::list")]
    pub extra_hosts: Vec<Host>,
    /// `CONTAINER:ALIAS`.
    pub links: Vec<String>,
    pub hostname: String,
    /// The MAC address of the container.
    #[serde(deserialize_with = "values::optional")]
    pub mac_address: Option<MacAddress>,
    /// `host` for the machine's PID namespace.
    pub pid_mode: String,
    /// `host` for the machine's IPC namespace.
    pub ipcmode: String,

    /// Services that every job gets.
    pub services: Vec<Service>,
    /// The largest number of services of a job; negative for no limit.
    pub services_limit: Option<i64>,
    /// The timeout for services to start, in seconds; negative to not wait for services.
    pub wait_for_services_timeout: i64,

    /// Additional labels of every container.
    pub container_labels: BTreeMap<String, String>,
    /// Options of the engine's log of a container.
    pub log_options: LogOptions,
    /// Belongs below `[[runners]]`; has the same effect here.
    pub environment: Vec<String>,
}

impl DockerConfig {
    /// The pull policies of a job that requests none.
    pub fn default_policies(&self) -> Vec<PullPolicy> {
        if self.pull_policy.is_empty() { vec![PullPolicy::Always] } else { self.pull_policy.clone() }
    }

    /// The policies that jobs may request.
    pub fn permitted_policies(&self) -> Vec<PullPolicy> {
        match self.allowed_pull_policies.is_empty() {
            true => self.default_policies(),
            false => self.allowed_pull_policies.clone(),
        }
    }

    /// Whether a job that requests no policy has an allowed one.
    pub fn permits_a_default_policy(&self) -> bool {
        let permitted = self.permitted_policies();
        self.default_policies().iter().any(|policy| permitted.contains(policy))
    }

    /// The timeout for services to start; `None` to not wait.
    pub fn services_timeout(&self) -> Option<Duration> {
        match u64::try_from(self.wait_for_services_timeout) {
            Ok(0) => Some(WAIT_FOR_SERVICES),
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => None,
        }
    }

    /// The largest number of services of a job; `None` for no limit.
    pub fn max_services(&self) -> Option<usize> {
        self.services_limit.and_then(|limit| usize::try_from(limit).ok())
    }
}

#[cfg(test)]
mod tests;
