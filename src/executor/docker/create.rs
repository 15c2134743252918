//! Builds the request that creates a container from the configuration and the resolved image. Pure functions: nothing
//! contacts the engine.

use std::collections::BTreeMap;

use super::engine::spec::{
    CreateContainer, Device, DeviceRequest, Endpoint, HostConfig, LogConfig, NetworkingConfig, RestartPolicy, Ulimit,
};
use super::engine::{DockerError, Revision};
use super::network_mode::NetworkMode;
use super::resolved_image::ResolvedImage;
use super::security_options;
use crate::config::docker::{self, DockerConfig, Gpus, Size, Swap};
use crate::failure::JobError;

/// The first API version in which the MAC address belongs to a network endpoint.
const MAC_OF_NETWORK: Revision = Revision(1, 44);

/// The settings of a container beyond the configuration.
#[derive(Clone, Debug, Default)]
pub struct ContainerSettings {
    /// The image, by digest or id.
    pub image: String,
    /// The host name; a configured one takes precedence.
    pub hostname: String,
    /// `KEY=VALUE`
    pub environment: Vec<String>,
    /// Labels for the job and the agent.
    pub labels: BTreeMap<String, String>,
    /// `source:destination[:mode]`
    pub binds: Vec<String>,
    /// `NAME:ADDRESS` entries for services.
    pub hosts: Vec<String>,
    /// Network aliases, if the network has DNS.
    pub aliases: Vec<String>,
}

/// Fails if the configuration contradicts itself. The error names the contradictions.
pub fn check(docker: &DockerConfig) -> Result<(), JobError> {
    let contradictions = docker.contradictions();
    if contradictions.is_empty() {
        return Ok(());
    }
    let texts: Vec<String> = contradictions.iter().map(|one| format!("`{}`: {}", one.key, one.why)).collect();
    Err(JobError::configuration(format!("the configuration of this runner is contradictory: {}", texts.join("; "))))
}

/// The failure of a job whose container the engine does not create. If the engine rejects the request, the cause is in
/// the configuration or in the job.
pub fn create_error(what: &str, error: &DockerError) -> JobError {
    match error.status() {
        Some(400) => JobError::configuration(format!(
            "the container engine refuses to create the container of {what}: {error}: change the settings of the job, \
             or [runners.docker]"
        )),
        _ => JobError::system(format!("cannot create the container of {what}: {error}")),
    }
}

/// The request for the job's container. Fails if a file that the configuration names is unreadable.
pub fn job_request(
    docker: &DockerConfig,
    resolved: &ResolvedImage,
    network: &NetworkMode,
    settings: ContainerSettings,
    revision: Revision,
) -> Result<CreateContainer, JobError> {
    let hostname = match network {
        NetworkMode::Other(mode) if mode.starts_with("container:") => String::new(),
        _ if docker.hostname.is_empty() => settings.hostname.clone(),
        _ => docker.hostname.clone(),
    };
    let mut host = shared_host_config(docker, network, &settings);
    set_memory_limits(&mut host, [docker.memory, docker.memory_reservation], docker.memory_swap);
    host.nano_cpus = docker.cpus.map_or(0, |cpus| cpus.0);
    host.cpu_shares = docker.cpu_shares;
    host.cpuset_cpus.clone_from(&docker.cpuset_cpus);
    host.cpuset_mems.clone_from(&docker.cpuset_mems);
    host.cgroup_parent.clone_from(&docker.cgroup_parent);
    host.oom_kill_disable = docker.oom_kill_disable.unwrap_or(false);
    host.oom_score_adj = docker.oom_score_adjust;
    host.ulimits = docker.ulimit.iter().map(ulimit).collect();
    host.privileged = resolved.privileged;
    host.cap_add.clone_from(&docker.cap_add);
    host.cap_drop.clone_from(&docker.cap_drop);
    host.security_opt = security_options::inline_profiles(&docker.security_opt)?;
    host.group_add.clone_from(&docker.group_add);
    host.sysctls.clone_from(&docker.sysctls);
    host.tmpfs.clone_from(&docker.tmpfs);
    host.devices = docker.devices.iter().map(device).collect();
    host.device_cgroup_rules.clone_from(&docker.device_cgroup_rules);
    host.device_requests = docker.gpus.iter().map(device_request).collect();
    host.volumes_from.clone_from(&docker.volumes_from);
    host.volume_driver.clone_from(&docker.volume_driver);
    host.links.clone_from(&docker.links);
    if docker.log_options.0.is_empty() {
        // The job's output goes directly to the job's log; the engine need not store it as well.
        host.log_config = LogConfig { kind: "none".to_owned(), ..LogConfig::default() };
    }
    host.ipc_mode.clone_from(&docker.ipcmode);
    host.pid_mode.clone_from(&docker.pid_mode);
    let mut container = container_request(resolved, network, settings, host);
    container.hostname = hostname;
    if let Some(address) = &docker.mac_address {
        set_mac_address(&mut container, network, &address.0, revision);
    }
    Ok(container)
}

