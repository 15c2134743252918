//! Each key of `[runners.docker]` that changes a container, checked with the engine.

use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::docker::{docker, is_podman_run};
use crate::support::engine_proxy::{EngineProxy, Treatment};
use crate::support::gitlab::GitLab;
use crate::support::job::{JobBuilder, job, until_there};
use crate::support::scenario::Scenario;
use crate::support::unique_number;

/// The output of `docker inspect` for the containers of a running job: the job's own container, and that of its
/// service.
fn inspected(keys: &str, job: JobBuilder) -> (Value, Value) {
    let docker = docker();
    let gitlab = GitLab::start();
    let home = Scenario::containers().docker(keys).home(&gitlab);
    let service = json!([{"name": "busybox:local", "alias": "side", "command": ["sleep", "600"]}]);
    let id = gitlab.queue(job.set("services", service).build());
    let mut agent = home.start(&["--once"]);
    let found = |kind: &str| {
        let filters = [("job.id", id.to_string()), ("type", kind.to_owned())];
        let filters = filters.map(|(key, value)| format!("label=com.gitlab.gitlab-runner.{key}={value}"));
        let all = docker.run(&["ps", "-q", "--filter", &filters[0], "--filter", &filters[1]]);
        all.lines().next().map(str::to_owned)
    };
    let is_up = |id: &String| {
        docker.command(&["exec", id, "test", "-e", "/tmp/up"]).status().is_ok_and(|status| status.success())
    };
    let mut running = None;
    agent.wait_until("the job's container", || {
        running = found("build").filter(is_up);
        running.is_some()
    });
    let container = running.expect("a container must run");
    let both = (docker.inspect(&container), docker.inspect(&found("service").expect("a service")));
    docker.run(&["exec", "--detach", &container, "touch", "/tmp/go"]);
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success", "{}", job.log());
    assert!(agent.wait().success(), "{}", agent.log());
    both
}

/// A job that waits until its containers have been inspected.
fn waiting() -> JobBuilder {
    job(&[&format!("touch /tmp/up; {}", until_there("/tmp/go"))])
}

/// The keys of `[runners.docker]` that limit a container or give it privileges.
fn limits_and_privileges(profile: &Path, cgroup: &str) -> String {
    let profile = profile.display();
    format!(
        "memory = \"64m\"\nmemory_reservation = \"32m\"\ncpus = \"0.5\"\ncpu_shares = 512\ncpuset_cpus = \"0\"\n\
         cpuset_mems = \"0\"\noom_score_adjust = 500\nshm_size = 1048576\ncap_add = [\"NET_ADMIN\"]\ncap_drop = [\"MKNOD\"]\n\
         security_opt = [\"no-new-privileges\", \"seccomp={profile}\"]\ngroup_add = [\"1234\"]\n\
         devices = [\"/dev/null:/dev/zilch:r\"]\ndevice_cgroup_rules = [\"c 1:3 mr\"]\nruntime = \"runc\"\n\
         isolation = \"default\"\nipcmode = \"private\"\nhostname = \"own-name\"\nmac_address = \"02:42:ac:11:00:99\"\n\
         dns = [\"10.0.0.53\"]\ndns_search = [\"corp.test\"]\nextra_hosts = [\"far:10.0.0.9\"]\nuserns_mode = \"host\"\n\
         memory_swap = \"96m\"\nservice_memory_swap = \"48m\"\noom_kill_disable = true\ncgroup_parent = \"/{cgroup}-job\"\n\
         service_cgroup_parent = \"/{cgroup}-side\"\nlog_options = {{ env = \"CI_JOB_NAME\", labels = \"test.team\" }}\n\
         wait_for_services_timeout = -1\nservice_memory = \"32m\"\nservice_cpus = \"0.25\"\nservice_cpu_shares = 128\n\
         service_cpuset_cpus = \"0\"\nservice_memory_reservation = \"16m\"\nservices_security_opt = [\"no-new-privileges\"]\n\
         [runners.docker.ulimit]\nnofile = \"512:1024\"\n[runners.docker.tmpfs]\n\"/scratch\" = \"size=1m\"\n\
         [runners.docker.services_tmpfs]\n\"/scratch\" = \"size=2m\"\n\
         [runners.docker.services_devices]\n\"busybox:*\" = [\"/dev/zero\"]\n\"other:*\" = [\"/dev/full\"]\n\
         [runners.docker.sysctls]\n\"net.ipv4.ip_forward\" = \"0\"\n\
         [runners.docker.container_labels]\n\"test.team\" = \"of $CI_JOB_NAME\"\n"
    )
}

