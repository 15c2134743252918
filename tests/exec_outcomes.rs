//! `mayfly exec`: what the user sees of retries, allowed failures and delays, and interrupts at inconvenient times.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::exec::{assert_nothing_left, checkout, command, exec, exec_with, run_directory};
use crate::support::docker::docker;
use crate::support::mayfly::Home;
use crate::support::{send_signal, wait_until};

#[test]
fn an_allowed_failure_of_a_single_job_is_seen() {
    let home = checkout("a: {script: exit 7, allow_failure: true}\n");
    let (output, text) = exec(&home, &[]);
    assert!(output.status.success() && text.contains("a: exit status 7; the job is allowed to fail"), "{text}");
}

#[test]
fn the_output_of_a_job_shows_its_retries() {
    let home = checkout("a: {script: [echo once, exit 7], retry: 1}\nb: {script: echo}\n");
    let report = home.path("report.json").display().to_string();
    let (_, text) = exec(&home, &["-j1", "--report", &report]);
    let attempt = "$ echo once\nonce\n$ exit 7\n";
    let expected = format!("== a (test)\n{attempt}exit status 7; starting attempt 2\n{attempt}== a: failed");
    assert!(text.contains(&expected), "{text}");
    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(report).expect("a report")).expect("must be JSON");
    let log = fs::read_to_string(report["jobs"]["a"]["log"].as_str().expect("a path")).expect("a log");
    assert_eq!(log, format!("{attempt}exit status 7; starting attempt 2\n{attempt}"));
}

#[test]
fn jobs_that_need_an_optional_manual_job_are_skipped_until_the_user_starts_it() {
    let home = checkout(
        "gate: {script: echo, when: manual}\nbehind: {script: echo, needs: [gate]}\nlast: {script: echo, needs: [behind]}\ncleanup: {script: echo, when: always, needs: [gate]}\n",
    );
    let report = home.path("report.json").display().to_string();
    for (arguments, expected) in
        [(&[][..], ["manual", "skipped", "skipped", "success"]), (&["--manual", "gate"], ["success"; 4])]
    {
        let (output, text) = exec(&home, &[&["--report", &report], arguments].concat());
        assert!(output.status.success(), "{text}");
        let read: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(&report).expect("a report")).expect("must be JSON");
        let status = |job: &str| read["jobs"][job]["status"].as_str().expect("a status").to_owned();
        assert_eq!(["gate", "behind", "last", "cleanup"].map(status), expected, "{text}");
    }
}

#[test]
fn a_trigger_job_whose_child_pipeline_runs_no_job_does_not_pass() {
    let home = checkout(
        "kid: {trigger: {include: child.yml, strategy: depend}}\nmirror: {trigger: {include: child.yml, strategy: mirror}}\nalone: {trigger: {include: child.yml}}\n",
    );
    fs::write(
        home.path("checkout/child.yml"),
        "gate: {script: echo, when: manual}\nlast: {script: echo, needs: [gate]}\n",
    )
    .expect("write a file");
    let report = home.path("report.json").display().to_string();
    for (arguments, code, expected) in
        [(&[][..], 1, ["failed", "skipped", "success"]), (&["--manual", "*/gate"], 0, ["success"; 3])]
    {
        let (output, text) = exec(&home, &[&["--report", &report], arguments].concat());
        let read: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(&report).expect("a report")).expect("must be JSON");
        let status = |job: &str| read["jobs"][job]["status"].as_str().expect("a status").to_owned();
        assert_eq!(["kid", "mirror", "alone"].map(status), expected, "{text}");
        assert_eq!((output.status.code(), text.contains("ran no job")), (Some(code), code == 1), "{text}");
    }
}

#[test]
fn a_job_with_a_dotenv_report_that_gitlab_refuses_fails() {
    let home = checkout(
        "good: {stage: build, script: 'echo \"A = 1 \" > v', artifacts: {reports: {dotenv: v}}}\nbad: {stage: build, script: 'printf \"B=2\\n\\n\" > v', allow_failure: true, artifacts: {reports: {dotenv: v}}}\nlook: {script: 'echo \"[$A$B]\"'}\n",
    );
    let (output, text) = exec(&home, &[]);
    assert!(output.status.success() && text.contains("\n[1]\n"), "{text}");
    assert!(text.contains("bad: line 2 of the dotenv report is not KEY=value"), "{text}");
}

#[test]
fn a_delay_is_announced() {
    let home = checkout("a: {script: echo, when: delayed, start_in: 1 second}\n");
    let (output, text) = exec(&home, &[]);
    assert!(output.status.success() && text.contains("a starts in 1.0s; --skip-delays"), "{text}");
    let (output, text) = exec(&home, &["--skip-delays"]);
    assert!(output.status.success() && !text.contains("starts in"), "{text}");
}

