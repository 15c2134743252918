//! The real program, with its own directory and a minimal environment.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::gitlab::{GitLab, Job};
use super::job::JobBuilder;
use super::{kill_process, send_signal, wait_or_explain};

/// The files of one agent.
pub struct Home {
    directory: HomeDirectory,
    program: PathBuf,
    environment: Vec<(String, String)>,
    user: Option<u32>,
}

/// The directory of a home. If the test fails, prints the logs in it and the calls of a manager's engine.
struct HomeDirectory(tempfile::TempDir);

impl HomeDirectory {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for HomeDirectory {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let entries = fs::read_dir(self.path()).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_log = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
        let mut logs: Vec<PathBuf> = entries.filter(is_log).collect();
        logs.sort_by_key(|path| path.metadata().and_then(|metadata| metadata.modified()).ok());
        logs.push(self.path().join("calls"));
        for path in logs.into_iter().filter(|path| path.exists()) {
            let (text, name) = (read(&path), path.display());
            println!("==> the newest {NEWEST_LINES} lines of {name}\n{}", newest_lines(&text));
        }
    }
}

/// How many lines of each log a failed test prints.
const NEWEST_LINES: usize = 200;

fn newest_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(NEWEST_LINES)..].join("\n")
}

/// A running agent; killed when the test ends.
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Home {
    /// A directory without a configuration; see [`super::scenario::Scenario`].
    pub fn empty() -> Self {
        let directory = HomeDirectory(tempfile::tempdir().expect("a directory"));
        // The user of a job must be able to traverse this directory.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), open).expect("set the permissions");
        // Benchmarks measure another build than that of the tests.
        let program = std::env::var_os("MAYFLY").map_or_else(|| env!("CARGO_BIN_EXE_mayfly").into(), PathBuf::from);
        Self { directory, program, environment: Vec::new(), user: None }
    }

    pub fn config(&self) -> PathBuf {
        self.path("config.toml")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The journal record of the job in the first slot, with its latest progress; null if there is no job.
    pub fn record(&self) -> Value {
        let text = read(&self.path("state/slot-0/job.json"));
        let mut lines = text.lines().map_while(|line| serde_json::from_str::<Value>(line).ok());
        let mut record = lines.next().unwrap_or_default();
        if let Some(latest) = lines.last() {
            record["progress"] = latest;
        }
        record
    }

    /// Replaces that journal record.
    pub fn set_record(&self, record: &Value) {
        fs::write(self.path("state/slot-0/job.json"), record.to_string()).expect("write a file");
    }

    /// Makes the state directory look like one of an earlier boot.
    pub fn reboot(&self) {
        let boot = read(Path::new("/proc/sys/kernel/random/boot_id"));
        let slots = fs::read_dir(self.path("state")).expect("a state directory").flatten();
        let jobs = slots.map(|slot| slot.path().join("job.json"));
        let files = jobs.chain([self.path("state/leaving.json"), self.path("state/agent.json")]);
        for file in files.filter(|file| file.is_file()) {
            let text = read(&file);
            assert!(text.contains(boot.trim()), "{}: {text}", file.display());
            fs::write(&file, text.replace(boot.trim(), "an earlier boot")).expect("write a file");
        }
    }

    /// Adds variables to the agent's environment, from its next start on.
    pub fn set_environment(&mut self, environment: Vec<(String, String)>) {
        self.environment = environment;
    }

    /// Copies the program into this home, so that a test can replace it.
    pub fn own_program(&mut self) -> PathBuf {
        let own = self.path("mayfly");
        // Copied by another process, for the reason given at `write_program`.
        assert!(Command::new("cp").args([&self.program, &own]).status().expect("run cp").success());
        self.program.clone_from(&own);
        own
    }

    /// Runs the program until it exits.
    pub fn call(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().expect("run mayfly")
    }

    /// The agent runs as this user, who owns everything in this home from now on.
    pub fn run_as(&mut self, uid: u32) {
        self.own_program();
        let mut chown = Command::new("chown");
        let status = chown.arg("-R").arg(format!("{uid}:{uid}")).arg(self.directory.path()).status();
        assert!(status.expect("run chown").success());
        self.user = Some(uid);
    }

    /// The program with these arguments, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.directory.path())
            .env("AGENT_ONLY", "not for jobs")
            // The fake services share the machine with all tests and are slower than the real ones.
            .env("AWS_METADATA_SERVICE_TIMEOUT", "10")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(uid) = self.user {
            use std::os::unix::process::CommandExt;
            command.uid(uid).gid(uid);
        }
        command
    }

    pub fn start(&self, arguments: &[&str]) -> Agent {
        self.start_with(arguments, &[])
    }

    /// Runs one job on an agent that exits after it, and returns the job.
    pub fn run(&self, gitlab: &GitLab, job: JobBuilder) -> Job {
        self.run_with(gitlab, &[], job)
    }

    /// As [`Home::run`], with further variables in the agent's environment.
    pub fn run_with(&self, gitlab: &GitLab, environment: &[(&str, &str)], job: JobBuilder) -> Job {
        let id = gitlab.queue(job.build());
        let mut agent = self.start_with(&["--once"], environment);
        let job = gitlab.finished(id);
        assert!(agent.wait().success(), "{}", agent.log());
        gitlab.assert_strict();
        job
    }

    /// Starts the agent with further variables in its environment.
    pub fn start_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Agent {
        // Each agent of this home has its own log.
        let count = fs::read_dir(self.directory.path()).expect("a directory").count();
        let log = self.path(&format!("agent-{count}.log"));
        let output = fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        let config = self.config().display().to_string();
        let all = [&["run", "--config", &config], arguments].concat();
        let mut command = self.command(&all);
        command.envs(environment.iter().copied()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let child = command.spawn().expect("start mayfly");
        Agent { child, log }
    }
}

impl Agent {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends a signal, named without `SIG`. For a signal that the agent handles, waits until its handler is installed:
    /// without the handler, the signal would end an agent that has just started.
    pub fn signal(&self, name: &str) {
        let signal: Signal = format!("SIG{name}").parse().expect("a signal");
        let handled = !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGCONT);
        self.wait_until("the handler of the signal", || !handled || self.handles(signal));
        send_signal(self.pid(), signal);
    }

    /// Whether the agent has installed a handler for a signal (proc_pid_status(5), `SigCgt`), or has exited.
    fn handles(&self, signal: Signal) -> bool {
        let status = read(Path::new(&format!("/proc/{}/status", self.pid())));
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.map(|mask| u64::from_str_radix(mask.trim(), 16).expect("a mask"));
        caught.is_none_or(|mask| mask >> (signal as u32 - 1) & 1 == 1)
    }

    /// Kills only the agent; the processes that it started continue.
    pub fn kill(mut self) {
        self.child.kill().expect("send the signal");
        self.child.wait().expect("must end");
    }

    /// Lets the agent finish its jobs (SIGQUIT), and waits until it exits with success.
    pub fn drain(&mut self) {
        self.signal("QUIT");
        assert!(self.wait().success(), "{}", self.log());
    }

    /// Waits until the agent exits.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for_exit(&mut self.child, &self.log)
    }

    /// The agent's log.
    pub fn log(&self) -> String {
        let mut text = String::new();
        fs::File::open(&self.log).and_then(|mut file| file.read_to_string(&mut text)).expect("a log");
        text
    }

    /// Waits until a condition holds; the message of a failure has the agent's log.
    pub fn wait_until(&self, what: &str, holds: impl FnMut() -> bool) {
        wait_or_explain(holds, || format!("{what}; the log of the agent:\n{}", self.log()));
    }

    /// Waits until the agent's log contains a text.
    pub fn wait_for_log(&self, part: &str) {
        self.wait_until(&format!("`{part}` in the log"), || self.log().contains(part));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A sleep command that outlasts any test; its unique argument identifies it.
pub fn nap() -> String {
    format!("sleep {}", super::unique_number())
}

/// Kills the shims of a job. Returns how many there were.
pub fn kill_shims(job: i64) -> usize {
    shims(job).into_iter().filter(|pid| kill_process(*pid)).count()
}

/// The shims of a job, and their children that run file tasks.
pub fn shims(job: i64) -> Vec<i32> {
    let holds = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        matches!(words[..], [_, b"shim", id, ..] if id.starts_with(format!("{job}-").as_bytes()))
    };
    let entries = fs::read_dir("/proc").expect("list the directory").flatten().filter(holds);
    entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
}

