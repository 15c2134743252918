//! Measures the manager with the fake GitLab of the tests and simulated agents: `cargo bench --bench manager`.
//!
//! Arguments select measurements by name: `cargo bench --bench manager -- latency queue`.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use support::fleet::{FLEET_TOKEN, Fleet, Manager, wait_until};
use support::gitlab::GitLab;
use support::job::job;
use support::pki::Pki;

const ROUNDS: usize = 30;
const WAITING: usize = 1000;
const RUNNING: usize = 200;
const QUEUED: usize = 1000;
const AGENTS: usize = 100;
const RELAY: &str = "[[runners.autoscaler.policy]]\nidle_count = 2000\nidle_time = \"1h\"\npreemptive_mode = true\n";
const HOLD: &str = "[[runners.autoscaler.policy]]\nidle_count = 0\nidle_time = \"1h\"\npreemptive_mode = false\n";

const FIGURES: [(&str, fn()); 4] = [("latency", latency), ("waiting", waiting), ("queue", queue), ("empty", empty)];

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for (name, measure) in FIGURES {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            measure();
        }
    }
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
        let fleet = Fleet::new(&gitlab, "", RELAY);
        fleet.set_members(&["i-1"]);
        let manager = fleet.start();
        let (_home, _agent) = fleet.agent(&manager, "i-1");
        median(times_to_running(&gitlab))
    };
    let direct = {
        let gitlab = GitLab::start();
        let home = support::mayfly::Home::new(&gitlab, "", "");
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
        let (taken, running) = (done.taken.expect("taken"), done.running.expect("running"));
        // Waits until the agent polls again, before the next job is queued.
        thread::sleep(Duration::from_millis(100));
        running - taken
    };
    (0..ROUNDS).map(round).collect()
}

/// Memory and processor time of the manager while some agents wait over TLS and others run jobs.
fn waiting() {
    let gitlab = GitLab::start();
    let (fleet, pki) = tls_fleet(&gitlab, RELAY);
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
    let (cpu, began) = (cpu_time(&manager), Instant::now());
    // The load of one minute: each poll times out once, and each agent with a job sends heartbeats.
    for agent in &mut agents[RUNNING..] {
        let _ = agent.read();
        agent.ask();
    }
    for agent in &mut agents[..RUNNING] {
        agent.heartbeat();
    }
    let left = Duration::from_secs(60).saturating_sub(began.elapsed());
    thread::sleep(left);
    let share = (cpu_time(&manager) - cpu).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    tell("the same, share of a core over a minute", format!("{share:.2} %"));
    tell("the same, RSS after it", format!("{} KiB", manager.memory()));
}

/// Jobs that wait at GitLab are distributed to agents that take one after the other.
fn queue() {
    let gitlab = GitLab::start();
    let fleet = Fleet::with(&gitlab, "", "plain_http = true", "request_concurrency = 10", RELAY);
    let names: Vec<String> = (0..AGENTS).map(|number| format!("i-{number}")).collect();
    fleet.set_members(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let manager = fleet.start();
    let agents: Vec<LightAgent> = names.iter().map(|name| LightAgent::register(&fleet, None, name)).collect();
    for _ in 0..QUEUED {
        gitlab.queue(job(&["true"]).build());
    }
    let (done, began, cpu) = (Arc::new(AtomicUsize::new(0)), Instant::now(), cpu_time(&manager));
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
    let each = (cpu_time(&manager) - cpu).as_secs_f64() * 1e6 / QUEUED as f64;
    tell("the same, CPU time of the manager for each", format!("{each:.0} us"));
}

/// The time from the arrival of a job at an empty fleet to the call that increases the desired capacity.
fn empty() {
    let gitlab = GitLab::start();
    let fleet = Fleet::new(&gitlab, "", HOLD);
    let manager = fleet.start();
    thread::sleep(Duration::from_secs(3));
    let id = gitlab.queue(job(&["true"]).build());
    wait_until("the group must grow", || fleet.engine_calls().contains("\"set_target\""));
    let raised = Instant::now();
    let taken = gitlab.job(id).taken.expect("taken");
    tell("201 at an empty fleet to the call that raises the group", format!("{} ms", (raised - taken).as_millis()));
    drop(manager);
}

fn tls_fleet(gitlab: &GitLab, policy: &str) -> (Fleet, Pki) {
    let pki = Pki::new();
    let identity = pki.server();
    let fleet = Fleet::new(gitlab, "", policy);
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| fleet.home.path(name));
    fs::write(&certificate, &identity.chain).expect("written");
    fs::write(&key, &identity.key).expect("written");
    let files = format!("certificate_file = \"{}\"\nkey_file = \"{}\"", certificate.display(), key.display());
    let more = "max_instances = 3000\n";
    fleet.configure(&gitlab.url, "", &files, "", &format!("{more}{policy}").replace("max_instances = 3000\n", ""));
    let text = fs::read_to_string(fleet.home.config()).expect("a file");
    let text = text.replace("max_instances = 10\n", more).replace("concurrent = 100\n", "concurrent = 3000\n");
    fs::write(fleet.home.config(), text).expect("written");
    (fleet, pki)
}

