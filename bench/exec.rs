//! Measures `mayfly exec`, and a lower bound on the same machine: `cargo bench --bench exec`.
//!
//! With `GITLAB_CI_LOCAL=/path/to/gitlab-ci-local`, it runs the same pipelines in the same rounds. Arguments select
//! measurements by name; `MAYFLY=/path/to/mayfly` measures another build. The measurement `container` needs root and
//! starts its own container engine.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::docker::docker;
use support::git::git;

/// The number of rounds; the median is printed.
const ROUNDS: usize = 15;

/// A program that runs pipelines.
struct Program {
    name: &'static str,
    path: PathBuf,
    is_mayfly: bool,
}

/// Measures a program and prints the result.
type Measure = fn(&Program);

/// The measurements by name.
const FIGURES: [(&str, Measure); 7] = [
    ("one", one_job),
    ("hundred", hundred_jobs),
    ("list", list),
    ("parallel", parallel),
    ("container", container),
    ("tree", tree),
    ("memory", memory),
];

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mayfly = std::env::var_os("MAYFLY").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_mayfly")), PathBuf::from);
    let mut programs = vec![Program { name: "mayfly exec", path: mayfly, is_mayfly: true }];
    if let Some(path) = std::env::var_os("GITLAB_CI_LOCAL") {
        programs.push(Program { name: "gitlab-ci-local", path: path.into(), is_mayfly: false });
    }
    for program in programs {
        println!("-- {}", program.name);
        for (figure, measure) in FIGURES {
            if chosen.is_empty() || chosen.iter().any(|name| name == figure) {
                measure(&program);
            }
        }
    }
}

/// A checkout with one configuration file.
struct Checkout {
    directory: tempfile::TempDir,
}

impl Checkout {
    fn new(file: &str) -> Self {
        let checkout = Self { directory: tempfile::tempdir().expect("a directory") };
        fs::create_dir(checkout.root()).expect("create the directory");
        git(&checkout.root(), &["init", "-q", "-b", "main"]);
        git(&checkout.root(), &["config", "user.name", "Dev"]);
        git(&checkout.root(), &["config", "user.email", "dev@example.test"]);
        git(&checkout.root(), &["remote", "add", "origin", "https://git.example.test/team/app.git"]);
        fs::write(checkout.root().join(".gitlab-ci.yml"), file).expect("write the file");
        checkout.commit();
        checkout
    }

    fn commit(&self) {
        git(&self.root(), &["add", "-A"]);
        git(&self.root(), &["commit", "-q", "-m", "x"]);
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("app")
    }

    fn command(&self, program: &Program, arguments: &[&str]) -> Command {
        let mut command = Command::new(&program.path);
        if program.is_mayfly {
            command.arg("exec");
        }
        command
            .args(arguments)
            .current_dir(self.root())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.env("HOME", self.directory.path()).env("XDG_CACHE_HOME", self.directory.path().join("cache"));
        command
    }

    /// Runs a command, which must succeed, and returns the elapsed time.
    fn time(&self, program: &Program, arguments: &[&str]) -> Duration {
        let began = Instant::now();
        let status = self.command(program, arguments).status().expect("run the program");
        assert!(status.success(), "{} {arguments:?}: {status}", program.name);
        began.elapsed()
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn tell(what: &str, time: Duration, limit: &str) {
    println!("{what:<44} {:>9.1} ms  {limit}", time.as_secs_f64() * 1000.0);
}

fn time(command: &mut Command) -> Duration {
    let began = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("run the program").success());
    began.elapsed()
}

/// The option with which the other program isolates its jobs from the work tree.
fn isolated(program: &Program) -> &'static [&'static str] {
    if program.is_mayfly { &[] } else { &["--shell-isolation"] }
}

fn one_job(program: &Program) {
    let checkout = Checkout::new("a: {script: echo hi}\n");
    checkout.time(program, isolated(program));
    let (mut times, mut limits) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        times.push(checkout.time(program, isolated(program)));
        // With the same home directory: start-up files of a user may take longer than the job.
        limits.push(time(Command::new("bash").args(["-l", "-c", "echo hi"]).env("HOME", checkout.directory.path())));
    }
    let limit = format!("login bash {:.1} ms; aim 15 ms", median(limits).as_secs_f64() * 1000.0);
    tell("one shell job", median(times), &limit);
}

