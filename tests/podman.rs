//! Podman as the container engine: its Docker-compatible socket, served as root and by an ordinary user.
//!
//! These are smoke tests. `MAYFLY_TEST_ENGINE=podman` runs the other tests of containers on Podman as well.

use serde_json::json;

use crate::support::docker::{Docker, EngineKind, ROOTLESS_UID};
use crate::support::git::GitServer;
use crate::support::gitlab::{GitLab, Job};
use crate::support::job::job;
use crate::support::registry::{PASSWORD, Registry, USER, login};
use crate::support::scenario::Scenario;

/// Runs jobs with sources, a service, caches, artifacts and an exit status; twice, so that a checkout is reused.
/// Asserts that no container remains.
fn run_whole_jobs(engine: &Docker, uid: Option<u32>) {
    let root = tempfile::tempdir().expect("a directory");
    let (gitlab, git) = (GitLab::start(), GitServer::start(root.path()));
    let (url, sha) = git.repository("team/demo", &[("file.txt", "from git\n")]);
    let mut home =
        Scenario::containers().engine(&engine.host()).docker("wait_for_services_timeout = 30\n").home(&gitlab);
    if let Some(uid) = uid {
        home.run_as(uid);
    }
    let service = "while :; do echo 'from the service' | nc -l -p 8080; done";
    let script = [
        "cat file.txt; cat kept/x || true; cat out/y || true",
        "until nc side 8080 </dev/null | grep service; do sleep 0.1; done",
        "mkdir -p kept out; echo cached >kept/x; echo made >out/y; echo \"to $CI_JOB_STATUS\"",
        "exit 7",
    ];
    let asked = || {
        let asked = job(&script).sources(&url, &sha).after_script(&["echo \"after $CI_JOB_STATUS\"; ls /builds/team"]);
        let asked = asked
            .set("services", json!([{"name": "busybox:local", "alias": "side", "command": ["sh", "-c", service]}]));
        let asked =
            asked.set("cache", json!([{"key": "k", "paths": ["kept"], "policy": "pull-push", "when": "always"}]));
        let artifact = json!([{"name": "out", "paths": ["out"], "artifact_format": "zip", "when": "always"}]);
        asked.set("artifacts", artifact).variable("FF_NETWORK_PER_BUILD", "true")
    };
    let ids = [gitlab.queue(asked().build()), gitlab.queue(asked().build())];
    let mut agent = home.start(&["--max-builds", "2"]);
    for (index, id) in ids.into_iter().enumerate() {
        let job: Job = gitlab.finished(id);
        assert_eq!((job.state.as_str(), job.exit_code), ("failed", Some(7)), "{}\n{}", job.log(), agent.log());
        for part in ["from git", "from the service", "to running", "after failed"] {
            assert!(job.has(part), "{part} in {}", job.log());
        }
        assert_eq!(job.lines().contains(&"cached".to_owned()), index == 1, "{}", job.log());
        assert!(!job.has("probably didn't start"), "{}", job.log());
        assert_eq!(job.artifacts.len(), 1, "{}", job.log());
    }
    assert!(agent.wait().success(), "{}", agent.log());
    gitlab.assert_strict();
    let label = "label=com.gitlab.gitlab-runner.managed=true";
    let left = engine.run(&["ps", "-aq", "--filter", label]) + &engine.run(&["network", "ls", "-q", "--filter", label]);
    assert_eq!(left, "", "{}", agent.log());
}