#[test]
fn containers_have_the_configured_limits_and_privileges() {
    // Podman takes a file instead of the text of a seccomp profile; `podman.rs` has the other keys.
    if is_podman_run() {
        return;
    }
    let profile = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(profile.path(), "{\"defaultAction\": \"SCMP_ACT_ALLOW\"}").expect("write a file");
    let parent = format!("mayfly-test-{}", unique_number());
    let keys = limits_and_privileges(profile.path(), &parent);
    let (job, service) = inspected(&keys, waiting());
    // The engine drops settings that the kernel does not support.
    let supports = |what: &str| docker().run(&["info", "--format", &format!("{{{{.{what}}}}}")]) == "true";
    if supports("SwapLimit") {
        let swap = [&job, &service].map(|container| &container["HostConfig"]["MemorySwap"]);
        assert_eq!(swap, [&json!(96 << 20), &json!(48 << 20)]);
    }
    if supports("OomKillDisable") {
        assert_eq!(job["HostConfig"]["OomKillDisable"], true);
    }
    assert_limits_of_job(&job, &parent);
    assert_limits_of_service(&service, &parent);
}

fn assert_limits_of_job(job: &Value, parent: &str) {
    let host = &job["HostConfig"];
    for (key, expected) in [
        ("Memory", json!(64 << 20)),
        ("MemoryReservation", json!(32 << 20)),
        ("NanoCpus", json!(500_000_000)),
        ("CpuShares", json!(512)),
        ("CpusetCpus", json!("0")),
        ("CpusetMems", json!("0")),
        ("OomScoreAdj", json!(500)),
        ("ShmSize", json!(1 << 20)),
        ("CapAdd", json!(["NET_ADMIN"])),
        ("CapDrop", json!(["MKNOD"])),
        ("GroupAdd", json!(["1234"])),
        ("Devices", json!([{"PathOnHost": "/dev/null", "PathInContainer": "/dev/zilch", "CgroupPermissions": "r"}])),
        ("DeviceCgroupRules", json!(["c 1:3 mr"])),
        ("Runtime", json!("runc")),
        ("IpcMode", json!("private")),
        ("Dns", json!(["10.0.0.53"])),
        ("DnsSearch", json!(["corp.test"])),
        ("UsernsMode", json!("host")),
        ("Ulimits", json!([{"Name": "nofile", "Soft": 512, "Hard": 1024}])),
        ("Tmpfs", json!({"/scratch": "size=1m"})),
        ("Sysctls", json!({"net.ipv4.ip_forward": "0"})),
        ("Privileged", json!(false)),
        ("RestartPolicy", json!({"Name": "no", "MaximumRetryCount": 0})),
        ("CgroupParent", json!(format!("/{parent}-job"))),
        ("LogConfig", json!({"Type": "json-file", "Config": {"env": "CI_JOB_NAME", "labels": "test.team"}})),
    ] {
        assert_eq!(plain(&host[key]), expected, "{key}");
    }
    let options = host["SecurityOpt"].to_string();
    assert!(options.contains("no-new-privileges") && options.contains("SCMP_ACT_ALLOW"), "{options}");
    assert!(host["ExtraHosts"].to_string().contains("far:10.0.0.9"), "{}", host["ExtraHosts"]);
    assert!(host["ExtraHosts"].to_string().contains("side:"), "{}", host["ExtraHosts"]);
    let binds = host["Binds"].to_string();
    assert!(!binds.contains("docker.sock") && !binds.contains(&docker().host()[7..]), "{binds}");
    assert_eq!(job["Config"]["Hostname"], "own-name");
    assert_eq!(job["NetworkSettings"]["Networks"]["bridge"]["MacAddress"], "02:42:ac:11:00:99");
    assert_eq!(job["Config"]["Labels"]["test.team"], "of unit");
}

fn assert_limits_of_service(service: &Value, parent: &str) {
    let host = &service["HostConfig"];
    for (key, expected) in [
        ("Memory", json!(32 << 20)),
        ("MemoryReservation", json!(16 << 20)),
        ("NanoCpus", json!(250_000_000)),
        ("CpuShares", json!(128)),
        ("CpusetCpus", json!("0")),
        ("SecurityOpt", json!(["no-new-privileges"])),
        ("Tmpfs", json!({"/scratch": "size=2m"})),
        ("Devices", json!([{"PathOnHost": "/dev/zero", "PathInContainer": "/dev/zero", "CgroupPermissions": "rwm"}])),
        ("CapAdd", Value::Null),
        ("CgroupParent", json!(format!("/{parent}-side"))),
        ("LogConfig", json!({"Type": "json-file", "Config": {"env": "CI_JOB_NAME", "labels": "test.team"}})),
        ("Dns", json!(["10.0.0.53"])),
        ("ShmSize", json!(1 << 20)),
        ("Privileged", json!(false)),
    ] {
        assert_eq!(plain(&host[key]), expected, "service {key}");
    }
}

