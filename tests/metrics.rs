//! Metrics and health at `listen_address`, as Prometheus and a load balancer see them.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::gitlab::{Answer, Fault, GitLab};
use crate::support::job::{job, until_there};
use crate::support::mayfly::Agent;
use crate::support::output_text;
use crate::support::ports::free_address;
use crate::support::scenario::Scenario;

/// Status and body of a page; `None` if no server answers.
pub fn try_get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

pub fn get(address: &str, path: &str) -> (u16, String) {
    try_get(address, path).unwrap_or_else(|| panic!("no answer from {address}{path}"))
}

/// Whether a working agent answers.
fn is_healthy(address: &str) -> bool {
    try_get(address, "/healthz").is_some_and(|(_, body)| body == "working\n")
}

/// Waits until a page contains a text.
pub fn wait_for(agent: &Agent, address: &str, path: &str, part: &str) -> (u16, String) {
    let mut page = None;
    agent.wait_until(&format!("`{part}` in {path}"), || {
        page = try_get(address, path).filter(|(_, body)| body.contains(part));
        page.is_some()
    });
    page.expect("the page must have the text")
}

/// The findings of promtool; empty if there are none.
pub fn lint(metrics: &str) -> String {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start promtool");
    promtool.stdin.take().expect("a pipe").write_all(metrics.as_bytes()).expect("write a file");
    let output = promtool.wait_with_output().expect("wait for the end of the process");
    assert!(output.status.success() || !output.stderr.is_empty());
    output_text(&output)
}

#[test]
fn metrics_count_the_agents_work_and_promtool_accepts_them() {
    let gitlab = GitLab::start();
    let address = free_address();
    let home = Scenario::shell()
        .config(&format!("concurrent = 2\nlisten_address = \"{address}\""))
        .runner("limit = 2")
        .home(&gitlab);
    let go = home.path("go");
    let mut waits = job(&["echo begun", &until_there(go.display())]).build();
    waits["job_info"]["time_in_queue_seconds"] = 7.25.into();
    let id = gitlab.queue(waits);
    let mut agent = home.start(&["--max-builds", "100"]);
    let running = "state=\"running\",stage=\"step_script\"} 1";
    let (status, body) = wait_for(&agent, &address, "/metrics", running);
    assert_eq!((status, lint(&body)), (200, String::new()), "{body}");
    let failed = gitlab.queue(job(&["exit 3"]).build());
    gitlab.finished(failed);
    // The agent counts a job after GitLab has its final state.
    wait_for(&agent, &address, "/metrics", "failure_reason=\"script_failure\"} 1\n");
    std::fs::write(&go, "").expect("write a file");
    gitlab.finished(id);
    let (_, body) = wait_for(&agent, &address, "/metrics", "state=\"success\",result=\"success\"} 1");
    assert_eq!(lint(&body), "", "{body}");
    for part in [
        "gitlab_runner_version_info{name=\"mayfly\"",
        "gitlab_runner_concurrent 2\n",
        "\ngitlab_runner_limit{runner=\"tokenOfTh\",runner_name=\"test\",system_id=\"",
        "failure_reason=\"script_failure\"} 1\n",
        "stage=\"idle\"} 0\n",
        "outcome=\"job\"} 2\n",
        "endpoint=\"request_job\",status=\"201\"} 2\n",
        "mayfly_phase{phase=\"working\"} 1\n",
        "mayfly_filesystem_avail_bytes{directory=\"state\",path=\"",
        "mayfly_spot_notices_total{notice=\"rebalance\"} 0\n",
        "mayfly_termination_refusals_total{reason=\"denied\"} 0\n",
        "mayfly_token_fetches_total{result=\"success\"} 0\n",
        "process_resident_memory_bytes ",
    ] {
        assert!(body.contains(part), "{part} in {body}");
    }
    let value = |name: &str| -> f64 {
        let line = body.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {body}"));
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    };
    assert!((value("gitlab_runner_job_queue_duration_seconds_sum") - 7.25).abs() < 0.001);
    assert!(value("gitlab_runner_job_duration_seconds_count") >= 2.0);
    let logs = gitlab.job(id).trace.len() + gitlab.job(failed).trace.len();
    assert!((value("mayfly_trace_bytes_total") - logs as f64).abs() < 0.5, "{logs}: {body}");
    assert!(value("mayfly_idle_seconds") >= 0.0);
    let heads = body.lines().filter_map(|line| line.strip_prefix("# HELP ")).filter_map(|line| line.split(' ').next());
    assert_eq!(heads.map(str::to_owned).collect::<BTreeSet<String>>(), documented());
    agent.drain();
    gitlab.assert_strict();
}