/// The request for the container of a service. Fails as [`job_request`] does.
pub fn service_request(
    docker: &DockerConfig,
    resolved: &ResolvedImage,
    network: &NetworkMode,
    settings: ContainerSettings,
) -> Result<CreateContainer, JobError> {
    let mut host = shared_host_config(docker, network, &settings);
    let memory = [docker.service_memory, docker.service_memory_reservation];
    set_memory_limits(&mut host, memory, docker.service_memory_swap);
    host.nano_cpus = docker.service_cpus.map_or(0, |cpus| cpus.0);
    host.cpu_shares = docker.service_cpu_shares;
    host.cpuset_cpus.clone_from(&docker.service_cpuset_cpus);
    host.cgroup_parent.clone_from(&docker.service_cgroup_parent);
    host.privileged = resolved.privileged;
    host.security_opt = security_options::inline_profiles(&docker.services_security_opt)?;
    host.tmpfs.clone_from(&docker.services_tmpfs);
    let devices = docker.services_devices.iter().filter(|(images, _)| images.match_name(&resolved.name));
    host.devices = devices.flat_map(|(_, devices)| devices).map(device).collect();
    host.device_requests = docker.service_gpus.iter().map(device_request).collect();
    Ok(container_request(resolved, network, settings, host))
}

/// The settings that all containers share.
fn shared_host_config(docker: &DockerConfig, network: &NetworkMode, settings: &ContainerSettings) -> HostConfig {
    let has_hosts = !matches!(network, NetworkMode::Other(mode) if mode.starts_with("container:"));
    let hosts = docker.extra_hosts.iter().map(|host| host.0.clone()).chain(settings.hosts.iter().cloned());
    HostConfig {
        binds: settings.binds.clone(),
        network_mode: match network {
            NetworkMode::Bridge => docker.network_mode.clone(),
            network => network.mode().to_owned(),
        },
        extra_hosts: hosts.filter(|_| has_hosts).collect(),
        dns: docker.dns.iter().map(ToString::to_string).collect(),
        dns_search: docker.dns_search.clone(),
        runtime: docker.runtime.clone(),
        isolation: docker.isolation.clone(),
        userns_mode: docker.userns_mode.clone(),
        shm_size: docker.shm_size.0,
        // Only the agent restarts containers.
        restart_policy: RestartPolicy { name: "no".to_owned() },
        // The agent reads the output of services through the engine; the driver `json-file` supports that.
        log_config: LogConfig { kind: "json-file".to_owned(), config: docker.log_options.0.clone() },
        ..HostConfig::default()
    }
}

fn container_request(
    resolved: &ResolvedImage,
    network: &NetworkMode,
    settings: ContainerSettings,
    host: HostConfig,
) -> CreateContainer {
    let networking_config = match network {
        NetworkMode::Named(name) => {
            let endpoint = Endpoint { aliases: settings.aliases, ..Endpoint::default() };
            Some(NetworkingConfig { endpoints_config: crate::ordered::map([(name.clone(), endpoint)]) })
        }
        _ => None,
    };
    CreateContainer {
        image: settings.image,
        user: resolved.user.clone(),
        entrypoint: resolved.entrypoint.clone(),
        cmd: resolved.command.clone(),
        env: settings.environment,
        labels: settings.labels,
        host_config: host,
        networking_config,
        ..CreateContainer::default()
    }
}