/// Some engines write capabilities with `CAP_`, others without.
fn plain(value: &Value) -> Value {
    match value {
        Value::Array(list) if list.iter().any(Value::is_string) => {
            list.iter().map(|one| json!(one.as_str().unwrap_or_default().trim_start_matches("CAP_"))).collect()
        }
        other => other.clone(),
    }
}

#[test]
fn containers_share_the_configured_networks_and_namespaces() {
    // Podman has no links.
    if is_podman_run() {
        return;
    }
    let docker = docker();
    let other = docker.run(&["run", "--detach", "--volume", "/shared", "busybox:local", "sleep", "600"]);
    let keys = format!("volumes_from = [\"{other}\"]\nlinks = [\"{other}:linked\"]\npid_mode = \"host\"\n");
    let (job, _) = inspected(&keys, waiting());
    let host = &job["HostConfig"];
    assert_eq!(host["VolumesFrom"], json!([other]));
    assert_eq!(host["PidMode"], "host");
    assert!(host["Links"].to_string().contains("/linked"), "{}", host["Links"]);
    docker.run(&["rm", "--force", "--volumes", &other]);
    for (keys, mode) in [("network_mode = \"host\"", "host"), ("network_mode = \"none\"", "none")] {
        let (job, service) = inspected(keys, waiting());
        assert_eq!(
            (job["HostConfig"]["NetworkMode"].as_str(), service["HostConfig"]["NetworkMode"].as_str()),
            (Some(mode), Some(mode))
        );
    }
    let name = format!("test-{}", unique_number());
    docker.run(&["network", "create", &name]);
    let (job, _) = inspected(&format!("network_mode = \"{name}\""), waiting());
    let aliases = job["NetworkSettings"]["Networks"][&name]["Aliases"].to_string();
    assert!(aliases.contains("\"build\""), "{aliases}");
    docker.run(&["network", "rm", &name]);
}

#[test]
fn a_job_sets_image_user_and_entrypoint_within_the_allowed_values() {
    let docker = docker();
    let image = docker.image(&["ENTRYPOINT [\"/bin/false\"]", "USER 1234"]);
    let choice = json!({"name": image, "entrypoint": [""], "executor_opts": {"docker": {"user": "0"}}});
    let (job, _) = inspected("", waiting().set("image", choice));
    assert_eq!(job["Config"]["User"], "0");
    assert!(job["Config"]["Entrypoint"].is_null() || job["Config"]["Entrypoint"] == json!([""]), "{}", job["Config"]);
    let (job, _) = inspected("user = \"1234\"\nallowed_users = [\"1234\"]", waiting());
    assert_eq!(job["Config"]["User"], "1234");
}

#[test]
fn volumes_have_the_configured_path_and_lifetime() {
    // Podman limits the size of a volume only with project quotas.
    if is_podman_run() {
        return;
    }
    let docker = docker();
    let image = docker.image(&["VOLUME /anonymous"]);
    let directory = tempfile::tempdir().expect("a directory");
    let own = format!("named-{}", unique_number());
    let volumes = format!("volumes = [\"/scratch\", \"{own}:/named\"]\nvolume_driver = \"local\"\n");
    let cache_dir = format!("cache_dir = \"{}\"\n", directory.path().display());
    let options = "[runners.docker.volume_driver_ops]\ntype = \"tmpfs\"\ndevice = \"tmpfs\"\no = \"size=1m\"\n";
    for (keys, anonymous_stays, lasting) in [
        (format!("{volumes}{options}"), false, true),
        (format!("{volumes}volume_keep = true\n{cache_dir}"), true, false),
        (format!("{volumes}disable_cache = true\n{options}"), false, false),
    ] {
        let (job, _) = inspected(&keys, waiting().set("image", json!({"name": image})));
        assert_eq!(job["HostConfig"]["VolumeDriver"], "local");
        let mounts = job["Mounts"].as_array().expect("a list of mounts");
        let mount = |destination: &str| {
            let found = mounts.iter().find(|mount| mount["Destination"] == destination);
            found.unwrap_or_else(|| panic!("{destination} in {mounts:?}"))
        };
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let is_there =
            |name: &str| docker.command(&["volume", "inspect", name]).output().expect("run docker").status.success();
        let (scratch, anonymous) = (mount("/scratch"), text(&mount("/anonymous")["Name"]));
        assert_eq!(is_there(&anonymous), anonymous_stays, "{keys}");
        assert_eq!(mount("/named")["Name"], own.as_str());
        if scratch["Type"] == "bind" {
            assert!(text(&scratch["Source"]).starts_with(&directory.path().display().to_string()), "{scratch}");
        } else {
            let name = text(&scratch["Name"]);
            assert_eq!(is_there(&name), lasting, "{keys}");
            if lasting {
                assert_eq!(docker.inspect(&name)["Options"]["o"], "size=1m");
                docker.run(&["volume", "rm", &name]);
            }
        }
        if anonymous_stays {
            docker.run(&["volume", "rm", &anonymous]);
        }
    }
    docker.run(&["volume", "rm", &own]);
}

