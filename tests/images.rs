//! Images of jobs: pull policies and logins, with a real registry.

use std::fs;

use serde_json::{Value, json};

use crate::support::docker::{Docker, docker, is_podman_run};
use crate::support::gitlab::{GitLab, Job};
use crate::support::job::{JobBuilder, job};
use crate::support::mayfly::Home;
use crate::support::moto::Moto;
use crate::support::registry::{PASSWORD, Registry, USER, login};
use crate::support::scenario::Scenario;
use crate::support::write_program;

fn run(gitlab: &GitLab, home: &Home, environment: &[(&str, &str)], job: JobBuilder) -> Job {
    home.run_with(gitlab, environment, job)
}

fn run_with(keys: &str, job: JobBuilder) -> Job {
    Scenario::containers().docker(keys).job(job)
}

fn of(image: &str) -> JobBuilder {
    job(&["echo ran"]).set("image", json!({"name": image}))
}

/// An image that only the registry has and no other test uses.
fn private(docker: &Docker, registry: &Registry<'_>, name: &str) -> String {
    registry.push(&docker.image(&[]), name)
}

const ALWAYS: &str = "allowed_pull_policies = [\"always\", \"if-not-present\", \"never\"]";

/// The sources of a login; `None` means that this source has no login.
#[derive(Default)]
struct Source<'a> {
    /// The name of the source in the log.
    name_in_log: &'a str,
    /// `DOCKER_AUTH_CONFIG` of the job.
    job: Option<&'a str>,
    /// `DOCKER_AUTH_CONFIG` in the runner's `environment`.
    runner: Option<&'a str>,
    /// The agent's `~/.docker/config.json`.
    file: Option<&'a str>,
    /// The credentials in the payload of the job.
    payload: Option<&'a Value>,
}

/// A home with the logins of `source`, and a credential helper `test` in its directory.
fn home_of(gitlab: &GitLab, source: &Source<'_>, registry: &Registry<'_>) -> Home {
    let runner = source.runner.map(|text| format!("environment = ['DOCKER_AUTH_CONFIG={text}']")).unwrap_or_default();
    let allowed = "[runners.mayfly]\nallowed_credential_helpers = [\"test\"]\n";
    let home =
        Scenario::containers().runner(&runner).docker(&format!("pull_policy = \"always\"\n{allowed}")).home(gitlab);
    if let Some(config) = source.file {
        fs::create_dir(home.path(".docker")).expect("create the directory");
        fs::write(home.path(".docker/config.json"), config).expect("write a file");
    }
    let helper = home.path("docker-credential-test");
    let script = format!(
        "#!/bin/sh\nread server; test \"$1 $server\" = 'get {}' || exit 1\n\
         echo '{{\"Username\": \"{USER}\", \"Secret\": \"{PASSWORD}\"}}'\n",
        registry.address
    );
    write_program(&helper, &script);
    home
}

#[test]
fn reads_the_login_from_each_source() {
    let docker = docker();
    let registry = Registry::start(docker);
    let image = private(docker, &registry, "team/app:1");
    let (right, wrong) = (login(&registry.address, USER, PASSWORD), login(&registry.address, USER, "wrong"));
    let given = json!([{"type": "registry", "url": registry.address, "username": USER, "password": PASSWORD}]);
    let helper = format!("{{\"credHelpers\": {{\"{}\": \"test\"}}}}", registry.address);
    let (right, wrong) = (right.as_str(), Some(wrong.as_str()));
    let none = Source::default;
    let gitlab = GitLab::start();
    for source in [
        Source { name_in_log: "$DOCKER_AUTH_CONFIG", job: Some(right), runner: wrong, file: wrong, ..none() },
        Source { name_in_log: "$DOCKER_AUTH_CONFIG", runner: Some(right), file: wrong, ..none() },
        Source { name_in_log: "config.json", file: Some(right), ..none() },
        Source { name_in_log: "job payload (GitLab Registry)", payload: Some(&given), ..none() },
        Source { name_in_log: "$DOCKER_AUTH_CONFIG", job: Some(&helper), ..none() },
    ] {
        let home = home_of(&gitlab, &source, &registry);
        let mut job = of(&image).masked("SECRET", PASSWORD);
        if let Some(text) = source.job {
            job = job.variable("DOCKER_AUTH_CONFIG", text);
        }
        if let Some(payload) = source.payload {
            job = job.set("credentials", payload.clone());
        }
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", home.path("").display());
        let job = run(&gitlab, &home, &[("PATH", &path)], job);
        assert_eq!(job.state, "success", "{}: {}", source.name_in_log, job.log());
        let line = job.lines().into_iter().find(|line| line.contains("Authenticating with credentials from"));
        assert!(
            line.as_ref().is_some_and(|line| line.contains(source.name_in_log)),
            "{}: {line:?}",
            source.name_in_log
        );
        assert!(!job.log().contains(PASSWORD), "{}", job.log());
        docker.run(&["rmi", "--force", &image]);
    }
}