#[test]
fn a_run_is_refused_if_its_results_cannot_be_written() {
    let home = checkout("a: {script: 'echo ran'}\n");
    fs::write(home.path("file"), "").expect("write a file");
    let inside = home.path("file/results").display().to_string();
    for option in ["--artifacts", "--report", "--junit"] {
        let (output, text) = exec(&home, &[option, &inside]);
        assert!(output.status.code() == Some(2) && text.contains("no job was started"), "{option}: {text}");
        assert!(!text.contains("ran"), "{option}: {text}");
    }
    let new = home.path("new");
    let report = new.join("junit.xml").display().to_string();
    let (output, text) = exec(&home, &["--junit", &report]);
    assert!(output.status.success() && Path::new(&report).exists(), "{text}");
}

#[test]
fn the_warnings_of_a_child_pipeline_are_shown() {
    let home = checkout("kid: {trigger: {include: child.yml, strategy: depend}}\n");
    fs::write(home.path("checkout/child.yml"), "c: {script: echo, release: {tag_name: v1, description: x}}\n")
        .expect("write a file");
    let (output, text) = exec(&home, &[]);
    assert!(output.status.success() && text.contains("kid: child.yml:1: note: `release` has no effect"), "{text}");
}

#[test]
fn names_of_jobs_cannot_control_the_terminal() {
    let home = checkout("\"a\\e[2J\": {script: exit 1}\nb: {script: echo}\n");
    let (output, text) = exec(&home, &[]);
    assert!(output.status.code() == Some(1) && !text.contains('\x1b'), "{text:?}");
}

/// An engine that holds the first request to create a container until the test lets it go.
struct SlowEngine {
    /// Receives when the request has arrived.
    arrived: Receiver<()>,
    go: Sender<()>,
}

impl SlowEngine {
    fn start(socket: &Path, engine: &str) -> Self {
        let listener = UnixListener::bind(socket).expect("a socket");
        let (arrival, arrived) = channel();
        let (go, may_go) = channel();
        let hold = Arc::new(Mutex::new(Some((arrival, may_go))));
        let engine = engine.strip_prefix("unix://").expect("a socket").to_owned();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let engine = UnixStream::connect(&engine).expect("the engine");
                let answers = (engine.try_clone().expect("a copy"), client.try_clone().expect("a copy"));
                let hold = Arc::clone(&hold);
                thread::spawn(move || copy(answers.0, answers.1, |_| {}));
                thread::spawn(move || {
                    copy(client, engine, |bytes| {
                        let is_meant = bytes.windows(19).any(|part| part == b"/containers/create?");
                        if let Some((arrival, go)) = is_meant.then(|| hold.lock().expect("a lock").take()).flatten() {
                            let _ = arrival.send(());
                            let _ = go.recv();
                        }
                    });
                });
            }
        });
        Self { arrived, go }
    }
}

