//! Attacks by jobs on the machine. Each states in a few lines what the attacker prepares and what must be true
//! afterwards.
//!
//! Each attack is a test, so it can be run by name; the files of this directory are named after the target of the
//! attack. Most build an [`Attack`]: files of the repository, files of an earlier job, services that run meanwhile,
//! variables, an archive of another job. The result shows whether the attack failed. [`probe`] is a program that prints
//! its own privileges, so the tests can judge the sandbox from inside.

mod checkout;
mod files;
mod kernel;
mod processes;
mod repository;
mod sandbox;
mod servers;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::support::git::GitServer;
use crate::support::gitlab::{Fault, GitLab, Job};
use crate::support::http::Answer;
use crate::support::job::{JobBuilder, job};
use crate::support::mayfly::Home;
use crate::support::scenario::Scenario;
use crate::support::write_program;

/// A program that prints its privileges to standard error, one per line (`hostile NAME VALUE`).
fn probe() -> String {
    include_str!("../support/probe.sh").replace("WITNESS", &witness().to_string())
}

/// The port of a server on the machine's loopback, which no job may reach. Connections are counted in [`REACHED`].
fn witness() -> u16 {
    static PORT: OnceLock<u16> = OnceLock::new();
    *PORT.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for _ in listener.incoming() {
                REACHED.fetch_add(1, Ordering::SeqCst);
            }
        });
        port
    })
}

static REACHED: AtomicUsize = AtomicUsize::new(0);

/// The description of an attack.
struct Attack {
    containers: bool,
    keys: String,
    files: Vec<(String, String)>,
    earlier: Vec<String>,
    services: Vec<String>,
    variables: Vec<(String, String)>,
    submodule: Option<(String, String)>,
    script: Vec<String>,
    artifacts: Vec<String>,
    dependency: Option<Vec<u8>>,
    more: Vec<(String, Value)>,
    user: &'static str,
    programs: Vec<(String, String)>,
}

/// The result of an attack.
struct Outcome {
    /// The attacking job; a preparing job ran successfully before it.
    job: Job,
    /// The agent's log.
    agent: String,
    home: Home,
}

/// An attack on an agent whose jobs run in containers.
fn in_containers() -> Attack {
    Attack {
        containers: true,
        keys: String::new(),
        files: vec![("file.txt".to_owned(), "from git\n".to_owned())],
        earlier: Vec::new(),
        services: Vec::new(),
        variables: Vec::new(),
        submodule: None,
        script: vec!["true".to_owned()],
        artifacts: Vec::new(),
        dependency: None,
        more: Vec::new(),
        user: "",
        programs: Vec::new(),
    }
}

/// An attack on an agent whose jobs run in the machine's shell.
fn on_the_machine() -> Attack {
    Attack { containers: false, ..in_containers() }
}

impl Attack {
    /// Adds configuration: to `[runners.docker]` for jobs in containers, else to the runner.
    fn keys(mut self, keys: &str) -> Self {
        self.keys += &format!("{keys}\n");
        self
    }

    /// Adds a file to the repository.
    fn file(mut self, path: &str, text: &str) -> Self {
        self.files.push((path.to_owned(), text.to_owned()));
        self
    }

    /// Adds a script line to a job that runs first in the same directory.
    fn earlier(mut self, line: &str) -> Self {
        self.earlier.push(line.to_owned());
        self
    }

    /// Adds a service that runs a script in the busybox shell.
    fn service(mut self, script: &str) -> Self {
        self.services.push(script.to_owned());
        self
    }

    /// Adds a submodule; `$SERVER` in the address is the server of the repository.
    fn submodule(mut self, path: &str, address: &str) -> Self {
        self.submodule = Some((path.to_owned(), address.to_owned()));
        self.variable("GIT_SUBMODULE_STRATEGY", "normal")
    }

