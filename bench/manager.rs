//! Measures the manager with the fake GitLab of the tests and simulated agents: `cargo bench --bench manager`.
//!
//! Arguments select measurements by name: `cargo bench --bench manager -- latency queue`. `MAYFLY=/path/to/mayfly`
//! measures another build.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/support/mod.rs"]
mod support;

#[path = "manager/light_agent.rs"]
mod light_agent;
#[path = "manager/meter.rs"]
mod meter;

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use light_agent::LightAgent;
use meter::{Meter, cpu_of};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use support::fleet::{Fleet, wait_until};
use support::gitlab::{GitLab, RUNNER_TOKEN};
use support::job::job;
use support::pki::Pki;
use support::pool::Pool;

const ROUNDS: usize = 30;
const WAITING: usize = 1000;
const RUNNING: usize = 200;
const QUEUED: usize = 1000;
const AGENTS: usize = 100;
const MINUTE: Duration = Duration::from_secs(60);
/// Between two heartbeats of an agent with a job.
const HEARTBEAT: Duration = Duration::from_secs(30);

type Figure = (&'static str, fn());
const FIGURES: [Figure; 6] = [
    ("latency", latency),
    ("waiting", waiting),
    ("queue", queue),
    ("empty", empty),
    ("bytes", bytes),
    ("gitlab-runner", gitlab_runner),
];
/// Bytes of log and of artifact of a job that has much of both.
const LARGE: usize = 10_000_000;
/// Such jobs at the same time.
const LARGE_JOBS: usize = 10;

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for (name, measure) in FIGURES {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            measure();
        }
    }
}

/// A pool that keeps an idle instance for each agent.
fn relay() -> Pool {
    Pool::with_policy("idle_count = 2000\nidle_time = \"1h\"\npreemptive_mode = true")
}

fn tell(what: &str, value: impl std::fmt::Display) {
    println!("{what:<60} {value:>14}");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The time from GitLab's 201 to the agent's `running`, with a manager and without.
fn latency() {
    let through_manager = {
        let gitlab = GitLab::start();
        let fleet = relay().fleet(&gitlab);
        fleet.set_members(&["i-1"]);
        let manager = fleet.start();
        let (_home, _agent) = fleet.agent(&manager, "i-1");
        median(times_to_running(&gitlab))
    };
    let direct = {
        let gitlab = GitLab::start();
        let home = support::scenario::Scenario::shell().home(&gitlab);
        let _agent = home.start(&[]);
        median(times_to_running(&gitlab))
    };
    tell("201 to `running`, through the manager", format!("{:.2} ms", through_manager.as_secs_f64() * 1000.0));
    tell("201 to `running`, agent alone", format!("{:.2} ms", direct.as_secs_f64() * 1000.0));
}

fn times_to_running(gitlab: &GitLab) -> Vec<Duration> {
    let round = |_| {
        let id = gitlab.queue(job(&["true"]).build());
        let done = gitlab.finished(id);
        let (taken, running) =
            (done.taken.expect("the runner must have the job"), done.running.expect("the job must have started"));
        // Waits until the agent polls again, before the next job is queued.
        thread::sleep(Duration::from_millis(100));
        running - taken
    };
    (0..ROUNDS).map(round).collect()
}

/// Memory and processor time of the manager while some agents wait over TLS and others run jobs.
fn waiting() {
    let gitlab = GitLab::start();
    let (fleet, pki) = tls_fleet(&gitlab);
    let names: Vec<String> = (0..WAITING + RUNNING).map(|number| format!("i-{number}")).collect();
    fleet.set_members(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let manager = fleet.start();
    tell("manager without agents, RSS", format!("{} KiB", manager.memory()));
    let trust = trust(&pki);
    let mut agents: Vec<LightAgent> = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let mut agent = LightAgent::register(&fleet, Some(&trust), name);
        if number < RUNNING {
            gitlab.queue(job(&["true"]).build());
            agent.ask();
            let (id, offer) = agent.job().expect("a job");
            assert!(agent.accept(&id, &offer));
            agent.running = Some((id, offer));
        } else {
            agent.ask();
        }
        agents.push(agent);
    }
    tell(&format!("{WAITING} waiting agents and {RUNNING} jobs, RSS"), format!("{} KiB", manager.memory()));
    let mut waiting = agents.split_off(RUNNING);
    let mut running = agents;
    let (cpu, began) = (cpu_of(manager.pid()), Instant::now());
    let until = began + MINUTE;
    // Agents with jobs send heartbeats, evenly spread; the others ask again as soon as their requests are answered.
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..MINUTE.as_secs() / HEARTBEAT.as_secs() {
                for (number, agent) in running.iter_mut().enumerate() {
                    let due = HEARTBEAT * round as u32 + HEARTBEAT * number as u32 / RUNNING as u32;
                    thread::sleep((began + due).saturating_duration_since(Instant::now()));
                    agent.heartbeat();
                }
            }
        });
        // The oldest request is answered first.
        for number in (0..WAITING).cycle() {
            let agent = &mut waiting[number];
            if !agent.is_answered_before(until) {
                break;
            }
            let _ = agent.read();
            agent.ask();
        }
    });
    thread::sleep(until.saturating_duration_since(Instant::now()));
    let share = (cpu_of(manager.pid()) - cpu).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    tell("the same, share of a core over a minute", format!("{share:.2} %"));
    tell("the same, RSS after it", format!("{} KiB", manager.memory()));
}

