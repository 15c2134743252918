//! A manager with agents on this machine, and an engine program whose members a test sets.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::mayfly::{Agent, Home, read, wait_for_exit};
use super::ports::free_port;
use super::scenario::Scenario;
pub use super::wait_until;
use super::{TIMEOUT, send_signal, wait_or_explain};

/// The token of the fleet.
pub const FLEET_TOKEN: &str = "token-of-the-fleet-0123456789";

/// An engine program that lists the instances in the file `members` and records the requests.
const ENGINE: &str = "#!/bin/sh\nwhile read -r line; do\n  case \"$line\" in\n    *'\"call\":\"group\"'*) cat \"$1/members\" ;;\n    \
                      *) echo \"$line\" >> \"$1/calls\"; echo '{}' ;;\n  esac\ndone\n";

/// The files of a manager.
pub struct Fleet {
    pub home: Home,
    pub port: u16,
}

/// A running manager; killed when the test ends.
pub struct Manager {
    child: Child,
    log: PathBuf,
}

impl Fleet {
    /// The files of a manager without a configuration; see [`super::pool::Pool`].
    pub fn empty() -> Self {
        let fleet = Self { home: Home::empty(), port: free_port() };
        fs::write(fleet.home.path("engine.sh"), ENGINE).expect("write the file");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(fleet.home.path("engine.sh"), open).expect("set the permissions");
        fleet.set_members(&[]);
        fleet
    }

    /// The keys of the engine program, whose file `members` is in a directory below that of the fleet.
    pub fn engine(&self, below: &str) -> String {
        let [program, directory] = ["engine.sh", below].map(|name| self.home.path(name).display().to_string());
        format!("command = \"/bin/sh\"\nargs = [\"{program}\", \"{directory}\"]")
    }

    /// Sets the instances that the engine lists; all are running.
    pub fn set_members(&self, instances: &[&str]) {
        let members: Vec<Value> = instances.iter().map(|instance| json!({"instance": instance})).collect();
        let text = format!("{}\n", json!({"members": members}));
        let draft = self.home.path("members.draft");
        fs::write(&draft, text).expect("write a file");
        fs::rename(&draft, self.home.path("members")).expect("rename the file");
    }

    /// The requests to the engine, except those for its members.
    pub fn engine_calls(&self) -> String {
        read(&self.home.path("calls"))
    }

    /// Waits until a condition holds.
    pub fn wait_until(&self, what: &str, holds: impl Fn() -> bool) {
        wait_until(what, holds);
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn start(&self) -> Manager {
        self.start_with(&[])
    }

    /// Starts a manager with further variables in its environment.
    pub fn start_with(&self, environment: &[(&str, String)]) -> Manager {
        let count = fs::read_dir(self.home.path("")).expect("a directory").count();
        let log = self.home.path(&format!("manager-{count}.log"));
        let output = fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        let config = self.home.config().display().to_string();
        let mut command = self.home.command(&["manager", "--config", &config]);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).spawn().expect("start mayfly");
        let manager = Manager { child, log };
        manager.wait_for_log("mayfly manager is up");
        manager
    }

    /// Starts the manager, with one member of the group and its agent, which waits for a job.
    pub fn start_with_agent(&self, instance: &str) -> (Manager, Home, Agent) {
        self.set_members(&[instance]);
        let manager = self.start();
        let (home, agent) = self.agent(&manager, instance);
        (manager, home, agent)
    }

    /// A member of the group with a running agent that waits for a job.
    pub fn agent(&self, manager: &Manager, instance: &str) -> (Home, Agent) {
        let home = Scenario::managed(instance).home_at(&self.url());
        let agent = home.start(&[]);
        manager.wait_for_log(&format!("agent registered pool=pool instance={instance}"));
        (home, agent)
    }

    /// Sends a request of an agent. Returns the status, the head and the body of the response.
    pub fn call(&self, method: &str, path: &str, token: &str, body: &Value) -> (u16, String, Value) {
        use std::io::{Read, Write};
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connect to the server");
        stream.set_read_timeout(Some(TIMEOUT)).expect("set the timeout");
        let body = body.to_string();
        let request = format!(
            "{method} /api/v4/{path} HTTP/1.1\r\nHost: h\r\nRUNNER-TOKEN: {token}\r\nContent-Length: {}\r\nConnection: \
             close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("write all bytes");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("a response");
        let (head, body) = text.split_once("\r\n\r\n").expect("the head of the response");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, head.to_owned(), serde_json::from_str(body).unwrap_or_default())
    }

    /// Sends the registration of an agent.
    pub fn register(&self, token: &str, instance: &str, boot: &str) -> (u16, String, Value) {
        let introduction = json!({"protocol": 1, "instance": instance, "boot": boot, "version": "0", "labels": {}});
        self.call("POST", "runners/verify", token, &json!({"token": token, "mayfly": introduction}))
    }
}

impl Manager {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends a signal, named without `SIG`.
    pub fn signal(&self, name: &str) {
        let signal: Signal = format!("SIG{name}").parse().expect("a signal");
        send_signal(self.pid(), signal);
    }

    pub fn kill(mut self) {
        self.child.kill().expect("send the signal");
        self.child.wait().expect("must end");
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for_exit(&mut self.child, &self.log)
    }

    pub fn log(&self) -> String {
        read(&self.log)
    }

    pub fn wait_for_log(&self, part: &str) {
        let explain = || format!("`{part}` in the log of the manager:\n{}", self.log());
        wait_or_explain(|| self.log().contains(part), explain);
    }

    /// Resident memory in KiB.
    #[allow(dead_code, reason = "the benchmark of the manager uses it")]
    pub fn memory(&self) -> u64 {
        let status = read(Path::new(&format!("/proc/{}/status", self.pid())));
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
