//! `mayfly status`: an agent in a terminal.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;

use crate::metrics::wait_for;
use crate::support::gitlab::GitLab;
use crate::support::job::{job, until_there};
use crate::support::mayfly::Home;
use crate::support::output_text;
use crate::support::ports::free_address;
use crate::support::scenario::Scenario;

fn status(home: &Home, arguments: &[&str]) -> (bool, String) {
    let config = home.config().display().to_string();
    let output = home.call(&[&["status", "--config", &config], arguments].concat());
    (output.status.success(), output_text(&output))
}

#[test]
fn shows_the_jobs_of_an_agent_and_the_idle_time_that_is_left() {
    let gitlab = GitLab::start();
    let address = free_address();
    let home = Scenario::shell()
        .config(&format!("concurrent = 2\nlisten_address = \"{address}\""))
        .mayfly("idle_timeout = \"1h\"\nmax_builds = 7")
        .home(&gitlab);
    let end = home.path("end");
    let id = gitlab.queue(job(&[&until_there(end.display())]).build());
    let agent = home.start(&[]);
    wait_for(&agent, &address, "/status", "step_script");
    let (success, report) = status(&home, &[]);
    assert!(success, "{report}");
    for part in ["phase          working", "jobs           1 of 2 at once", "builds left    6", "idle timeout   1h 0m"]
    {
        assert!(report.contains(part), "{part}: {report}");
    }
    let row = report.lines().last().expect("a job");
    assert!(row.starts_with(&id.to_string()) && row.contains("step_script"), "{report}");
    fs::write(&end, "").expect("write a file");
    gitlab.finished(id);
    wait_for(&agent, &address, "/status", "\"jobs\":[]");
    let (_, report) = status(&home, &[]);
    assert!(
        report.contains("idle time left 59m of 1h 0m") || report.contains("idle time left 1h 0m of 1h 0m"),
        "{report}"
    );
    let (_, json) = status(&home, &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("must be JSON");
    assert_eq!((&json["kind"], &json["builds_left"]), (&"agent".into(), &6.into()), "{json}");
}

#[test]
fn says_what_is_missing() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let (success, report) = status(&home, &[]);
    assert!(!success && report.contains("has no `listen_address`"), "{report}");
    let (success, report) = status(&home, &["--address", &free_address()]);
    assert!(!success && report.contains("is `mayfly run` or `mayfly manager` running here?"), "{report}");
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = other.local_addr().expect("an address").to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().expect("a connection");
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").expect("write an answer");
        // Open until the other side closes it.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let (success, report) = status(&home, &["--address", &address]);
    assert!(!success && report.contains("status 404 for /status"), "{report}");
    server.join().expect("the thread must not panic");
}

/// A reader that has seen enough, and a full disk, are no faults of the program.
#[test]
fn output_that_cannot_be_written_ends_the_command_without_a_panic() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let config = home.config().display().to_string();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
    let (reader, closed) = std::io::pipe().expect("a pipe");
    drop(reader);
    for (output, status, part) in [(Stdio::from(full), 1, "No space left on device"), (Stdio::from(closed), 141, "")] {
        let mut command = home.command(&["lint", "--config", &config]);
        let child = command.stdout(output).stderr(Stdio::piped()).spawn().expect("start mayfly");
        let done = child.wait_with_output().expect("must end");
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(error.contains(part) && !error.contains("panicked"), "{error}");
        assert_eq!(done.status.code(), Some(status), "{error}");
    }
}