fn copy(mut from: UnixStream, mut to: UnixStream, inspect: impl Fn(&[u8])) {
    let mut buffer = [0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        inspect(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[test]
fn an_interrupt_while_the_engine_creates_a_container_leaves_none() {
    let docker = docker();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let home = checkout("a: {image: 'busybox:local', script: echo}\n");
        let socket = home.path("engine");
        let engine = SlowEngine::start(&socket, &docker.host());
        let shown = home.path("shown");
        let mut command: Command = command(&home, &[]);
        command.env("DOCKER_HOST", format!("unix://{}", socket.display())).stderr(Stdio::null());
        let mut child =
            command.stdout(fs::File::create(&shown).expect("create the file")).spawn().expect("start mayfly");
        engine.arrived.recv_timeout(Duration::from_secs(60)).expect("a request to create a container");
        let label = format!("io.mayfly.state={}", run_directory(&home));
        send_signal(child.id().cast_signed(), signal);
        if signal == Signal::SIGINT {
            wait_until("the run stops", || {
                fs::read_to_string(&shown).is_ok_and(|text| text.contains("stopping 1 job"))
            });
        }
        // Time passes on purpose: the run must not end before the engine answers, and no sign shows that it waits.
        thread::sleep(Duration::from_millis(300));
        engine.go.send(()).expect("a request waits");
        let code = child.wait().expect("the run must end").code();
        assert_eq!(code, (signal == Signal::SIGINT).then_some(130));
        wait_until("the run's directory is removed", || run_directory(&home) == "none");
        assert_eq!(docker.containers(&label), [""; 0], "{signal}");
        assert_nothing_left(&home);
    }
}

#[test]
fn an_interrupt_before_the_first_job_ends_the_run() {
    let home = checkout("a: {image: 'registry.invalid/none', script: echo}\n");
    let socket = home.path("engine");
    // An engine that accepts connections and never answers.
    let listener = UnixListener::bind(&socket).expect("a socket");
    let mut command = command(&home, &[]);
    command.env("DOCKER_HOST", format!("unix://{}", socket.display())).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("start mayfly");
    let connection = listener.accept().expect("a connection");
    send_signal(child.id().cast_signed(), Signal::SIGTERM);
    assert_eq!(child.wait().expect("the run must end").code(), Some(130));
    wait_until("the run's directory is removed", || run_directory(&home) == "none");
    drop(connection);
}

/// A command whose standard output is a full disk.
fn on_full_disk(home: &Home, arguments: &[&str]) -> (Option<i32>, String) {
    let full = File::options().write(true).open("/dev/full").expect("open the device");
    let output = command(home, arguments).stdout(full).output().expect("run mayfly");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_full_disk_for_the_output_is_an_error() {
    let home = checkout("a: {script: echo}\nb: {stage: deploy, script: echo}\n");
    for arguments in [&[][..], &["a"], &["--list"], &["--list", "--json"], &["--preview"], &["--graph"]] {
        let (code, text) = on_full_disk(&home, arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {text}");
        assert_eq!(text, "mayfly: cannot write to standard output: No space left on device (os error 28)\n");
    }
    assert_nothing_left(&home);
}

#[test]
fn help_on_a_full_disk_is_an_error() {
    let home = Home::empty();
    for arguments in
        [&["--help"][..], &["-h"], &["--version"], &["exec", "--help"], &["run", "-h"], &["lint", "--help"]]
    {
        let full = File::options().write(true).open("/dev/full").expect("open the device");
        let output = home.command(arguments).stdout(full).output().expect("run mayfly");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert_eq!(text, "mayfly: cannot write to standard output: No space left on device (os error 28)\n");
        let complete = home.command(arguments).output().expect("run mayfly");
        assert!(complete.status.success() && complete.stdout.ends_with(b"\n"), "{arguments:?}");
    }
}

#[test]
fn a_report_that_cannot_be_written_is_an_error_after_the_summary() {
    let home = checkout("a: {script: 'echo ran'}\nb: {script: 'exit 3'}\n");
    std::os::unix::fs::symlink("/dev/full", home.path("full")).expect("create a link");
    let full = home.path("full").display().to_string();
    for (job, option) in [("a", "--report"), ("a", "--junit"), ("b", "--junit")] {
        let (output, text) = exec(&home, &[job, option, &full]);
        assert_eq!(output.status.code(), Some(1), "{option}: {text}");
        assert!(text.contains("full: No space left on device"), "{option}: {text}");
        assert!(text.contains(if job == "a" { "\nran\n" } else { "failed command: exit 3" }), "{option}: {text}");
    }
}

#[test]
fn a_log_beside_the_report_that_cannot_be_written_is_a_warning() {
    let home = checkout("a: {script: 'echo ran'}\n");
    let (report, logs) = (home.path("report.json"), home.path("report.json.logs"));
    let report = report.display().to_string();
    let (_, text) = exec(&home, &["--report", &report]);
    assert!(!text.contains("warning"), "{text}");
    let name = fs::read_dir(&logs).expect("the logs").next().expect("a log").expect("a log").file_name();
    // The run empties the directory, so the log is replaced while the first job of the file runs.
    let log = logs.join(&name).display().to_string();
    let file = format!("first: {{stage: build, script: 'ln -s /dev/full {log}'}}\na: {{script: 'echo ran'}}\n");
    fs::write(home.path("checkout/.gitlab-ci.yml"), file).expect("write a file");
    let (output, text) = exec(&home, &["--report", &report]);
    assert!(output.status.success() && text.contains("\nran\n"), "{text}");
    assert!(text.contains(&format!("warning: the output of the job is incomplete in {log}: No space left")), "{text}");
}

#[test]
fn the_error_for_a_missing_engine_is_for_developers() {
    let home = checkout("a: {image: alpine, script: echo}\n");
    for host in ["unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1"] {
        let (output, text) = exec_with(&home, &[], &[("DOCKER_HOST", host)]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(host) && text.contains("set DOCKER_HOST") && text.contains("--shell"), "{text}");
        assert!(!text.contains("[runners"), "{text}");
    }
}
