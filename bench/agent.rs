//! The agent against the fake GitLab of the tests, beside the limits of the machine: `cargo bench`.
//!
//! With `GITLAB_RUNNER=/path/to/gitlab-runner` the same work goes through it as well, in the same run.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::git::GitServer;
use support::gitlab::{GitLab, RUNNER_TOKEN};
use support::job::job;

/// Jobs of which the median is told.
const ROUNDS: usize = 20;

fn main() {
    let mayfly = std::env::var_os("MAYFLY").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_mayfly")), PathBuf::from);
    let size = fs::metadata(&mayfly).expect("the program").len();
    println!("{:<44} {size:>12} bytes", "binary");
    limits();
    measure("mayfly", &mayfly);
    if let Some(other) = std::env::var_os("GITLAB_RUNNER") {
        measure("gitlab-runner", Path::new(&other));
    }
}

/// What the machine itself costs.
fn limits() {
    let bash = median((0..ROUNDS).map(|_| {
        let mut child = Command::new("bash")
            .arg("-l")
            .env_clear()
            .env("HOME", "/nonexistent")
            .stdin(Stdio::piped())
            .spawn()
            .expect("bash");
        let began = Instant::now();
        child.stdin.take().expect("a pipe").write_all(b"exit 0\n").expect("written");
        child.wait().expect("ended");
        began.elapsed()
    }));
    tell("limit: one login bash", bash);
}

fn measure(name: &str, program: &Path) {
    println!("-- {name}");
    start_to_request(program);
    let agent = Scene::start(program, 1);
    idle_memory(&agent);
    let empty = agent.jobs(|_| job(&["true"]).build());
    tell("empty job, 201 to final PUT", empty);
    clone(&agent);
    queue(&agent);
    log_speed(&agent);
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
}

fn idle_memory(scene: &Scene) {
    std::thread::sleep(Duration::from_millis(500));
    println!("{:<44} {:>12} KiB", "idle memory (RSS)", memory(scene.child.id()));
}

fn clone(scene: &Scene) {
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    let (url, sha) = git.repository("team/small", &[("a", "1"), ("b/c", "2"), ("README.md", "3")]);
    let plain = median((0..ROUNDS).map(|round| {
        let target = root.path().join(format!("clone-{round}"));
        let url = url.replacen("http://", "http://gitlab-ci-token:glcbt-x@", 1);
        let began = Instant::now();
        let cloned =
            Command::new("git").args(["clone", "-q", "--depth", "20", &url]).arg(target).status().expect("git");
        assert!(cloned.success());
        began.elapsed()
    }));
    tell("limit: git clone", plain);
    let with = |_| job(&["true"]).sources(&url, &sha).variable("GIT_STRATEGY", "clone").build();
    tell("job with a clone", scene.jobs(with));
}

/// Jobs that wait, one after the other.
fn queue(scene: &Scene) {
    let before = memory(scene.child.id());
    let began = Instant::now();
    let ids: Vec<i64> = (0..200).map(|_| scene.gitlab.queue(job(&["true"]).build())).collect();
    ids.iter().for_each(|id| drop(scene.gitlab.finished(*id)));
    let rate = ids.len() as f64 / began.elapsed().as_secs_f64();
    println!("{:<44} {rate:>12.1} jobs/s (RSS {before} to {} KiB)", "waiting empty jobs", memory(scene.child.id()));
}

/// 200 MB of log with 20 masked values.
fn log_speed(scene: &Scene) {
    let script = "yes 'a line of an ordinary log, with s0me secrets and value-07-hunter22 in it' | head -c 200000000";
    let mut large = job(&[script]);
    for number in 0..20 {
        large = large.masked(&format!("SECRET_{number}"), &format!("value-{number:02}-hunter22"));
    }
    let id = scene.gitlab.queue(large.build());
    let mut most = 0;
    while scene.gitlab.job_state(id) == "pending" || scene.gitlab.job_state(id) == "running" {
        most = most.max(family_memory(scene.child.id()));
        std::thread::sleep(Duration::from_millis(50));
    }
    let done = scene.gitlab.job(id);
    let seconds = (done.ended.expect("ended") - done.taken.expect("taken")).as_secs_f64();
    println!("{:<44} {:>12.0} MB/s ({most} KiB agent and shim)", "200 MB of log, script to delivery", 200.0 / seconds);
}

/// An agent with its server.
struct Scene {
    gitlab: GitLab,
    child: Child,
    _home: tempfile::TempDir,
}

impl Scene {
    fn start(program: &Path, concurrent: u32) -> Self {
        let gitlab = GitLab::start();
        let home = tempfile::tempdir().expect("a directory");
        let config = home.path().join("config.toml");
        let text = format!(
            "concurrent = {concurrent}\ncheck_interval = 1\n[mayfly]\nstate_dir = \"{}\"\n[[runners]]\nname = \"bench\"\n\
             url = \"{}\"\ntoken = \"{RUNNER_TOKEN}\"\nexecutor = \"shell\"\noutput_limit = 1000000\n",
            home.path().join("state").display(),
            gitlab.url,
        );
        fs::write(&config, text).expect("written");
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

    /// The median time from a job's payload to its final state.
    fn jobs(&self, make: impl Fn(usize) -> Value) -> Duration {
        median((0..ROUNDS).map(|round| {
            let id = self.gitlab.queue(make(round));
            let done = self.gitlab.finished(id);
            assert_eq!(done.state, "success", "{}", done.log());
            done.ended.expect("ended") - done.taken.expect("taken")
        }))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn tell(what: &str, time: Duration) {
    println!("{what:<44} {:>12.1} ms", time.as_secs_f64() * 1000.0);
}

/// Resident memory of a process, KiB.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
}

/// The same with the shims it started.
fn family_memory(pid: u32) -> u64 {
    let mut all = memory(pid);
    for entry in fs::read_dir("/proc").expect("proc").flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        if parent == Some(pid) {
            all += entry.file_name().to_string_lossy().parse().map_or(0, memory);
        }
    }
    all
}