/// Jobs that wait at GitLab are distributed to agents that take one after the other.
fn queue() {
    let gitlab = GitLab::start();
    let fleet = relay().runner("request_concurrency = 10").fleet(&gitlab);
    let names: Vec<String> = (0..AGENTS).map(|number| format!("i-{number}")).collect();
    fleet.set_members(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let manager = fleet.start();
    let agents: Vec<LightAgent> = names.iter().map(|name| LightAgent::register(&fleet, None, name)).collect();
    for _ in 0..QUEUED {
        gitlab.queue(job(&["true"]).build());
    }
    let (done, began, cpu) = (Arc::new(AtomicUsize::new(0)), Instant::now(), cpu_of(manager.pid()));
    for mut agent in agents {
        let done = Arc::clone(&done);
        thread::spawn(move || {
            while done.load(Ordering::SeqCst) < QUEUED {
                agent.ask();
                let Some((id, offer)) = agent.job() else { continue };
                if agent.accept(&id, &offer) {
                    agent.ended = vec![id];
                    agent.heartbeat();
                    done.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
    }
    wait_until("all jobs must be handed over", || done.load(Ordering::SeqCst) >= QUEUED);
    let rate = QUEUED as f64 / began.elapsed().as_secs_f64();
    tell(&format!("{QUEUED} queued jobs over {AGENTS} agents"), format!("{rate:.0} jobs/s"));
    let each = (cpu_of(manager.pid()) - cpu).as_secs_f64() * 1e6 / QUEUED as f64;
    tell("the same, CPU time of the manager for each", format!("{each:.0} us"));
}

/// The time from the arrival of a job at an empty fleet to the call that increases the desired capacity.
fn empty() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    thread::sleep(Duration::from_secs(3));
    let id = gitlab.queue(job(&["true"]).build());
    wait_until("the group must grow", || fleet.engine_calls().contains("\"set_target\""));
    let raised = Instant::now();
    let taken = gitlab.job(id).taken.expect("the runner must have the job");
    tell("201 at an empty fleet to the call that raises the group", format!("{} ms", (raised - taken).as_millis()));
    drop(manager);
}

/// Bytes on the sockets of the manager for a job with much log and a large artifact, and for one with neither.
fn bytes() {
    let gitlab = GitLab::start();
    let fleet = relay().runner("output_limit = 20000").fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let (_home, _agent) = fleet.agent(&manager, "i-1");
    let run = |what: &str, payload: Value| {
        let meter = Meter::start(manager.pid());
        let id = gitlab.queue(payload);
        let done = gitlab.finished(id);
        assert_eq!(done.state, "success", "{}", done.log());
        manager.wait_for_log(&format!("job ended pool=pool job={id}"));
        let sizes = (done.trace.len(), done.artifacts.iter().map(|artifact| artifact.content.len()).sum::<usize>());
        let bytes = meter.stop();
        tell(&format!("{what}, bytes of log and of artifact"), format!("{} + {}", sizes.0, sizes.1));
        tell("the same, bytes through the manager's sockets", bytes);
    };
    run("a job without log and artifact", job(&["true"]).build());
    run("a job with both", large_job());
}

/// The jobs of [`large_job`] over one agent with a manager, and in a gitlab-runner's shell executor if `GITLAB_RUNNER`
/// names its program.
fn gitlab_runner() {
    {
        let gitlab = GitLab::start();
        let fleet = relay().runner("output_limit = 20000").fleet(&gitlab);
        let text = fs::read_to_string(fleet.home.config()).expect("a file");
        let capacity = format!("capacity_per_instance = {LARGE_JOBS}\n");
        fs::write(fleet.home.config(), text.replace("capacity_per_instance = 1\n", &capacity)).expect("write the file");
        fleet.set_members(&["i-1"]);
        let manager = fleet.start();
        let (_home, _agent) = fleet.agent(&manager, "i-1");
        tell_cost("mayfly manager", manager.pid(), || run_large_jobs(&gitlab));
    }
    let Some(program) = std::env::var_os("GITLAB_RUNNER") else {
        return tell("gitlab-runner (GITLAB_RUNNER names no program)", "skipped");
    };
    let gitlab = GitLab::start();
    let home = support::mayfly::Home::empty();
    let text = format!(
        "concurrent = {LARGE_JOBS}\ncheck_interval = 1\n[[runners]]\nname = \"bench\"\nurl = \"{}\"\ntoken = \"{RUNNER_TOKEN}\"\n\
         executor = \"shell\"\noutput_limit = 20000\nrequest_concurrency = {LARGE_JOBS}\n",
        gitlab.url
    );
    fs::write(home.config(), text).expect("write the file");
    let directory = home.path("").display().to_string();
    let mut runner = Command::new(program)
        .args(["run", "--config", &home.config().display().to_string(), "--working-directory", &directory])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start gitlab-runner");
    tell_cost("gitlab-runner", runner.id() as i32, || run_large_jobs(&gitlab));
    runner.kill().expect("kill the process");
    runner.wait().expect("must end");
}

fn large_job() -> Value {
    let line = "x".repeat(99);
    let log = format!("(yes {line} || true) | head -c {LARGE}");
    let artifact = format!("head -c {LARGE} /dev/urandom > out");
    let artifacts = json!([{"name": "out", "paths": ["out"], "when": "on_success", "artifact_type": "archive",
        "artifact_format": "zip"}]);
    job(&[&log, &artifact]).set("artifacts", artifacts).build()
}

fn run_large_jobs(gitlab: &GitLab) {
    let ids: Vec<i64> = (0..LARGE_JOBS).map(|_| gitlab.queue(large_job())).collect();
    for id in ids {
        let done = gitlab.finished(id);
        assert_eq!(done.state, "success", "{}", done.log());
    }
}

/// CPU time of a process, without that of its children, and the most memory that it had.
fn tell_cost(what: &str, pid: i32, work: impl FnOnce()) {
    let cpu = cpu_of(pid);
    work();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let jobs = format!("{what}, {LARGE_JOBS} jobs with 10 MB of log and of artifact");
    tell(&format!("{jobs}, CPU"), format!("{:.2} s", (cpu_of(pid) - cpu).as_secs_f64()));
    tell(&format!("{jobs}, RSS"), peak.trim());
}

fn tls_fleet(gitlab: &GitLab) -> (Fleet, Pki) {
    let pki = Pki::new();
    let identity = pki.server();
    let fleet = Fleet::empty();
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| fleet.home.path(name));
    fs::write(&certificate, &identity.chain).expect("write the file");
    fs::write(&key, &identity.key).expect("write the file");
    let files = format!("certificate_file = \"{}\"\nkey_file = \"{}\"", certificate.display(), key.display());
    let pool = relay().tls(&files).config("concurrent = 3000").autoscaler("max_instances = 3000");
    pool.write(&fleet, &gitlab.url);
    let text = fs::read_to_string(fleet.home.config()).expect("read the file");
    // The tests look at the group each second; the default is once a minute.
    let text =
        text.replace("update_interval = \"1s\"\n", "").replace("update_interval_when_expecting = \"200ms\"\n", "");
    fs::write(fleet.home.config(), text).expect("write the file");
    (fleet, pki)
}

fn trust(pki: &Pki) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.root.as_bytes()).expect("a certificate")).expect("an authority");
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the protocol versions must be supported")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}
