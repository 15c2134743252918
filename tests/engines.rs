//! Engines that are missing, hang, respond slowly, restart, return errors, lose containers, or require certificates.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::docker::{Docker, docker};
use crate::support::engine_proxy::{EngineProxy, Treatment};
use crate::support::gitlab::{GitLab, Job};
use crate::support::job::job;
use crate::support::mayfly::kill_shims;
use crate::support::pki::Pki;
use crate::support::scenario::Scenario;
use crate::support::send_signal;

/// Longer than the time after which the agent declares a hanging engine dead.
const LONG: Duration = Duration::from_secs(300);

/// A daemon that is stopped (SIGSTOP); it continues when this value is dropped.
struct Hung(i32);

impl Hung {
    fn new(engine: &Docker) -> Self {
        let hung = Self(engine.pid());
        hung.signal(Signal::SIGSTOP);
        hung
    }

    fn signal(&self, signal: Signal) {
        send_signal(self.0, signal);
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
    }
}

fn finished(gitlab: &GitLab, id: i64) -> Job {
    let over = |state: String| !matches!(state.as_str(), "pending" | "running" | "canceling");
    gitlab.wait_for(LONG, "the end of the job", |server| over(server.job_state(id)));
    gitlab.job(id)
}

fn assert_empty(engine: &Docker, log: &str) {
    assert_eq!(engine.run(&["ps", "-aq"]), "", "{log}");
}

