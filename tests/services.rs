//! Services of jobs: reachable by name, awaited, their output shown on failure. The agent runs in the network namespace
//! of the engine, as on an instance.

use serde_json::json;

use crate::support::docker::docker;
use crate::support::gitlab::{GitLab, Job};
use crate::support::job::{JobBuilder, job};
use crate::support::scenario::Scenario;

/// Runs a job on an agent of its own, in the engine's network namespace.
fn run(keys: &str, job: JobBuilder) -> Job {
    docker().within(|| {
        let gitlab = GitLab::start();
        let home = Scenario::containers().docker(keys).home(&gitlab);
        let id = gitlab.queue(job.build());
        let mut agent = home.start(&["--once"]);
        let job = gitlab.finished(id);
        assert!(agent.wait().success(), "{}", agent.log());
        let label = format!("label=com.gitlab.gitlab-runner.job.id={id}");
        let left = docker().run(&["ps", "-aq", "--filter", &label]);
        assert_eq!(left, "", "{}", agent.log());
        job
    })
}

/// A server that starts to listen after a second and sends a line to each client.
const SERVER: &str =
    "sleep 1; echo \"serving $GREETING\"; while :; do echo \"hello from $GREETING\" | nc -l -p 8080; done";

fn service(alias: &str, command: &str) -> serde_json::Value {
    json!({
        "name": "busybox:local", "alias": alias, "command": ["sh", "-c", command],
        "variables": [
            {"key": "GREETING", "value": "$WHO", "public": true},
            {"key": "HEALTHCHECK_TCP_PORT", "value": "8080", "public": true},
        ],
    })
}

#[test]
fn a_job_reaches_its_services_by_name() {
    for (network, flag) in [("the bridge", "false"), ("a network of the job's own", "true")] {
        let script = job(&[
            "until nc web 8080 </dev/null | grep hello; do sleep 0.1; done",
            "until nc busybox 8080 </dev/null | grep hello; do sleep 0.1; done",
        ]);
        let script = script
            .set("services", json!([service("web,other", SERVER)]))
            .variable("WHO", "the service")
            .variable("FF_NETWORK_PER_BUILD", flag);
        let job = run("", script);
        assert_eq!(job.state, "success", "{network}: {}", job.log());
        let lines = job.lines();
        assert_eq!(lines.iter().filter(|line| *line == "hello from the service").count(), 2, "{network}: {lines:#?}");
        assert!(job.has("Starting service busybox:local...") && job.has("Waiting for services"), "{lines:#?}");
        assert!(!job.has("probably didn't start"), "{lines:#?}");
    }
}

#[test]
fn a_service_that_does_not_start_is_reported_with_its_output_and_the_job_runs() {
    let services = json!([
        service("ends", "echo the port is taken >&2; exit 3"),
        service("deaf", "echo I listen to nobody; sleep 600"),
        {"name": docker().image(&["CMD [\"sleep\", \"600\"]"]), "alias": "portless"},
    ]);
    let job = run("wait_for_services_timeout = 2", job(&["echo ran"]).set("services", services).masked("X", "nobody"));
    assert_eq!(job.state, "success", "{}", job.log());
    for part in [
        "*** WARNING: Service busybox:local probably didn't start properly.",
        "Health check error: the container exited with code 3",
        "the port is taken",
        "Health check error: no connection to port 8080 of ",
        "I listen to [MASKED]",
        "*********",
        "Not waiting for service ",
        "alias `busybox` of service busybox:local is already used by another service",
        "ran",
    ] {
        assert!(job.has(part), "{part}: {:#?}", job.lines());
    }
}

#[test]
fn a_service_that_cannot_be_pulled_or_started_fails_the_job() {
    for (keys, name, command, reason, part) in [
        ("", "busybox:local", "/no/such/program", "runner_system_failure", "cannot start service busybox:local"),
        ("", "127.0.0.1:1/none:1", "sleep", "runner_external_dependency_failure", "failed to pull image"),
        ("allowed_services = [\"redis:*\"]", "busybox:local", "sleep", "runner_system_failure", "allowed_services"),
        ("services_limit = 0", "busybox:local", "sleep", "runner_system_failure", "services_limit"),
        ("", "Bad Name", "sleep", "image_pull_failure", "is not the name of an image"),
    ] {
        let services = json!([{"name": name, "command": [command]}]);
        let job = run(keys, job(&["echo ran"]).set("services", services));
        assert_eq!(job.failure_reason.as_deref(), Some(reason), "{part}: {}", job.log());
        assert!(job.has(part) && !job.lines().contains(&"ran".to_owned()), "{part}: {:#?}", job.lines());
    }
}

#[test]
fn configured_services_get_only_public_variables() {
    let keys = "wait_for_services_timeout = -1\nallowed_services = [\"none\"]\n[[runners.docker.services]]\n\
                name = \"busybox:local\"\nalias = \"configured\"\nenvironment = [\"OWN=yes\"]\n\
                entrypoint = [\"sh\", \"-c\"]\n\
                command = ['while :; do echo \"$OWN $CI_JOB_NAME [$PRIVATE]\" | nc -l -p 80; done']\n";
    let script = job(&["until nc configured 80 </dev/null | grep yes; do sleep 0.1; done"]);
    let mut script = script.build();
    script["variables"].as_array_mut().expect("a list").push(json!({"key": "PRIVATE", "value": "x", "public": false}));
    let with = |variables| job(&[]).set("variables", variables).set("steps", script["steps"].clone());
    let job = run(keys, with(script["variables"].clone()));
    assert_eq!(job.state, "success", "{}", job.log());
    assert!(job.has("yes unit []"), "{:#?}", job.lines());
    assert!(!job.has("Waiting for services"), "{:#?}", job.lines());
}

#[test]
fn shows_all_output_of_services_on_request() {
    let script = job(&["until nc web 8080 </dev/null | grep hello; do sleep 0.1; done"])
        .set("services", json!([service("web", SERVER)]))
        .variable("WHO", "it")
        .variable("CI_DEBUG_SERVICES", "true");
    let job = run("", script);
    assert_eq!(job.state, "success", "{}", job.log());
    let line = job.lines().into_iter().find(|line| line.contains("[service:busybox-web-"));
    assert!(line.is_some_and(|line| line.contains("serving it")), "{}", job.log());
}
