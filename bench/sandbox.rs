//! Measures the time that the sandbox adds to a stage of a container job: `cargo bench --bench sandbox`, as root.
//!
//! A stage with a file task is a shim that runs one task. The task here is the smallest one, emptying a directory. It
//! runs alternately with the rights of a stage of a shell job, and in the sandbox of a stage of a container job.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Rounds of which the median is printed.
const ROUNDS: usize = 200;

fn main() {
    let program = std::env::var_os("MAYFLY").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_mayfly")), PathBuf::from);
    let directory = tempfile::tempdir().expect("a directory");
    let bench = Bench { program, directory: directory.path().to_owned() };
    // The first runs load the program from the disk.
    for rights in [json!("User"), bench.sandbox(true)] {
        for _ in 0..10 {
            bench.run(&rights);
        }
    }
    let kinds = [
        ("stage with the user's rights", json!("User")),
        ("stage in the sandbox, without a network", bench.sandbox(false)),
        ("stage in the sandbox, with servers", bench.sandbox(true)),
    ];
    let mut times = vec![Vec::new(); kinds.len()];
    let mut spent = vec![0.0; kinds.len()];
    for _ in 0..ROUNDS {
        for (kind, (_, rights)) in kinds.iter().enumerate() {
            let before = processor_time();
            times[kind].push(bench.run(rights));
            spent[kind] += processor_time() - before;
        }
    }
    let medians: Vec<Duration> = times.into_iter().map(median).collect();
    for (kind, (what, _)) in kinds.iter().enumerate() {
        let added = medians[kind].as_secs_f64() - medians[0].as_secs_f64();
        println!(
            "{what:<44} {:>8.2} ms, {added:>6.2} ms added, {:>6.2} ms of processor time",
            millis(medians[kind].as_secs_f64()),
            millis(spent[kind] / ROUNDS as f64),
            added = millis(added),
        );
    }
}

struct Bench {
    program: PathBuf,
    directory: PathBuf,
}

impl Bench {
    /// The JSON form of `Rights::Sandbox` in `src/shim/spec.rs`.
    fn sandbox(&self, has_servers: bool) -> Value {
        let network = has_servers.then(|| json!({"allowed": [], "proxies": []}));
        json!({"Sandboxed": {
            "writable": [self.ground()], "readable": [], "world_writable": true, "uid": 1_900_000_000, "network": network,
            "ambient_capabilities": false,
            "limits": {"memory": 1_u64 << 30, "processes": 1024, "cpu_millis": null},
        }})
    }

    fn ground(&self) -> PathBuf {
        self.directory.join("ground")
    }

    /// Runs one stage; returns the time from the start of its shim to its end.
    fn run(&self, rights: &Value) -> Duration {
        fs::create_dir_all(self.ground()).expect("create the directory");
        let is_sandboxed = rights != "User";
        let spec = json!({
            "id": "bench", "spool": self.directory.join("log"), "status": self.directory.join("status"),
            "filters": {"masks": [], "token_prefixes": [], "timestamps": false, "limit": 1 << 20},
            "user": null, "cgroups": groups(is_sandboxed), "grace": 5.0, "deadline": null,
            "task": {"AgentTask": {
                "task": json!({"File": {"EmptyDirectory": self.ground()}}).to_string(), "rights": rights,
            }},
        });
        let began = Instant::now();
        let mut shim = Command::new(&self.program)
            .args(["shim", "bench"])
            .env_clear()
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shim");
        shim.stdin.take().expect("a pipe").write_all(spec.to_string().as_bytes()).expect("write all bytes");
        assert!(shim.wait().expect("wait for the end of the process").success());
        let time = began.elapsed();
        let status: Value =
            serde_json::from_slice(&fs::read(self.directory.join("status")).expect("a status")).expect("must be JSON");
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        assert_eq!(status["end"], json!({"Exited": 0}), "{log}");
        fs::remove_file(self.directory.join("status")).expect("remove the file");
        time
    }
}

/// Creates control groups where the agent creates them.
fn groups(is_sandboxed: bool) -> Vec<PathBuf> {
    let controllers: &[&str] = if is_sandboxed { &["memory", "pids", "cpu"] } else { &["pids"] };
    let first = |controller: &&str| PathBuf::from(format!("/sys/fs/cgroup/{controller}"));
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return vec![PathBuf::from("/sys/fs/cgroup/mayfly-bench")];
    }
    controllers.iter().map(first).filter(|group| group.is_dir()).map(|group| group.join("mayfly-bench")).collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn millis(seconds: f64) -> f64 {
    seconds * 1000.0
}

/// Processor time in seconds of all ended child processes.
fn processor_time() -> f64 {
    let usage =
        nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).expect("read the resource usage");
    [usage.user_time(), usage.system_time()].iter().map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6).sum()
}