#[test]
fn an_engine_that_hangs_while_a_script_runs_fails_only_that_job() {
    let engine = Docker::start();
    let gitlab = GitLab::start();
    let home = Scenario::containers().engine(&engine.host()).home(&gitlab);
    let lines = ["echo begun", "while :; do echo tick; sleep 1; done"];
    let id = gitlab.queue(job(&lines).after_script(&["echo never"]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "tick");
    let hung = Hung::new(&engine);
    let job = finished(&gitlab, id);
    assert_eq!(job.failure_reason.as_deref(), Some("runner_system_failure"), "{}", job.log());
    let last = job.lines().last().cloned().unwrap_or_default();
    for part in ["does not answer", "journalctl -u docker", "run the job again"] {
        assert!(last.contains(part), "{part} in {}", job.log());
    }
    agent.wait_for_log("polling paused runner=test reason=container_engine");
    let next = gitlab.queue(crate::support::job::job(&["echo well"]).build());
    assert_eq!(gitlab.job(next).state, "pending");
    drop(hung);
    assert_eq!(finished(&gitlab, next).state, "success", "{}", agent.log());
    agent.drain();
    assert_empty(&engine, &agent.log());
    gitlab.assert_strict();
}

#[test]
fn a_cancel_reaches_a_job_whose_engine_hangs() {
    let engine = Docker::start();
    let gitlab = GitLab::start();
    let runner = "[runners.mayfly]\nkill_grace = \"1s\"";
    let home = Scenario::containers().engine(&engine.host()).runner(runner).home(&gitlab);
    let id = gitlab.queue(job(&["echo begun", "sleep 600"]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    let hung = Hung::new(&engine);
    gitlab.cancel(id);
    let job = finished(&gitlab, id);
    assert_eq!(job.state, "canceled", "{}", job.log());
    drop(hung);
    agent.drain();
    assert_empty(&engine, &agent.log());
}

#[test]
fn a_slow_engine_runs_jobs() {
    let proxy = EngineProxy::start(docker(), |_| Treatment::ForwardAfter(Duration::from_millis(200)));
    let gitlab = GitLab::start();
    let home = Scenario::containers().engine(&proxy.host()).home(&gitlab);
    let id = gitlab.queue(job(&["echo well", "exit 4"]).after_script(&["echo after"]).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), job.exit_code), ("failed", Some(4)), "{}", job.log());
    assert!(job.has("well") && job.has("after"), "{}", job.log());
    assert!(agent.wait().success());
    assert_eq!(docker().containers(&format!("com.gitlab.gitlab-runner.job.id={id}")), Vec::<String>::new());
}

#[test]
fn an_engine_error_fails_only_its_job_and_is_quoted_in_the_log() {
    let nonsense =
        Treatment::Answer("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n<htm>".to_owned());
    let truncated = Treatment::Answer("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"Id\":".to_owned());
    for (end, treatment, part) in [
        ("/containers/create", Treatment::error(500, "out of paper"), "out of paper"),
        ("/containers/create", nonsense, "should be a container engine"),
        ("/containers/create", truncated, "the response is incomplete"),
        ("/attach", Treatment::error(503, "too many streams"), "too many streams"),
        ("/start", Treatment::error(500, "no cgroup left"), "no cgroup left"),
        ("/start", Treatment::Answer(String::new()), "broke"),
    ] {
        let failed = std::sync::atomic::AtomicBool::new(false);
        let proxy = EngineProxy::start(docker(), move |request| {
            let is_chosen = request.path.ends_with(end) && !failed.swap(request.path.ends_with(end), SeqCst);
            if is_chosen { treatment.clone() } else { Treatment::Forward }
        });
        let gitlab = GitLab::start();
        let home = Scenario::containers().engine(&proxy.host()).home(&gitlab);
        let ids = [gitlab.queue(job(&["echo one"]).build()), gitlab.queue(job(&["echo two"]).build())];
        let mut agent = home.start(&["--max-builds", "2"]);
        let [first, second] = ids.map(|id| gitlab.finished(id));
        assert_eq!(first.failure_reason.as_deref(), Some("runner_system_failure"), "{end}: {}", first.log());
        assert!(first.has(part), "{part} in {}", first.log());
        assert_eq!(second.state, "success", "{end}: {}", second.log());
        assert!(agent.wait().success());
        for id in ids {
            let left = docker().containers(&format!("com.gitlab.gitlab-runner.job.id={id}"));
            assert_eq!(left, Vec::<String>::new(), "{}", agent.log());
        }
        gitlab.assert_strict();
    }
}

/// Removes the container of a job by force, as a clean-up script on the machine might.
fn remove_container(id: i64) {
    let all = docker().containers(&format!("com.gitlab.gitlab-runner.job.id={id}"));
    docker().run(&["rm", "--force", &all[0]]);
}

#[test]
fn a_script_whose_container_disappears_is_retried_as_the_job_configures() {
    for (attempts, state) in [("1", "failed"), ("2", "success")] {
        let gitlab = GitLab::start();
        let home = Scenario::containers().home(&gitlab);
        let lines = [
            "n=$(cat n 2>/dev/null || echo 1); echo $((n + 1)) >n; echo \"run $n of script\"; [ $n = 2 ] || sleep 600",
        ];
        let id = gitlab.queue(
            job(&lines).after_script(&["echo after"]).variable("EXECUTOR_JOB_SECTION_ATTEMPTS", attempts).build(),
        );
        let mut agent = home.start(&["--once"]);
        gitlab.wait_for_log(id, "run 1 of script");
        remove_container(id);
        let job = gitlab.finished(id);
        assert_eq!(job.state, state, "{}", job.log());
        assert_eq!(job.has("run 2 of script"), attempts == "2", "{}", job.log());
        let expected =
            if attempts == "2" { "(attempt 2 of 2)" } else { "another program on this machine removes containers" };
        assert!(job.has(expected), "{}", job.log());
        assert!(agent.wait().success());
    }
}

#[test]
fn jobs_and_containers_from_before_a_reboot_are_reported_and_removed() {
    let engine = Docker::start();
    let gitlab = GitLab::start();
    let home = Scenario::containers()
        .engine(&engine.host())
        .docker("volumes = [\"/scratch\"]\ndisable_cache = true")
        .home(&gitlab);
    let service = json!([{"name": "busybox:local", "alias": "side", "command": ["sleep", "600"]}]);
    let script = job(&["echo begun; touch file", "sleep 600"]).variable("FF_NETWORK_PER_BUILD", "true");
    let id = gitlab.queue(script.set("services", service).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    assert!(kill_shims(id) > 0);
    engine.restart();
    assert_ne!(engine.run(&["ps", "-aq"]), "", "containers outlive their machine's boot");
    let mut record = home.record();
    record["identity"]["boot"] = "another".into();
    home.set_record(&record);
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!(job.failure_reason.as_deref(), Some("runner_system_failure"), "{}", job.log());
    assert!(job.lines().contains(&"begun".to_owned()) && job.has("the machine went down"), "{}", job.log());
    next.drain();
    assert_empty(&engine, &next.log());
    assert_eq!(engine.run(&["volume", "ls", "-q"]), "");
    assert_eq!(engine.run(&["network", "ls", "-q", "--filter", "label=com.gitlab.gitlab-runner.managed=true"]), "");
    let of_runner =
        std::fs::read_dir(home.path("builds")).expect("list the directory").flatten().next().expect("a runner");
    assert_eq!(std::fs::read_dir(of_runner.path()).expect("a directory").count(), 0, "the job's directory");
}

/// A directory for `tls_cert_path`: the trusted authority, and the client certificate.
fn certificates(trusted: &Pki, known: Option<&Pki>) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("write a file");
    write("ca.pem", &trusted.root);
    if let Some(known) = known {
        let client = known.server();
        write("cert.pem", &client.chain);
        write("key.pem", &client.key);
    }
    directory
}

#[test]
fn an_engine_with_tls_is_verified_and_verifies_its_clients() {
    let (pki, other) = (Pki::new(), Pki::new());
    let own = certificates(&pki, Some(&pki));
    let path = own.path().display();
    let engine = Docker::with_arguments(&format!(
        "-H tcp://127.0.0.1:2376 --tlsverify --tlscacert={path}/ca.pem --tlscert={path}/cert.pem --tlskey={path}/key.pem"
    ));
    let with = |directory: &tempfile::TempDir| {
        format!("tls_verify = true\ntls_cert_path = \"{}\"", directory.path().display())
    };
    let (stranger, unknown, nobody) =
        (certificates(&other, Some(&pki)), certificates(&pki, Some(&other)), certificates(&pki, None));
    engine.within(|| {
        for (keys, part) in [
            (with(&own), ""),
            (with(&stranger), "certificate of the container engine at tcp://127.0.0.1:2376 is not trusted"),
            (with(&unknown), "does not accept the client's certificate"),
            (with(&nobody), "does not accept the client's certificate"),
            (String::new(), "set `tls_verify = true`"),
        ] {
            let gitlab = GitLab::start();
            let home = Scenario::containers().engine("tcp://127.0.0.1:2376").docker(&keys).home(&gitlab);
            let lines = ["seq 1 5000; echo aside >&2", "exit 5"];
            let id = gitlab.queue(job(&lines).after_script(&["echo after"]).build());
            let mut agent = home.start(&["--once"]);
            if !part.is_empty() {
                agent.wait_for_log("polling paused runner=test reason=container_engine");
                assert!(agent.log().contains(part), "{part} in {}", agent.log());
                assert_eq!(gitlab.job(id).state, "pending");
                continue;
            }
            let job = finished(&gitlab, id);
            assert_eq!((job.state.as_str(), job.exit_code), ("failed", Some(5)), "{}", job.log());
            assert!(job.has("5000") && job.has("aside") && job.has("after"), "{}", job.log());
            assert!(agent.wait().success(), "{}", agent.log());
        }
    });
    assert_empty(&engine, "");
}

#[test]
fn a_runner_without_an_engine_takes_no_job_and_says_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let odd = directory.path().join("odd.sock");
    let listener = std::os::unix::net::UnixListener::bind(&odd).expect("bind the address");
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9\r\n\r\n");
        }
    });
    let missing = directory.path().join("none.sock");
    for (socket, part) in [(&missing, "install or start it"), (&odd, "should be a container engine")] {
        let gitlab = GitLab::start();
        let home = Scenario::containers().engine(&format!("unix://{}", socket.display())).home(&gitlab);
        let id = gitlab.queue(job(&["echo never"]).build());
        let agent = home.start(&[]);
        agent.wait_for_log("polling paused runner=test reason=container_engine");
        assert!(agent.log().contains(part), "{part} in {}", agent.log());
        assert_eq!(gitlab.job(id).state, "pending");
        gitlab.assert_strict();
    }
}

