//! Measures the agent with the fake GitLab of the tests, and a lower bound on the same machine: `cargo bench`.
//!
//! With `GITLAB_RUNNER=/path/to/gitlab-runner`, the same jobs also run with gitlab-runner, in the same rounds.
//! Arguments select measurements by name: `cargo bench --bench agent -- empty queue`.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::{Value, json};
use support::docker::docker;
use support::git::GitServer;
use support::gitlab::{GitLab, RUNNER_TOKEN};
use support::http::{Answer, listen, read_request, write_answer};
use support::job::job;
use support::mayfly::peak_memory_of_shims;

/// The number of rounds; the median is printed.
const ROUNDS: usize = 20;
/// The number of jobs in the queue.
const WAITING: usize = 1000;

/// Measures a program and prints the result.
type Measure = fn(&Path);

/// The measurements by name.
const FIGURES: [(&str, Measure); 9] = [
    ("start", start_to_request),
    ("empty", empty_job),
    ("clone", clone),
    ("checkout", checkout),
    ("queue", queue),
    ("log", log_speed),
    ("artifact", artifact),
    ("container", empty_container),
    ("container-log", container_log),
];

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mayfly = std::env::var_os("MAYFLY").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_mayfly")), PathBuf::from);
    let size = fs::metadata(&mayfly).expect("the program").len();
    println!("{:<44} {size:>12} bytes", "binary");
    let other = std::env::var_os("GITLAB_RUNNER").map(PathBuf::from);
    for (name, program) in [("mayfly", Some(mayfly)), ("gitlab-runner", other)] {
        let Some(program) = program else { continue };
        println!("-- {name}");
        for (figure, measure) in FIGURES {
            if chosen.is_empty() || chosen.iter().any(|name| name == figure) {
                measure(&program);
            }
        }
    }
}

/// The lower bound for a job: starting one login shell, and three requests that the server answers immediately.
struct Limit {
    server: TcpStream,
}

impl Limit {
    fn new() -> Self {
        let url = listen(None, |mut connection| {
            while read_request(&mut connection).is_some() {
                write_answer(connection.get_mut(), &Answer::new(200)).expect("send the response");
            }
        });
        let server = TcpStream::connect(url.trim_start_matches("http://")).expect("connect to the server");
        server.set_nodelay(true).expect("set the socket option");
        Self { server }
    }

    fn login_shell(&self) -> Duration {
        let began = Instant::now();
        let mut child = Command::new("bash")
            .arg("-l")
            .env_clear()
            .env("HOME", "/nonexistent")
            .stdin(Stdio::piped())
            .spawn()
            .expect("start bash");
        child.stdin.take().expect("a pipe").write_all(b"exit 0\n").expect("write all bytes");
        child.wait().expect("wait for the end of the process");
        began.elapsed()
    }

    fn round_trips(&mut self) -> Duration {
        let began = Instant::now();
        for _ in 0..3 {
            self.server.write_all(b"PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}").expect("write all bytes");
            let mut answer = [0; 512];
            assert!(self.server.read(&mut answer).expect("an answer") > 0);
        }
        began.elapsed()
    }
}

fn start_to_request(program: &Path) {
    let times = (0..ROUNDS).map(|_| {
        let began = Instant::now();
        let scene = Scene::start(program, 1);
        while scene.gitlab.count("POST jobs/request") == 0 {
            std::thread::yield_now();
        }
        began.elapsed()
    });
    tell("start to first request", median(times));
    let scene = Scene::start(program, 1);
    while scene.gitlab.count("POST jobs/request") == 0 {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(500));
    println!("{:<44} {:>12} KiB", "idle memory (RSS)", memory(scene.child.id()));
}