fn trust(pki: &Pki) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.root.as_bytes()).expect("a certificate")).expect("an authority");
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// The manager's user and system time so far.
fn cpu_time(manager: &Manager) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", manager.pid())).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// An agent that accepts jobs and runs nothing.
struct LightAgent {
    stream: BufReader<Box<dyn Stream>>,
    token: String,
    running: Option<(String, String)>,
    ended: Vec<String>,
}

impl LightAgent {
    fn register(fleet: &Fleet, trust: Option<&Arc<ClientConfig>>, instance: &str) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", fleet.port)).expect("connected");
        socket.set_nodelay(true).expect("set");
        let stream: Box<dyn Stream> = match trust {
            None => Box::new(socket),
            Some(trust) => {
                let name = ServerName::try_from("localhost").expect("a name");
                Box::new(StreamOwned::new(ClientConnection::new(Arc::clone(trust), name).expect("TLS"), socket))
            }
        };
        let stream = BufReader::with_capacity(2048, stream);
        let mut agent = Self { stream, token: FLEET_TOKEN.to_owned(), running: None, ended: Vec::new() };
        let introduction = json!({"protocol": 1, "instance": instance, "boot": "b", "version": "0", "labels": {}});
        loop {
            agent.send("POST", "runners/verify", &json!({"token": FLEET_TOKEN, "mayfly": introduction}));
            let (status, body) = agent.read();
            if status == 200 {
                agent.token = body["mayfly"]["token"].as_str().expect("a token").to_owned();
                return agent;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn send(&mut self, method: &str, path: &str, body: &Value) {
        let body = body.to_string();
        let request = format!(
            "{method} /api/v4/{path} HTTP/1.1\r\nHost: h\r\nRUNNER-TOKEN: {}\r\nContent-Length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes()).expect("sent");
        self.stream.get_mut().flush().expect("sent");
    }

    fn read(&mut self) -> (u16, Value) {
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("a line");
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest[..3].parse().expect("a status");
            }
            if let Some(rest) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = rest.trim().parse().expect("a length");
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("a body");
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    fn ask(&mut self) {
        self.send("POST", "jobs/request", &json!({}));
    }

    /// Polls for a job; returns its id and the id of its offer.
    fn job(&mut self) -> Option<(String, String)> {
        let (status, body) = self.read();
        let offer = body["mayfly"]["offer"].as_str().map(str::to_owned);
        (status == 201).then(|| (body["id"].to_string(), offer.expect("an offer")))
    }

    fn accept(&mut self, id: &str, offer: &str) -> bool {
        self.send("PUT", &format!("jobs/{id}"), &json!({"offer": offer, "state": "running"}));
        self.read().0 == 200
    }

    fn heartbeat(&mut self) {
        let jobs: Vec<Value> = self
            .running
            .iter()
            .map(|(id, offer)| json!({"id": id, "offer": offer, "phase": "script", "token": "t"}))
            .collect();
        let ended = std::mem::take(&mut self.ended);
        self.send("POST", "runners/heartbeat", &json!({"jobs": jobs, "ended": ended}));
        assert_eq!(self.read().0, 200);
    }
}