#[test]
fn a_failed_pull_gives_the_cause_and_the_failure_reason() {
    let docker = docker();
    let registry = Registry::start(docker);
    let image = private(docker, &registry, "team/app:1");
    let with = |password: &str, image: &str| {
        of(image).variable("DOCKER_AUTH_CONFIG", &login(&registry.address, USER, password))
    };
    let never = |name: &str| job(&[]).set("image", json!({"name": name, "pull_policy": ["never"]}));
    let as_root = json!({"name": "busybox:local", "executor_opts": {"docker": {"user": "root"}}});
    let (system, configuration) = ("runner_system_failure", "runner_configuration_error");
    let gitlab = GitLab::start();
    for (keys, job, reason, part) in [
        ("", with("wrong", &image), configuration, "unauthorized"),
        ("", of(&image), configuration, "DOCKER_AUTH_CONFIG"),
        ("", with(PASSWORD, &image.replace(":1", ":2")), configuration, "check the name and the tag"),
        ("", of("Not A Name"), "image_pull_failure", "is not the name of an image"),
        ("allowed_images = [\"alpine:*\"]", of(&image), system, "allowed_images"),
        (ALWAYS, never("no-such:local"), system, "the machine does not have it"),
        ("", never(&image), configuration, "no pull policy is left"),
        ("memory = \"8m\"\nmemory_swap = \"6m\"", of(""), configuration, "memory_swap"),
        // Podman starts the container with the CPUs that the machine has.
        ("cpus = \"4096\"", of(""), if is_podman_run() { "" } else { configuration }, "CPUs"),
        ("security_opt = [\"seccomp=/none\"]", of(""), configuration, "security_opt"),
        ("allowed_users = [\"ci\"]", of("").set("image", as_root), system, "allowed_users"),
    ] {
        let home = Scenario::containers().docker(keys).home(&gitlab);
        let job = run(&gitlab, &home, &[], job);
        assert_eq!(job.failure_reason.as_deref().unwrap_or_default(), reason, "{keys} {part}: {}", job.log());
        if reason.is_empty() {
            continue;
        }
        let last = job.lines().into_iter().find(|line| line.contains("ERROR: Job failed")).unwrap_or_default();
        assert!(last.contains(part), "{keys} {part}: {}", job.log());
    }
}

#[test]
fn unknown_image_options_fail_the_job() {
    let image = json!({"name": "busybox:local", "executor_opts": {"docker": {"gpus": "all"}}});
    let job = run_with("", job(&["echo ran"]).set("image", image));
    assert_eq!((job.failure_reason.as_deref(), job.exit_code), (Some("runner_system_failure"), Some(3)));
    assert!(job.has("docker:gpus"), "{}", job.log());
}

#[test]
fn tries_pull_policies_in_order() {
    let docker = docker();
    let registry = Registry::start(docker);
    let image = private(docker, &registry, "team/app:1");
    let missing = docker.image(&[]);
    let local = format!("{}/team/only-here:1", registry.address);
    docker.run(&["tag", &missing, &local]);
    let job = of("").set("image", json!({"name": local, "pull_policy": ["always", "if-not-present"]}));
    let job = run_with(ALWAYS, job.variable("DOCKER_AUTH_CONFIG", &login(&registry.address, USER, PASSWORD)));
    assert_eq!(job.state, "success", "{}", job.log());
    for part in [
        "Using effective pull policy of [always if-not-present] for container",
        "WARNING: Failed to pull image with policy \"always\"",
        "Attempt #2: Trying \"if-not-present\" pull policy",
        "Using locally found image version due to \"if-not-present\" pull policy",
    ] {
        assert!(job.has(part), "{part}: {}", job.log());
    }
    // The runner's own policy need not be among the allowed ones if that of the job is.
    let keys = "pull_policy = \"always\"\nallowed_pull_policies = [\"if-not-present\"]";
    let chosen = of("").set("image", json!({"name": local, "pull_policy": ["if-not-present"]}));
    let job = run_with(keys, chosen);
    assert_eq!(job.state, "success", "{}", job.log());
    // An image that a job uses twice is pulled once.
    let services = json!([{"name": image, "alias": "one", "command": ["sleep", "600"]}]);
    let twice = of(&image).set("services", services);
    let twice = twice.variable("DOCKER_AUTH_CONFIG", &login(&registry.address, USER, PASSWORD));
    let job = run_with("pull_policy = \"always\"", twice);
    assert_eq!(job.state, "success", "{}", job.log());
    let pulls = job.lines().iter().filter(|line| line.contains("Pulling docker image")).count();
    assert_eq!(pulls, 1, "{}", job.log());
    assert!(job.has(&format!("for {image} with digest ")), "{}", job.log());
}

