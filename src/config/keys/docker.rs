//! Keys of containers.

use super::ValueType::{Bool, List, Map, Number, Text};
use super::{Key, as_above, key, no_effect, table};

const HELPER: &str = "the agent needs no helper image";

/// Keys below `[runners.docker]`.
pub(super) const DOCKER: &[Key] = &[
    key(
        "host",
        Text,
        "the engine",
        "`unix://…` or `tcp://…`; default `DOCKER_HOST`, then `/var/run/docker.sock`. With `tls_verify` \
         the agent trusts `ca.pem` in addition to the system's CAs, and presents `cert.pem` with \
         `key.pem`",
    )
    .flag("docker-host", ""),
    as_above("tls_cert_path", Text).flag("docker-cert-path", ""),
    as_above("tls_verify", Bool).flag("docker-tlsverify", ""),
    key("image", Text, "job", "in patterns `*` matches within one part of a name, `**` over several parts")
        .flag("docker-image", "DOCKER_IMAGE"),
    as_above("pull_policy", List).flag("docker-pull-policy", ""),
    as_above("allowed_pull_policies", List).flag("docker-allowed-pull-policies", ""),
    as_above("allowed_images", List).flag("docker-allowed-images", ""),
    as_above("disable_entrypoint_overwrite", Bool).flag("docker-disable-entrypoint-overwrite", ""),
    key("user", Text, "job", "the configured user overrides the user of the job").flag("docker-user", ""),
    as_above("allowed_users", List).flag("docker-allowed-users", ""),
    as_above("group_add", List).flag("docker-group-add", ""),
    key(
        "privileged",
        Bool,
        "job",
        "an image that does not match the list runs unprivileged; an empty list matches all",
    )
    .flag("docker-privileged", ""),
    as_above("allowed_privileged_images", List).flag("docker-allowed-privileged-images", ""),
    key(
        "services_privileged",
        Bool,
        "services",
        "`services_privileged` defaults to `privileged`; with a timeout of -1 the agent does not wait",
    )
    .flag("docker-services-privileged", ""),
    as_above("allowed_privileged_services", List).flag("docker-allowed-privileged-services", ""),
    as_above("allowed_services", List).flag("docker-allowed-services", ""),
    as_above("services_limit", Number).flag("docker-services-limit", ""),
    as_above("wait_for_services_timeout", Number).flag("docker-wait-for-services-timeout", ""),
    key("cap_add", List, "job", "the file of `seccomp=FILE` is read on the agent's machine").flag("docker-cap-add", ""),
    as_above("cap_drop", List).flag("docker-cap-drop", ""),
    as_above("security_opt", List).flag("docker-security-opt", ""),
    as_above("sysctls", Map),
    as_above("devices", List).flag("docker-devices", ""),
    as_above("device_cgroup_rules", List).flag("docker-device-cgroup-rules", ""),
    as_above("gpus", Text).flag("docker-gpus", ""),
    as_above("tmpfs", Map),
    as_above("volumes_from", List).flag("docker-volumes-from", ""),
    as_above("links", List).flag("docker-links", ""),
    as_above("ipcmode", Text).flag("docker-ipcmode", ""),
    as_above("pid_mode", Text).flag("docker-pid-mode", ""),
    key("services_security_opt", List, "services", "").flag("docker-services-security-opt", ""),
    as_above("services_devices", Map).flag("docker-services-devices", ""),
    as_above("services_tmpfs", Map),
    as_above("service_gpus", Text).flag("docker-service-gpus", ""),
    key("memory", Text, "job", "sizes take the units `b`, `k`, `m`, `g`").flag("docker-memory", ""),
    as_above("memory_swap", Text).flag("docker-memory-swap", ""),
    as_above("memory_reservation", Text).flag("docker-memory-reservation", ""),
    as_above("cpus", Text).flag("docker-cpus", ""),
    as_above("cpu_shares", Number).flag("docker-cpu-shares", ""),
    as_above("cpuset_cpus", Text).flag("docker-cpuset-cpus", ""),
    as_above("cpuset_mems", Text).flag("docker-cpuset-mems", ""),
    as_above("cgroup_parent", Text).flag("docker-cgroup-parent", ""),
    as_above("oom_kill_disable", Bool).flag("docker-oom-kill-disable", ""),
    as_above("oom_score_adjust", Number).flag("docker-oom-score-adjust", ""),
    as_above("ulimit", Map),
    key("service_memory", Text, "services", "").flag("docker-service-memory", ""),
    as_above("service_memory_swap", Text).flag("docker-service-memory-swap", ""),
    as_above("service_memory_reservation", Text).flag("docker-service-memory-reservation", ""),
    as_above("service_cpus", Text).flag("docker-service-cpus", ""),
    as_above("service_cpu_shares", Number).flag("docker-service-cpu-shares", ""),
    as_above("service_cpuset_cpus", Text).flag("docker-service-cpuset-cpus", ""),
    as_above("service_cgroup_parent", Text).flag("docker-service-cgroup-parent", ""),
    key("runtime", Text, "all", "").flag("docker-runtime", ""),
    as_above("isolation", Text).flag("docker-isolation", ""),
    as_above("userns_mode", Text).flag("docker-userns", ""),
    as_above("dns", List).flag("docker-dns", ""),
    as_above("dns_search", List).flag("docker-dns-search", ""),
    as_above("extra_hosts", List).flag("docker-extra-hosts", ""),
    as_above("shm_size", Number).flag("docker-shm-size", ""),
    key("network_mode", Text, "the network", "MTU and IPv6 apply to the network of a job (`FF_NETWORK_PER_BUILD`)")
        .flag("docker-network-mode", ""),
    as_above("network_mtu", Number).flag("docker-network-mtu", ""),
    as_above("enable_ipv6", Bool).flag("docker-enable-ipv6", ""),
    as_above("hostname", Text).flag("docker-hostname", ""),
    as_above("mac_address", Text).flag("docker-mac-address", ""),
    key("volumes", List, "all", "the socket of the engine is mounted only if `volumes` names it")
        .flag("docker-volumes", ""),
    as_above("cache_dir", Text).flag("docker-cache-dir", ""),
    as_above("disable_cache", Bool).flag("docker-disable-cache", ""),
    as_above("volume_keep", Bool).flag("docker-volume-keep", ""),
    as_above("volume_driver", Text).flag("docker-volume-driver", ""),
    as_above("volume_driver_ops", Map),
    key("container_labels", Map, "all", "`log_options` takes `env` and `labels`"),
    as_above("log_options", Map),
    key("environment", List, "job", "honoured, but `mayfly lint` asks to move it to `[[runners]]`"),
    table("services", "services", "`[[runners.docker.services]]`"),
    no_effect("helper_image", HELPER).of_kind(Text).flag("docker-helper-image", ""),
    no_effect("helper_image_flavor", HELPER).of_kind(Text).flag("docker-helper-image-flavor", ""),
    no_effect("service_slot_cgroup_template", "services have their own control groups"),
];

/// Keys below `[[runners.docker.services]]`.
pub(super) const DOCKER_SERVICE: &[Key] = &[
    key("name", Text, "", "image of the service"),
    key("alias", Text, "", "host names of the service, separated by spaces or commas"),
    key("command", List, "", "override the image's command and entrypoint"),
    as_above("entrypoint", List),
    key("environment", List, "", "`[\"NAME=value\"]`: variables of the service"),
];