/// The metrics that the documentation names.
pub fn documented() -> BTreeSet<String> {
    let text = include_str!("../docs/reference/metrics.md");
    rows_of(text.split_once("\n## Metrics of the agent\n").expect("the section").1)
}

/// The metrics of a manager that the documentation names.
pub fn documented_of_manager() -> BTreeSet<String> {
    let text = include_str!("../docs/reference/metrics.md");
    rows_of(text.split_once("\n## Metrics of a manager\n").expect("the section").1)
}

fn rows_of(section: &str) -> BTreeSet<String> {
    let section = section.split("\n## ").next().expect("a section");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    rows.map(str::to_owned).collect()
}

#[test]
fn healthz_says_why_the_agent_takes_no_jobs() {
    let gitlab = GitLab::start();
    let address = free_address();
    let home = Scenario::shell().runner("unhealthy_requests_limit = 1").home(&gitlab);
    let refused = Answer::json(403, &serde_json::json!({"message": "403 Forbidden"}));
    gitlab.fail("POST jobs/request", [Fault::Answer(refused)]);
    let mut agent = home.start_with(&[], &[("LISTEN_ADDRESS", &address)]);
    assert_eq!(wait_for(&agent, &address, "/healthz", "GitLab rejects every runner").0, 503);
    // A reload resets the state.
    agent.signal("HUP");
    assert_eq!(wait_for(&agent, &address, "/healthz", "working").0, 200);
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    gitlab.wait_for_log(id, "begun");
    agent.signal("QUIT");
    let (status, body) = wait_for(&agent, &address, "/healthz", "draining");
    assert_eq!((status, body.as_str()), (503, "draining (signal), jobs left: 1\n"));
    assert!(get(&address, "/metrics").1.contains("mayfly_phase{phase=\"draining\"} 1"));
    std::fs::write(&go, "").expect("write a file");
    assert!(agent.wait().success());
    gitlab.assert_strict();
}

#[test]
fn a_reload_moves_listen_address_and_refuses_an_address_in_use() {
    let gitlab = GitLab::start();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = (taken.local_addr().expect("an address").to_string(), taken);
    let home = Scenario::shell().config(&format!("listen_address = \"{}\"", taken.0)).home(&gitlab);
    let config = home.config().display().to_string();
    let refused = home.call(&["run", "--config", &config]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && error.contains("listen_address") && error.contains(&taken.0), "{error}");

    let (first, second) = (free_address(), free_address());
    Scenario::shell().config(&format!("listen_address = \"{first}\"")).write(&home, &gitlab.url);
    let mut agent = home.start(&[]);
    wait_for(&agent, &first, "/healthz", "working");
    Scenario::shell().config(&format!("listen_address = \"{second}\"")).write(&home, &gitlab.url);
    wait_for(&agent, &second, "/healthz", "working");
    agent.wait_until("the end of the first listener", || !is_healthy(&first));
    Scenario::shell().config(&format!("listen_address = \"{}\"", taken.0)).write(&home, &gitlab.url);
    agent.wait_for_log("the old one stays in use");
    let (_, body) = wait_for(&agent, &second, "/metrics", "mayfly_configuration_current 0\n");
    assert!(body.contains("gitlab_runner_configuration_loading_error_total 1\n"), "{body}");

    // The agent's own listener occupies the port.
    let every = second.replace("127.0.0.1", "0.0.0.0");
    Scenario::shell().config(&format!("listen_address = \"{every}\"")).write(&home, &gitlab.url);
    wait_for(&agent, &second.replace("127.0.0.1", "127.0.0.2"), "/healthz", "working");
    Scenario::shell().write(&home, &gitlab.url);
    agent.wait_until("the end of the listener", || !is_healthy(&second));
    agent.drain();
    gitlab.assert_strict();
}