#[test]
fn a_job_cannot_replace_a_fixed_entrypoint() {
    let image = docker().image(&["ENTRYPOINT [\"env\"]"]);
    let choice = json!({"name": image, "entrypoint": [""]});
    let (job, _) = inspected("disable_entrypoint_overwrite = true", waiting().set("image", choice));
    assert_eq!(job["Config"]["Entrypoint"], json!(["env"]));
}

/// The create requests for a job with a service; this machine need not support the settings in them.
fn asked(keys: &str, job: JobBuilder) -> Vec<Value> {
    let wanted = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&wanted);
    let proxy = EngineProxy::start(docker(), move |request| {
        let is = |end: &str| request.method == "POST" && request.path.ends_with(end);
        if is("/containers/create") || is("/networks/create") {
            noted.lock().expect("the thread must not panic").push(request.json());
        }
        match () {
            () if is("/start") => Treatment::Answer("HTTP/1.1 204 x\r\nConnection: close\r\n\r\n".to_owned()),
            () if is("/attach") || is("/networks/create") => Treatment::error(500, "enough"),
            () => Treatment::Forward,
        }
    });
    let gitlab = GitLab::start();
    let home = Scenario::containers()
        .engine(&proxy.host())
        .docker(&format!("wait_for_services_timeout = -1\n{keys}"))
        .home(&gitlab);
    let service = json!([{"name": "busybox:local", "alias": "side", "command": ["sleep", "600"]}]);
    let id = gitlab.queue(job.set("services", service).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert!(job.has("enough"), "{}", job.log());
    assert!(agent.wait().success());
    let wanted = wanted.lock().expect("the thread must not panic");
    wanted.clone()
}

#[test]
fn only_listed_images_and_services_are_privileged() {
    let image = docker().image(&[]);
    for (keys, of_job, of_service) in [
        ("privileged = true", true, true),
        ("privileged = true\nservices_privileged = false", true, false),
        ("services_privileged = true", false, true),
        ("privileged = true\nallowed_privileged_images = [\"other:*\"]", false, true),
        ("privileged = true\nallowed_privileged_images = [\"test-*:local\"]", true, true),
        ("privileged = true\nallowed_privileged_services = [\"other:*\"]", true, false),
        ("services_privileged = true\nallowed_privileged_services = [\"busybox:*\"]", false, true),
        ("allowed_privileged_images = [\"**\"]\nallowed_privileged_services = [\"**\"]", false, false),
    ] {
        let job = job(&["echo never"]).variable("IMAGE", &image).set("image", json!({"name": "$IMAGE"}));
        let made = asked(keys, job);
        let is_privileged = |made: &Value| made["HostConfig"]["Privileged"] == true;
        assert_eq!((is_privileged(&made[1]), is_privileged(&made[0])), (of_job, of_service), "{keys}");
    }
}

#[test]
fn requests_the_configured_devices_networks_and_init() {
    let flag = |name: &str| job(&["echo never"]).variable(name, "true");
    let made = asked("gpus = \"all\"\nservice_gpus = \"device=3\"", flag("FF_USE_INIT_WITH_DOCKER_EXECUTOR"));
    let requests = [&made[0], &made[1]].map(|made| &made["HostConfig"]["DeviceRequests"][0]);
    assert_eq!((&requests[1]["Count"], &requests[0]["DeviceIDs"]), (&json!(-1), &json!(["3"])));
    assert!(made.iter().all(|made| made["HostConfig"]["Init"] == true), "{made:?}");
    let made = asked("network_mtu = 1400\nenable_ipv6 = true", flag("FF_NETWORK_PER_BUILD"));
    assert_eq!(made[0]["Options"], json!({"com.docker.network.driver.mtu": "1400"}));
    assert_eq!(made[0]["EnableIPv6"], true);
}
