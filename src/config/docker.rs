//! `[runners.docker]`: what containers are made of and what they may do, as types.
//!
//! A value that makes no sense by itself does not get in, and its line is shown. What makes no sense together
//! ([`Docker::contradictions`]) is told at start-up and fails the jobs that it would be used for.

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

/// How long services have to come up unless the configuration says so.
const WAIT_FOR_SERVICES: Duration = Duration::from_secs(30);

/// `[runners.docker]`, by gitlab-runner's names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Docker {
    /// `unix://…`, `tcp://…`; `DOCKER_HOST` or the usual socket where empty.
    pub host: String,
    /// A directory with `ca.pem`, `cert.pem` and `key.pem`.
    pub tls_cert_path: Option<PathBuf>,
    /// Check the engine's certificate.
    pub tls_verify: bool,

    /// For jobs that name none.
    pub image: String,
    /// Tried in this order; `always` where empty.
    #[serde(deserialize_with = "values::policies")]
    pub pull_policy: Vec<PullPolicy>,
    /// What jobs may choose from; the above where empty.
    #[serde(deserialize_with = "values::policies")]
    pub allowed_pull_policies: Vec<PullPolicy>,
    /// What jobs may take for their image.
    pub allowed_images: Patterns,
    /// What jobs may take for their services.
    pub allowed_services: Patterns,
    /// Which of them `privileged` counts for.
    pub allowed_privileged_images: Patterns,
    /// Which of them `services_privileged` counts for.
    pub allowed_privileged_services: Patterns,
    /// Jobs cannot replace the image's entrypoint.
    pub disable_entrypoint_overwrite: bool,

    /// Whom the job's container runs as.
    pub user: String,
    /// Whom jobs may choose.
    pub allowed_users: Vec<String>,
    /// More groups of that user.
    pub group_add: Vec<String>,
    /// Everything is allowed in the container.
    pub privileged: bool,
    /// The same for services; as `privileged` where nothing is said.
    pub services_privileged: Option<bool>,
    /// Capabilities beside the engine's usual ones.
    pub cap_add: Vec<String>,
    /// Capabilities that are taken away.
    pub cap_drop: Vec<String>,
    /// `no-new-privileges`, `seccomp=FILE`, …
    pub security_opt: Vec<String>,
    /// The same for services.
    pub services_security_opt: Vec<String>,
    /// `host` to be outside the engine's user namespace.
    pub userns_mode: String,
    /// Kernel settings of the container.
    pub sysctls: BTreeMap<String, String>,

    /// Most memory.
    pub memory: Option<Size>,
    /// Most memory and swap together.
    #[serde(deserialize_with = "values::optional")]
    pub memory_swap: Option<Swap>,
    /// Memory that is left to it when memory is scarce.
    pub memory_reservation: Option<Size>,
    /// Most processor time.
    #[serde(deserialize_with = "values::optional")]
    pub cpus: Option<Cpus>,
    /// Weight when processors are scarce.
    pub cpu_shares: i64,
    /// Which processors.
    pub cpuset_cpus: String,
    /// Which memory nodes.
    pub cpuset_mems: String,
    /// Parent of the container's control group.
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
    /// Processes wait instead of dying when memory is used up.
    pub oom_kill_disable: Option<bool>,
    /// Which processes die first.
    pub oom_score_adjust: i64,
    /// Bytes of `/dev/shm`.
    pub shm_size: Size,
    /// Limits of processes.
    #[serde(deserialize_with = "values::ulimits")]
    pub ulimit: Vec<Ulimit>,
    /// Devices of the machine.
    #[serde(deserialize_with = "values::list")]
    pub devices: Vec<Device>,
    /// The same for services, by the image's name.
    #[serde(deserialize_with = "list::devices")]
    pub services_devices: Vec<(Patterns, Vec<Device>)>,
    /// Which devices may be used, as the kernel writes it.
    pub device_cgroup_rules: Vec<String>,
    /// Graphics processors.
    #[serde(deserialize_with = "values::optional")]
    pub gpus: Option<Gpus>,
    /// The same for services.
    #[serde(deserialize_with = "values::optional")]
    pub service_gpus: Option<Gpus>,
    /// What runs containers.
    pub runtime: String,
    /// Always the usual one on Linux.
    #[serde(deserialize_with = "values::isolation")]
    pub isolation: String,

    /// `[source:]destination[:mode]`.
    pub volumes: Vec<String>,
    /// Containers whose volumes are used.
    pub volumes_from: Vec<String>,
    /// Makes volumes.
    pub volume_driver: String,
    /// Options for it.
    pub volume_driver_ops: BTreeMap<String, String>,
    /// Anonymous volumes outlive the job.
    pub volume_keep: bool,
    /// A directory of the machine for volumes without a source.
    pub cache_dir: String,
    /// Volumes without a source do not outlive the job.
    pub disable_cache: bool,
    /// Directories in memory: where, and options of the mount.
    pub tmpfs: BTreeMap<String, String>,
    /// The same for services.
    pub services_tmpfs: BTreeMap<String, String>,

    /// `bridge`, `host`, `none`, `container:NAME`, or a network's name.
    pub network_mode: String,
    /// Bytes of a packet in the job's own network.
    pub network_mtu: u32,
    /// IPv6 in the job's own network.
    pub enable_ipv6: bool,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Domains in which names are looked for.
    pub dns_search: Vec<String>,
    /// `NAME:ADDRESS`.
    #[serde(deserialize_with = "values::list")]
    pub extra_hosts: Vec<Host>,
    /// `CONTAINER:ALIAS`.
    pub links: Vec<String>,
    /// The container's name for itself.
    pub hostname: String,
    /// Its hardware address.
    #[serde(deserialize_with = "values::optional")]
    pub mac_address: Option<MacAddress>,
    /// `host` to see all processes of the machine.
    pub pid_mode: String,
    /// `host` to share memory with the machine.
    pub ipcmode: String,

    /// Services of every job.
    pub services: Vec<Service>,
    /// How many services a job may have in all; none below 0.
    pub services_limit: Option<i64>,
    /// Seconds; below 0 services are not waited for.
    pub wait_for_services_timeout: i64,

    /// Labels of every container.
    pub container_labels: BTreeMap<String, String>,
    /// For the engine's log of a container.
    pub log_options: LogOptions,
    /// Belongs below `[[runners]]`, and counts as if it stood there.
    pub environment: Vec<String>,
}

impl Docker {
    /// The policies of a job that names none.
    pub fn default_policies(&self) -> Vec<PullPolicy> {
        if self.pull_policy.is_empty() { vec![PullPolicy::Always] } else { self.pull_policy.clone() }
    }

    /// What jobs may choose from.
    pub fn permitted_policies(&self) -> Vec<PullPolicy> {
        match self.allowed_pull_policies.is_empty() {
            true => self.default_policies(),
            false => self.allowed_pull_policies.clone(),
        }
    }

    /// Whether a job that names no policy has one that is allowed.
    pub fn permits_a_default_policy(&self) -> bool {
        let permitted = self.permitted_policies();
        self.default_policies().iter().any(|policy| permitted.contains(policy))
    }

    /// How long services have to come up; `None` when they are not waited for.
    pub fn services_timeout(&self) -> Option<Duration> {
        match u64::try_from(self.wait_for_services_timeout) {
            Ok(0) => Some(WAIT_FOR_SERVICES),
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => None,
        }
    }

    /// How many services a job may have; `None` without bound.
    pub fn most_services(&self) -> Option<usize> {
        self.services_limit.and_then(|limit| usize::try_from(limit).ok())
    }
}

#[cfg(test)]
mod tests;