/// Alternates between the lower bound and the job, so that the load of the machine affects both.
fn empty_job(program: &Path) {
    let (scene, mut limit) = (Scene::start(program, 1), Limit::new());
    let (mut shells, mut trips, mut jobs) = (Vec::new(), Vec::new(), Vec::new());
    let before = processor_time(scene.child.id());
    for _ in 0..ROUNDS {
        shells.push(limit.login_shell());
        trips.push(limit.round_trips());
        jobs.push(scene.job(job(&["true"]).build()));
    }
    let spent = (processor_time(scene.child.id()) - before) / ROUNDS as f64;
    let (shell, trips, job) = (median(shells), median(trips), median(jobs));
    tell("limit: one login bash", shell);
    tell("limit: three round trips", trips);
    tell("empty job, 201 to final PUT", job);
    tell_ratio("  times the limit", job, shell + trips);
    println!("{:<44} {:>12.1} ms", "  processor time with its shell", spent * 1000.0);
}

fn clone(program: &Path) {
    let scene = Scene::start(program, 1);
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    let (url, sha) = git.repository("team/small", &[("a", "1"), ("b/c", "2"), ("README.md", "3")]);
    let (mut clones, mut empty, mut jobs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let target = root.path().join(format!("clone-{round}"));
        let url_with_token = url.replacen("http://", "http://gitlab-ci-token:glcbt-x@", 1);
        let began = Instant::now();
        let mut git = Command::new("git");
        let cloned = git.args(["clone", "-q", "--depth", "20", &url_with_token]).arg(target).status().expect("run git");
        assert!(cloned.success());
        clones.push(began.elapsed());
        empty.push(scene.job(job(&["true"]).build()));
        jobs.push(scene.job(job(&["true"]).sources(&url, &sha).variable("GIT_STRATEGY", "clone").build()));
    }
    let (cloned, empty, job) = (median(clones), median(empty), median(jobs));
    tell("limit: git clone", cloned);
    tell("job with a clone", job);
    tell_ratio("  times git clone and the empty job", job, cloned + empty);
}