    fn variable(mut self, key: &str, value: &str) -> Self {
        self.variables.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sets the script of the attacking job.
    fn script(mut self, lines: &[&str]) -> Self {
        self.script = lines.iter().map(|line| (*line).to_owned()).collect();
        self
    }

    /// Sets the artifacts of the attacking job.
    fn artifacts(mut self, patterns: &[&str]) -> Self {
        self.artifacts = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        self
    }

    /// Adds a dependency on a job whose artifacts are this archive.
    fn dependency(mut self, archive: Vec<u8>) -> Self {
        self.dependency = Some(archive);
        self
    }

    /// Sets another part of the payload, also of the earlier job.
    fn with(mut self, key: &str, value: Value) -> Self {
        self.more.push((key.to_owned(), value));
        self
    }

    /// Sets the user that scripts run as.
    fn user(mut self, name: &'static str) -> Self {
        self.user = name;
        self
    }

    /// Adds a program to the agent's `PATH`.
    fn program(mut self, name: &str, script: &str) -> Self {
        self.programs.push((name.to_owned(), script.to_owned()));
        self
    }

    /// Runs the attack.
    fn run(self) -> Outcome {
        let root = tempfile::tempdir().expect("a directory");
        let git = GitServer::start(root.path());
        let files: Vec<(&str, &str)> = self.files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let (url, mut sha) = git.repository("team/demo", &files);
        if let Some((path, address)) = &self.submodule {
            git.repository("team/library", &[("lib.txt", "from the library\n")]);
            sha = git.add_submodule("team/demo", path, &address.replace("$SERVER", &git.url));
        }
        let gitlab = GitLab::start();
        let user = if self.user.is_empty() { String::new() } else { format!("user = \"{}\"", self.user) };
        let mut home = match self.containers {
            true => {
                Scenario::containers().docker(&format!("wait_for_services_timeout = -1\n{}", self.keys)).home(&gitlab)
            }
            false => Scenario::shell().config(&user).runner(&self.keys).home(&gitlab),
        };
        self.programs.iter().for_each(|(name, script)| write_program(&home.path(name), script));
        home.set_environment(vec![("PATH".to_owned(), format!("{}:/usr/bin:/bin", home.path("").display()))]);
        if let Some(archive) = &self.dependency {
            gitlab.fail("GET artifacts", [Fault::Answer(Answer::new(200).body(archive.clone()))]);
        }
        let with_sources = |lines: &[String]| {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            self.more.iter().fold(job(&lines).sources(&url, &sha), |job, (key, value)| job.set(key, value.clone()))
        };
        let earlier = (!self.earlier.is_empty()).then(|| gitlab.queue(with_sources(&self.earlier).build()));
        let attack = gitlab.queue(self.attacking(with_sources(&self.script)).build());
        let mut agent = home.start(&["--max-builds", if earlier.is_some() { "2" } else { "1" }]);
        if let Some(earlier) = earlier.map(|id| gitlab.finished(id)) {
            assert_eq!(earlier.state, "success", "{}", earlier.log());
        }
        let job = gitlab.finished(attack);
        assert!(agent.wait().success(), "{}", agent.log());
        gitlab.assert_strict();
        Outcome { job, agent: agent.log(), home }
    }

    fn attacking(&self, job: JobBuilder) -> JobBuilder {
        let service = |script: &String| json!({"name": "busybox:local", "command": ["sh", "-c", script]});
        let services: Vec<_> = self.services.iter().map(service).collect();
        let artifact = json!({"name": "", "paths": self.artifacts, "artifact_format": "zip", "when": "always"});
        let artifacts = if self.artifacts.is_empty() { json!(null) } else { json!([artifact]) };
        let job = job.set("services", json!(services)).set("artifacts", artifacts);
        let file = json!({"filename": "artifacts.zip", "size": 1});
        let of_others = json!([{"id": 1, "name": "build", "token": "glcbt-of-another", "artifacts_file": file}]);
        let job = if self.dependency.is_some() { job.set("dependencies", of_others) } else { job };
        self.variables.iter().fold(job, |job, (key, value)| job.variable(key, value))
    }
}

impl Outcome {
    /// The output of [`probe`], if it ran.
    fn findings(&self) -> BTreeMap<String, String> {
        let lines = self.job.lines();
        let findings = lines.iter().filter_map(|line| line.split_once("hostile ")?.1.split_once(' '));
        findings.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    }

    /// Asserts that the attacker's program did not run, or had no privileges.
    fn got_nowhere(self) -> Self {
        let findings = self.findings();
        if !findings.is_empty() {
            assert_confined(&findings);
        }
        assert_eq!(REACHED.load(Ordering::SeqCst), 0, "the machine's loopback was reached");
        self
    }

    /// Asserts that no program of the attacker ran.
    fn ran_nothing(self) -> Self {
        assert_eq!(self.findings(), BTreeMap::new(), "{}", self.job.log());
        self
    }

    /// Asserts that the job failed with this text in its log.
    fn failed_with(self, part: &str) -> Self {
        assert_eq!(self.job.state, "failed", "{}", self.job.log());
        assert!(self.job.has(part), "{part} in {}", self.job.log());
        self
    }

    /// Asserts that the job's log contains this text.
    fn says(self, part: &str) -> Self {
        assert!(self.job.has(part), "{part} in {}", self.job.log());
        self
    }

    fn succeeded(self) -> Self {
        assert_eq!(self.job.state, "success", "{}\n{}", self.job.log(), self.agent);
        self
    }

    /// Asserts that neither the job's log nor its artifacts contain this secret.
    fn without(self, secret: &str) -> Self {
        let holds = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!holds(&self.job.trace), "{secret} in {}", self.job.log());
        assert!(!self.job.artifacts.iter().any(|artifact| holds(&artifact.content)), "{secret} in an artifact");
        self
    }

    /// Asserts that a file does not exist on the machine.
    fn made_no(self, path: &Path) -> Self {
        assert!(path.symlink_metadata().is_err(), "{} is there\n{}", path.display(), self.job.log());
        self
    }
}

/// Asserts that [`probe`] ran without privileges.
fn assert_confined(findings: &BTreeMap<String, String>) {
    let confined = [
        ("config", "hidden"),
        ("processes", "own"),
        ("devices", "harmless"),
        ("uid", "1900000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("core_pattern", "closed"),
        ("proc", "closed"),
        ("root", "closed"),
        ("ways", "closed"),
        ("calls", "closed"),
        ("network", "closed"),
    ];
    for (name, expected) in confined {
        // The sandbox may keep the capabilities for files: git must be able to clean files of other users.
        let found = findings.get(name).map(|found| if OF_FILES.contains(&found.as_str()) { NONE } else { found });
        assert_eq!(found, Some(expected), "{name} in {findings:#?}");
    }
}

/// No capabilities; and the capabilities for files (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER).
const NONE: &str = "0000000000000000";
const OF_FILES: [&str; 2] = [NONE, "000000000000000b"];

/// A shell command that writes a file with any content.
fn writes(path: &str, text: &str) -> String {
    format!("echo {} | base64 -d >{path}", base64::engine::general_purpose::STANDARD.encode(text))
}