fn hundred_jobs(program: &Program) {
    let mut file = String::new();
    (0..100).for_each(|number| writeln!(file, "j{number}: {{script: 'true'}}").expect("write to the string"));
    let checkout = Checkout::new(&file);
    checkout.time(program, isolated(program));
    let times = (0..5).map(|_| checkout.time(program, isolated(program))).collect();
    tell("100 trivial jobs", median(times), "aim 500 ms on 2 cores");
}

fn list(program: &Program) {
    let mut file = String::from("default: {image: alpine}\n");
    (0..1000).for_each(|number| {
        writeln!(file, "j{number}: {{script: 'echo {number}', rules: [if: $CI]}}").expect("write to the string")
    });
    let checkout = Checkout::new(&file);
    checkout.time(program, &["--list"]);
    let times = (0..ROUNDS).map(|_| checkout.time(program, &["--list"])).collect();
    tell("--list of 1,000 jobs", median(times), "aim 10 ms");
}

fn parallel(program: &Program) {
    let checkout = Checkout::new("a: {script: sleep 2}\nb: {script: sleep 2}\n");
    checkout.time(program, isolated(program));
    tell("two `sleep 2` in one stage", checkout.time(program, isolated(program)), "aim 2,100 ms");
}

fn container(program: &Program) {
    let host = docker().host();
    let checkout = Checkout::new("a: {image: 'busybox:local', script: echo hi}\n");
    let run = || {
        let began = Instant::now();
        // The other program pulls an image that is present, unless it is told not to.
        let mut command =
            checkout.command(program, if program.is_mayfly { &[] } else { &["--pull-policy", "if-not-present"] });
        assert!(command.env("DOCKER_HOST", &host).status().expect("run the program").success());
        began.elapsed()
    };
    run();
    let (mut times, mut limits) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        times.push(run());
        limits.push(time(&mut docker().command(&["run", "--rm", "busybox:local", "echo", "hi"])));
    }
    let limit = format!("docker run --rm {:.0} ms; aim 1.2 times", median(limits).as_secs_f64() * 1000.0);
    tell("one container job", median(times), &limit);
}

fn tree(program: &Program) {
    let checkout = Checkout::new("a: {script: 'true'}\n");
    for directory in 0..200 {
        let place = checkout.root().join(format!("d{directory}"));
        fs::create_dir(&place).expect("create the directory");
        for file in 0..100 {
            fs::write(place.join(format!("f{file}")), format!("{directory} {file}\n").repeat(20))
                .expect("write the file");
        }
    }
    checkout.commit();
    let add = |number: usize| {
        let worktree = checkout.directory.path().join(format!("worktree-{number}")).display().to_string();
        time(Command::new("git").arg("-C").arg(checkout.root()).args(["worktree", "add", "-q", &worktree]))
    };
    let limit = median((0..5).map(add).collect());
    let of_limit = |time: Duration| format!("{:.2} times git worktree add", time.as_secs_f64() / limit.as_secs_f64());
    let first = checkout.time(program, isolated(program));
    tell("20,000 tracked files, first job", first, &format!("{}; aim 1.5", of_limit(first)));
    let next = median((0..5).map(|_| checkout.time(program, isolated(program))).collect());
    tell("20,000 tracked files, next job", next, &format!("{}; aim 0.2", of_limit(next)));
}

fn memory(program: &Program) {
    let mut file = String::new();
    (0..100).for_each(|number| writeln!(file, "j{number}: {{script: 'seq 1000'}}").expect("write to the string"));
    let checkout = Checkout::new(&file);
    let mut child = checkout.command(program, isolated(program)).spawn().expect("start the process");
    let mut most = 0;
    while child.try_wait().expect("wait for the end of the process").is_none() {
        most = most.max(peak(child.id()));
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("{:<44} {:>9.1} MiB aim 11.4 MiB", "most memory, 100 jobs", most as f64 / 1024.0);
}

/// The peak memory of a process in KiB.
fn peak(process: u32) -> u64 {
    let status = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
}