/// Clones a repository of 5,000 files, then fetches a commit that changes 50 of them. The agent verifies the checkout
/// that it reuses.
fn checkout(program: &Path) {
    const FILES: usize = 5000;
    const CHANGED: usize = 50;
    let scene = Scene::start(program, 1);
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    let content = |index: usize, round: usize| format!("{index} {round}\n{}", "a line of a source file\n".repeat(100));
    let files = |range: std::ops::Range<usize>, round: usize| -> Vec<(String, String)> {
        range.map(|index| (format!("d{}/f{index}", index % 100), content(index, round))).collect()
    };
    let first = files(0..FILES, 0);
    let pairs: Vec<(&str, &str)> = first.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let (url, mut sha) = git.repository("team/large", &pairs);
    let url_with_token = url.replacen("http://", "http://gitlab-ci-token:glcbt-x@", 1);
    let work = root.path().join("plain");
    let run = |directory: &Path, arguments: &[&str]| {
        let status = Command::new("git").args(arguments).current_dir(directory).status().expect("run git");
        assert!(status.success(), "{arguments:?}");
    };
    let (mut clones, mut jobs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS / 4 {
        let _ = fs::remove_dir_all(&work);
        let began = Instant::now();
        run(root.path(), &["clone", "-q", "--depth", "20", &url_with_token, &work.display().to_string()]);
        clones.push(began.elapsed());
        jobs.push(scene.job(job(&["true"]).sources(&url, &sha).variable("GIT_STRATEGY", "clone").build()));
    }
    let (mut updates, mut reuses, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    scene.job(job(&["true"]).sources(&url, &sha).build());
    for round in 1..=ROUNDS {
        let changed = files(0..CHANGED, round);
        let pairs: Vec<(&str, &str)> = changed.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        sha = git.commit("team/large", &pairs, "next");
        let began = Instant::now();
        run(&work, &["fetch", "-q", "--depth", "20", "origin", "main"]);
        run(&work, &["checkout", "-q", "-f", "--detach", "FETCH_HEAD"]);
        run(&work, &["clean", "-ffdxq"]);
        updates.push(began.elapsed());
        reuses.push(scene.job(job(&["true"]).sources(&url, &sha).build()));
        empty.push(scene.job(job(&["true"]).build()));
    }
    let (cloned, updated, empty) = (median(clones), median(updates), median(empty));
    tell("limit: git clone of 5,000 files", cloned);
    tell_ratio("  job with it, times that and the empty job", median(jobs), cloned + empty);
    tell("limit: git fetch, checkout and clean", updated);
    let reused = median(reuses);
    tell("job that reuses the checkout", reused);
    tell_ratio("  times that and the empty job", reused, updated + empty);
}

/// Jobs that wait in the queue; the agent runs one at a time.
fn queue(program: &Path) {
    let scene = Scene::start(program, 1);
    scene.job(job(&["true"]).build());
    let before = (memory(scene.child.id()), processor_time(scene.child.id()));
    let began = Instant::now();
    let ids: Vec<i64> = (0..WAITING).map(|_| scene.gitlab.queue(job(&["true"]).build())).collect();
    let last = *ids.last().expect("there must be a job");
    let patience = Duration::from_secs(600);
    scene.gitlab.wait_for(patience, "the end of the queue", |server| server.job_state(last) == "success");
    let rate = WAITING as f64 / began.elapsed().as_secs_f64();
    let spent = (processor_time(scene.child.id()) - before.1) / WAITING as f64;
    println!("{:<44} {rate:>12.1} jobs/s", format!("{WAITING} waiting empty jobs"));
    println!("{:<44} {:>12.1} ms", "  processor time of each", spent * 1000.0);
    println!("{:<44} {:>5} to {} KiB", "  RSS before and after", before.0, memory(scene.child.id()));
}

/// Alternates between `docker run` and the job, on a container engine of this benchmark.
fn empty_container(program: &Path) {
    let scene = Scene::with_containers(program);
    let (mut runs, mut jobs) = (Vec::new(), Vec::new());
    scene.job(job(&["true"]).build());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        docker().run(&["run", "--rm", "busybox:local", "true"]);
        runs.push(began.elapsed());
        jobs.push(scene.job(job(&["true"]).build()));
        // The agent removes the job's container in the background; the removal must not slow down the next `docker
        // run`.
        std::thread::sleep(Duration::from_millis(500));
    }
    let (run, job) = (median(runs), median(jobs));
    tell("limit: docker run", run);
    tell("empty job in a container", job);
    tell_ratio("  times docker run", job, run);
}

/// A container writes 100 MB of log.
fn container_log(program: &Path) {
    let scene = Scene::with_containers(program);
    let script =
        "(yes 'a line of an ordinary log, with s0me secrets and value-07-hunter22 in it' || true) | head -c 100000000";
    let empty = scene.job(job(&["true"]).build());
    let loud = scene.job(job(&[script]).build());
    let seconds = loud.saturating_sub(empty).as_secs_f64();
    println!("{:<44} {:>12.0} MB/s", "100 MB of log out of a container", 100.0 / seconds);
}

/// A script writes 200 MB of log; 20 values are masked.
fn log_speed(program: &Path) {
    let scene = Scene::start(program, 1);
    let script =
        "(yes 'a line of an ordinary log, with s0me secrets and value-07-hunter22 in it' || true) | head -c 200000000";
    let mut large = job(&[script]);
    for number in 0..20 {
        large = large.masked(&format!("SECRET_{number}"), &format!("value-{number:02}-hunter22"));
    }
    let before = processor_time(scene.child.id());
    let id = scene.gitlab.queue(large.build());
    let mut most = 0;
    while scene.gitlab.job_state(id) == "pending" || scene.gitlab.job_state(id) == "running" {
        most = most.max(family_memory(scene.child.id()));
        std::thread::sleep(Duration::from_millis(20));
    }
    let spent = processor_time(scene.child.id()) - before;
    let done = scene.gitlab.job(id);
    assert_eq!(done.state, "success");
    let seconds = (done.ended.expect("the job must have ended") - done.taken.expect("the runner must have the job"))
        .as_secs_f64();
    println!("{:<44} {:>12.0} MB/s", "200 MB of log, script to delivery", 200.0 / seconds);
    println!("{:<44} {spent:>12.2} s", "  processor time with its script");
    println!("{:<44} {most:>12} KiB", "  RSS of agent and shim");
}

/// An artifact of 100 MB, half random and half text: the time from the end of the script to the server's 201.
fn artifact(program: &Path) {
    let scene = Scene::start(program, 1);
    let script = "head -c 50000000 /dev/urandom >random; { seq 1 9000000 || true; } | head -c 50000000 >text || true";
    let archive = json!([{"name": "large", "paths": ["random", "text"], "when": "on_success",
        "artifact_type": "archive", "artifact_format": "zip"}]);
    let (mut times, mut most) = (Vec::new(), 0);
    for _ in 0..5 {
        let id = scene.gitlab.queue(job(&[script, "date +%s%N"]).set("artifacts", archive.clone()).build());
        while matches!(scene.gitlab.job_state(id).as_str(), "pending" | "running") {
            most = most.max(peak_memory_of_shims(id));
            std::thread::sleep(Duration::from_millis(20));
        }
        let done = scene.gitlab.job(id);
        assert_eq!(done.state, "success", "{}", done.log());
        let ended = done.lines().iter().find_map(|line| line.parse().ok().filter(|nanos| *nanos > 1_u64 << 60));
        let taken = done.artifacts[0].at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).expect("a time");
        times.push(taken.saturating_sub(Duration::from_nanos(ended.expect("the end of the script"))));
    }
    tell("artifact of 100 MB, script to 201", median(times));
    if most > 0 {
        println!("{:<44} {most:>12} KiB", "  most memory of the process that packs");
    }
}