#[test]
fn an_interrupted_pull_fails_the_job_and_not_the_agent() {
    let docker = docker();
    let registry = Registry::start(docker);
    // The engine does not pull layers that it already has, so the test needs a layer that no other image has.
    let root = tempfile::tempdir().expect("a directory");
    let noise: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(root.path().join("noise"), [&noise[..], registry.address.as_bytes()].concat()).expect("write a file");
    let local = docker.image_of(root.path(), &[]);
    let image = registry.push(&local, "team/app:1");
    docker.run(&["rmi", &local]);
    registry.cut_largest_blob();
    let job = of(&image).variable("DOCKER_AUTH_CONFIG", &login(&registry.address, USER, PASSWORD));
    let job = run_with("pull_policy = \"always\"", job);
    assert_eq!(job.state, "failed", "{}", job.log());
    let reason = job.failure_reason.as_deref();
    assert!(matches!(reason, Some("image_pull_failure" | "runner_external_dependency_failure")), "{}", job.log());
    assert!(job.has("failed to pull image"), "{}", job.log());
}

#[test]
fn a_registry_that_hangs_does_not_extend_the_job_timeout() {
    let docker = docker();
    let registry = Registry::start(docker);
    let image = private(docker, &registry, "team/app:1");
    registry.freeze();
    let job = of(&image).timeout(10).variable("DOCKER_AUTH_CONFIG", &login(&registry.address, USER, PASSWORD));
    let job = run_with("pull_policy = \"always\"", job);
    assert_eq!(job.failure_reason.as_deref(), Some("job_execution_timeout"), "{}", job.log());
    assert!(job.has("Pulling docker image"), "{}", job.log());
}

#[test]
fn an_unreachable_registry_is_tried_three_times() {
    let job = run_with("pull_policy = \"always\"", of("127.0.0.1:1/team/app:1"));
    assert_eq!(job.failure_reason.as_deref(), Some("runner_external_dependency_failure"), "{}", job.log());
    let pulls = job.lines().iter().filter(|line| line.contains("Pulling docker image")).count();
    assert_eq!(pulls, 3, "{}", job.log());
    assert!(job.has("cannot reach the registry"), "{}", job.log());
}

#[test]
fn an_ecr_image_needs_only_the_instances_credentials() {
    let docker = Docker::start();
    let registry = Registry::of_amazon(&docker);
    let image = registry.push(&docker.image(&[]), "team/app:1");
    let moto = Moto::start();
    let (may, may_not) = (moto.user("may", &["ecr:GetAuthorizationToken"]), moto.user("may-not", &["s3:GetObject"]));
    moto.enforce_permissions();
    let gitlab = GitLab::start();
    let refused = if is_podman_run() { "unauthorized: authentication required" } else { "no basic auth credentials" };
    for (user, runner, state, part) in [
        (&may, "", "success", "Authenticating with credentials from Amazon ECR"),
        (&may_not, "", "failed", "WARNING: no token for 123456789012.dkr.ecr.eu-west-1.amazonaws.com: "),
        (&may, "[runners.mayfly]\necr_login = false", "failed", refused),
    ] {
        let home = Scenario::containers()
            .engine(&docker.host())
            .runner(runner)
            .docker("pull_policy = \"always\"")
            .home(&gitlab);
        let environment = [
            ("AWS_ENDPOINT_URL", moto.url.as_str()),
            ("AWS_ACCESS_KEY_ID", &user.access_key),
            ("AWS_SECRET_ACCESS_KEY", &user.secret_key),
        ];
        let job = run(&gitlab, &home, &environment, of(&image));
        assert_eq!(job.state, state, "{}", job.log());
        assert!(job.has(part), "{part}: {}", job.log());
        let reason = (state == "failed").then_some("runner_configuration_error");
        assert_eq!(job.failure_reason.as_deref(), reason, "{}", job.log());
        docker.run(&["rmi", "--force", &image]);
    }
}