fn set_memory_limits(host: &mut HostConfig, [memory, reservation]: [Option<Size>; 2], swap: Option<Swap>) {
    host.memory = memory.map_or(0, |size| size.0);
    host.memory_reservation = reservation.map_or(0, |size| size.0);
    host.memory_swap = match swap {
        Some(Swap::Unlimited) => -1,
        Some(Swap::UpTo(size)) => size.0,
        None => 0,
    };
}

fn ulimit(limit: &docker::Ulimit) -> Ulimit {
    Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard }
}

fn device(device: &docker::Device) -> Device {
    Device {
        path_on_host: device.host.clone(),
        path_in_container: device.container.clone(),
        cgroup_permissions: device.permissions.clone(),
    }
}

fn device_request(gpus: &Gpus) -> DeviceRequest {
    DeviceRequest {
        driver: gpus.driver.clone(),
        count: gpus.count,
        device_ids: gpus.devices.clone(),
        capabilities: vec![gpus.capabilities.clone()],
    }
}

fn set_mac_address(container: &mut CreateContainer, network: &NetworkMode, address: &str, revision: Revision) {
    if revision < MAC_OF_NETWORK {
        address.clone_into(&mut container.mac_address);
        return;
    }
    if *network == NetworkMode::Bridge {
        network.mode().clone_into(&mut container.host_config.network_mode);
    }
    let networks = container.networking_config.get_or_insert_default();
    let endpoint = networks.endpoints_config.entry(network.mode().to_owned()).or_default();
    address.clone_into(&mut endpoint.mac_address);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use crate::config::Config;
    use crate::failure::FailureReason;
    use crate::payload::Image;

    const OLD: Revision = Revision(1, 41);

    fn docker(lines: &str) -> DockerConfig {
        let text = format!(
            "[[runners]]\nurl = \"https://h\"\ntoken = \"t\"\nexecutor = \"shell\"\n[runners.docker]\nimage = \"a\"\n{lines}\n"
        );
        let config = Config::parse(Path::new("config.toml"), &text).unwrap_or_else(|error| panic!("{error}"));
        config.runners[0].docker.clone()
    }

    fn resolved(docker: &DockerConfig) -> ResolvedImage {
        super::super::resolved_image::resolve_job_image(docker, &Image::default(), &|text| text.to_owned())
            .expect("the image must be allowed")
            .0
    }

    fn settings() -> ContainerSettings {
        ContainerSettings {
            image: "a@sha256:1".to_owned(),
            hostname: "runner-1".to_owned(),
            hosts: vec!["db:172.17.0.2".to_owned()],
            aliases: vec!["build".to_owned()],
            ..ContainerSettings::default()
        }
    }

    fn job(docker: &DockerConfig, network: &NetworkMode) -> CreateContainer {
        job_request(docker, &resolved(docker), network, settings(), OLD).expect("the container must be described")
    }

    fn json(container: &CreateContainer) -> serde_json::Value {
        serde_json::to_value(container).expect("encode as JSON")
    }

    #[test]
    fn a_container_with_default_settings_has_no_privileges_and_no_socket() {
        let docker = docker("");
        let host = &json(&job(&docker, &NetworkMode::Bridge))["HostConfig"];
        for key in ["Binds", "Privileged", "CapAdd", "Devices", "SecurityOpt", "PidMode", "UsernsMode", "VolumesFrom"] {
            assert!(host[key].is_null(), "{key}: {}", host[key]);
        }
        assert_eq!(
            (host["RestartPolicy"]["Name"].as_str(), host["LogConfig"]["Type"].as_str()),
            (Some("no"), Some("none"))
        );
        let service = json(
            &service_request(&docker, &resolved(&docker), &NetworkMode::Bridge, settings())
                .expect("the container must be described"),
        );
        assert_eq!(service["HostConfig"]["LogConfig"]["Type"], "json-file");
    }

    #[test]
    fn settings_of_jobs_do_not_apply_to_services() {
        let docker = docker(
            "memory = \"1g\"\ncpus = \"1.5\"\nservice_memory = \"256m\"\nservice_cpus = \"0.5\"\ncap_add = [\"NET_ADMIN\"]\n\
             dns = [\"10.0.0.1\"]\nshm_size = 1024\nhostname = \"own\"\nservices_security_opt = [\"no-new-privileges\"]\n\
             [runners.docker.services_devices]\n\"a\" = [\"/dev/null\"]\n\"b:*\" = [\"/dev/zero\"]\n",
        );
        let job = json(&job(&docker, &NetworkMode::Bridge));
        let service = service_request(&docker, &resolved(&docker), &NetworkMode::Bridge, settings())
            .expect("the container must be described");
        let service = json(&service);
        let (job_host, service_host) = (&job["HostConfig"], &service["HostConfig"]);
        assert_eq!((job_host["Memory"].as_i64(), job_host["NanoCpus"].as_i64()), (Some(1 << 30), Some(1_500_000_000)));
        assert_eq!(
            (service_host["Memory"].as_i64(), service_host["NanoCpus"].as_i64()),
            (Some(256 << 20), Some(500_000_000))
        );
        assert_eq!((job["Hostname"].as_str(), service["Hostname"].as_str()), (Some("own"), None));
        assert!(service_host["CapAdd"].is_null() && job_host["CapAdd"][0] == "NET_ADMIN");
        assert_eq!(service_host["Devices"].as_array().map(Vec::len), Some(1));
        assert_eq!(service_host["SecurityOpt"][0], "no-new-privileges");
        for host in [job_host, service_host] {
            assert_eq!((host["Dns"][0].as_str(), host["ShmSize"].as_i64()), (Some("10.0.0.1"), Some(1024)));
        }
    }

    #[test]
    fn sets_aliases_in_networks_with_dns() {
        let docker = docker("extra_hosts = [\"x:10.0.0.9\"]");
        let bridge = job(&docker, &NetworkMode::Bridge);
        assert_eq!(bridge.host_config.extra_hosts, ["x:10.0.0.9", "db:172.17.0.2"]);
        assert!(bridge.networking_config.is_none());
        let named = json(&job(&docker, &NetworkMode::Named("mine".to_owned())));
        assert_eq!(named["NetworkingConfig"]["EndpointsConfig"]["mine"]["Aliases"][0], "build");
        let shared = job(&docker, &NetworkMode::Other("container:x".to_owned()));
        assert!(shared.host_config.extra_hosts.is_empty() && shared.hostname.is_empty());
    }

    #[test]
    fn sets_the_mac_address_where_the_engine_expects_it() {
        let docker = docker("mac_address = \"92:d0:c6:0a:29:33\"");
        let old = json(&job(&docker, &NetworkMode::Bridge));
        assert_eq!(old["MacAddress"], "92:d0:c6:0a:29:33");
        let new = job_request(&docker, &resolved(&docker), &NetworkMode::Bridge, settings(), MAC_OF_NETWORK)
            .expect("the container must be described");
        let new = json(&new);
        assert!(new["MacAddress"].is_null());
        assert_eq!(new["NetworkingConfig"]["EndpointsConfig"]["bridge"]["MacAddress"], "92:d0:c6:0a:29:33");
    }

    #[test]
    fn a_contradiction_fails_the_job_and_names_the_key() {
        assert!(check(&docker("memory = \"1g\"")).is_ok());
        let error = check(&docker("memory = \"2g\"\nmemory_swap = \"1g\"")).expect_err("must be refused");
        assert_eq!(error.reason, FailureReason::RunnerConfigurationError);
        assert!(error.message.contains("docker.memory_swap"), "{error}");
    }
}