/// An agent and its server.
struct Scene {
    gitlab: GitLab,
    child: Child,
    _home: tempfile::TempDir,
}

impl Scene {
    fn start(program: &Path, concurrent: u32) -> Self {
        Self::start_with(program, concurrent, "executor = \"shell\"", "")
    }

    /// A scene whose jobs run in containers of busybox.
    fn with_containers(program: &Path) -> Self {
        let keys = format!(
            "[runners.docker]\nhost = \"{}\"\nimage = \"busybox:local\"\npull_policy = \"if-not-present\"\n",
            docker().host()
        );
        Self::start_with(program, 1, "executor = \"docker\"", &keys)
    }

    fn start_with(program: &Path, concurrent: u32, executor: &str, tables: &str) -> Self {
        let gitlab = GitLab::start();
        let home = tempfile::tempdir().expect("a directory");
        let config = home.path().join("config.toml");
        let text = format!(
            "concurrent = {concurrent}\ncheck_interval = 1\n[mayfly]\nstate_dir = \"{}\"\n[[runners]]\nname = \"bench\"\n\
             url = \"{}\"\ntoken = \"{RUNNER_TOKEN}\"\n{executor}\noutput_limit = 1000000\n{tables}",
            home.path().join("state").display(),
            gitlab.url,
        );
        fs::write(&config, text).expect("write the file");
        let child = Command::new(program)
            .args(["run", "--config"])
            .arg(&config)
            .current_dir(home.path())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the agent");
        Self { gitlab, child, _home: home }
    }

    /// The time from sending a job's payload to receiving its final state.
    fn job(&self, payload: Value) -> Duration {
        let id = self.gitlab.queue(payload);
        let done = self.gitlab.finished(id);
        assert_eq!(done.state, "success", "{}", done.log());
        done.ended.expect("the job must have ended") - done.taken.expect("the runner must have the job")
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(times: impl IntoIterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.into_iter().collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn tell(what: &str, time: Duration) {
    println!("{what:<44} {:>12.1} ms", time.as_secs_f64() * 1000.0);
}

fn tell_ratio(what: &str, time: Duration, limit: Duration) {
    println!("{what:<44} {:>12.2}", time.as_secs_f64() / limit.as_secs_f64());
}

/// Processor time in seconds of a process and of its descendants that have ended.
fn processor_time(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(4);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on all platforms of Linux.
    ticks as f64 / 100.0
}

/// The resident memory of a process in KiB.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
}

/// The resident memory of a process and of its shims in KiB.
fn family_memory(pid: u32) -> u64 {
    let mut all = memory(pid);
    for entry in fs::read_dir("/proc").expect("list the directory").flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        if parent == Some(pid) {
            all += entry.file_name().to_string_lossy().parse().map_or(0, memory);
        }
    }
    all
}