/// Podman creates the first process of a container earlier than Docker does.
fn assert_missing_shell_is_reported(engine: &Docker) {
    let root = tempfile::tempdir().expect("a directory");
    std::fs::write(root.path().join("file"), "").expect("write a file");
    let image = engine.image_of(root.path(), &["CMD [\"/file\"]"]);
    let gitlab = GitLab::start();
    let home = Scenario::containers().engine(&engine.host()).home(&gitlab);
    let id = gitlab.queue(job(&["echo never"]).set("image", json!({"name": image})).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert!(agent.wait().success(), "{}", agent.log());
    assert_eq!(job.failure_reason.as_deref(), Some("script_failure"), "{}", job.log());
    assert!(job.has("cannot run scripts: it has no shell"), "{}", job.log());
}

/// A pull from a registry with a password and plain HTTP, with and without a login.
fn assert_images_are_pulled(engine: &Docker) {
    let registry = Registry::start(engine);
    let image = registry.push(&engine.image(&[]), "team/app:1");
    let gitlab = GitLab::start();
    let scenario = Scenario::containers().engine(&engine.host()).docker("pull_policy = \"always\"");
    let asked = || job(&["echo pulled"]).set("image", json!({"name": image}));
    let login = login(&registry.address, USER, PASSWORD);
    let pulled = scenario.home(&gitlab).run(&gitlab, asked().variable("DOCKER_AUTH_CONFIG", &login));
    assert!(pulled.state == "success" && pulled.has("pulled"), "{}", pulled.log());
    let refused = scenario.home(&gitlab).run(&gitlab, asked());
    assert_eq!(refused.failure_reason.as_deref(), Some("runner_configuration_error"), "{}", refused.log());
    assert!(refused.has("unauthorized"), "{}", refused.log());
}

/// The keys of `[runners.docker]` that a script can observe. `docker inspect` has other forms on Podman.
fn assert_settings_have_effect(engine: &Docker) {
    let keys = "memory = \"64m\"\ncpus = \"0.5\"\ncpuset_cpus = \"0\"\noom_score_adjust = 500\nshm_size = 1048576\n\
                cap_drop = [\"CHOWN\"]\nsecurity_opt = [\"no-new-privileges\"]\ngroup_add = [\"1234\"]\n\
                devices = [\"/dev/null:/dev/zilch:r\"]\nhostname = \"own-name\"\ndns = [\"10.0.0.53\"]\n\
                dns_search = [\"corp.test\"]\nextra_hosts = [\"far:10.0.0.9\"]\nruntime = \"runc\"\n\
                volumes = [\"/keep\"]\n[runners.docker.tmpfs]\n\"/scratch\" = \"size=1m\"\n\
                [runners.docker.sysctls]\n\"net.ipv4.ip_forward\" = \"0\"\n";
    let script = [
        "echo name $(hostname); echo oom $(cat /proc/self/oom_score_adj); echo forward $(cat /proc/sys/net/ipv4/ip_forward)",
        "echo groups \" $(id -G) \"; [ -c /dev/zilch ] && echo device; grep 10.0.0.9 /etc/hosts | grep far",
        "cat /etc/resolv.conf; for d in /scratch /dev/shm; do echo $d $(df -k $d | awk 'END {print $2}'); done",
        "echo cpus $(grep -c ^processor /proc/cpuinfo) $(grep Cpus_allowed_list /proc/self/status)",
        "grep NoNewPrivs /proc/self/status; touch x; chown 7 x 2>/dev/null || echo no chown; mkdir -p /keep && touch /keep/y",
    ];
    let gitlab = GitLab::start();
    let done = Scenario::containers().engine(&engine.host()).docker(keys).home(&gitlab).run(&gitlab, job(&script));
    assert_eq!(done.state, "success", "{}", done.log());
    let all = done.lines().join("\n");
    for part in [
        "name own-name",
        "oom 500",
        "forward 0",
        " 1234 ",
        "\ndevice",
        "corp.test",
        "10.0.0.53",
        "/scratch 1024",
        "/dev/shm 1024",
        "Cpus_allowed_list: 0",
        "NoNewPrivs:\t1",
        "no chown",
    ] {
        assert!(all.contains(part), "{part} in {all}");
    }
}

#[test]
fn podman_runs_jobs_as_root() {
    let engine = Docker::of_kind(EngineKind::Podman);
    assert_settings_have_effect(&engine);
    assert_images_are_pulled(&engine);
    run_whole_jobs(&engine, None);
    assert_missing_shell_is_reported(&engine);
}

#[test]
fn podman_runs_jobs_of_an_ordinary_user() {
    run_whole_jobs(&Docker::of_kind(EngineKind::RootlessPodman), Some(ROOTLESS_UID));
}