/// The highest memory use of any of a job's shims and their children so far, in KiB.
pub fn peak_memory_of_shims(job: i64) -> u64 {
    let peak = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map(str::to_owned);
        line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
    };
    shims(job).iter().map(peak).max().unwrap_or(0)
}

/// Whether a process with this text in its arguments runs.
pub fn is_running(marker: &str) -> bool {
    let entries = fs::read_dir("/proc").expect("list the directory").flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())).any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(marker)
    })
}

/// Waits until a program of the test exits; the message of a failure has its log.
pub fn wait_for_exit(child: &mut Child, log: &Path) -> ExitStatus {
    let (pid, mut status) = (child.id(), None);
    let ended = || {
        status = child.try_wait().expect("read the state of the process");
        status.is_some()
    };
    wait_or_explain(ended, || format!("the end of process {pid}:\n{}", read(log)));
    status.expect("the process must have ended")
}

/// The content of a file.
pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Kills the processes of the agent's own program that work for a job under a shim. Returns how many there were.
pub fn kill_workers(job: i64) -> usize {
    let all = shims(job);
    let parent = |pid: &i32| -> Option<i32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
    };
    let workers = all.iter().filter(|pid| parent(pid).is_some_and(|parent| all.contains(&parent)));
    workers.filter(|pid| kill_process(**pid)).count()
}