#[test]
fn an_agent_starts_without_its_engine() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().engine("unix:///nonexistent/engine.sock").home(&gitlab);
    let mut agent = home.start(&[]);
    agent.wait_for_log("polling paused runner=test reason=container_engine");
    agent.wait_for_log("of jobs yet; retrying");
    agent.drain();
    assert!(!agent.log().contains("not all containers of jobs are removed"), "{}", agent.log());
    assert_eq!(agent.log().matches("of jobs yet; retrying").count(), 1, "{}", agent.log());
    gitlab.assert_strict();
}

#[test]
fn an_engine_that_hangs_does_not_extend_the_job_timeout() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("hung.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind the address");
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        // This engine answers pings and nothing else.
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap_or(0);
            if request[..length].windows(6).any(|part| part == b"/_ping") {
                let head = "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK";
                let _ = stream.write_all(head.as_bytes());
            } else {
                kept.push(stream);
            }
        }
    });
    let gitlab = GitLab::start();
    let home = Scenario::containers().engine(&format!("unix://{}", socket.display())).home(&gitlab);
    let id = gitlab.queue(job(&["echo never"]).timeout(3).build());
    let _agent = home.start(&[]);
    let done = gitlab.finished(id);
    assert_eq!(done.failure_reason.as_deref(), Some("job_execution_timeout"), "{}", done.log());
}

#[test]
fn an_engine_restart_fails_only_its_running_jobs() {
    let engine = Docker::start();
    let gitlab = GitLab::start();
    let home = Scenario::containers().engine(&engine.host()).home(&gitlab);
    let id = gitlab.queue(job(&["echo begun", "sleep 600"]).build());
    let next = gitlab.queue(job(&["echo well"]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    engine.restart();
    let job = gitlab.finished(id);
    assert_eq!(job.failure_reason.as_deref(), Some("runner_system_failure"), "{}", job.log());
    assert!(job.log().to_lowercase().contains("run the job again"), "{}", job.log());
    assert_eq!(gitlab.finished(next).state, "success");
    agent.drain();
    assert_eq!(engine.run(&["ps", "-aq"]), "");
}
