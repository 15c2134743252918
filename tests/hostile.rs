//! Attacks by jobs on the machine. Each states in a few lines what the attacker prepares and what must hold afterwards.
//!
//! Each attack is a test function in [`attacks`], so it can be run by name. Most build an [`Attack`]: files of the
//! repository, files left by an earlier job, services that run meanwhile, variables. The result tells whether the
//! attack failed. [`probe`] is a program that prints its own privileges, so the tests can judge the sandbox from
//! inside.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use serde_json::json;

use crate::support::git::GitServer;
use crate::support::gitlab::{GitLab, Job};
use crate::support::job::{JobBuilder, job};
use crate::support::mayfly::Home;

/// A program that prints its privileges to standard error, one per line (`hostile NAME VALUE`).
fn probe() -> String {
    include_str!("support/probe.sh").replace("WITNESS", &witness().to_string())
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
}

/// The result of an attack.
#[allow(dead_code, reason = "for attacks to come")]
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
    }
}

/// An attack on an agent whose jobs run in the machine's shell.
#[allow(dead_code, reason = "attacks on shell jobs use it")]
fn on_the_machine() -> Attack {
    Attack { containers: false, ..in_containers() }
}

#[allow(dead_code, reason = "for attacks to come")]
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

    /// Adds a script line to a job that runs before in the same directory.
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
        let home = match self.containers {
            true => Home::with_containers(&gitlab, "", &format!("wait_for_services_timeout = -1\n{}", self.keys)),
            false => Home::new(&gitlab, "", &self.keys),
        };
        let with_sources = |lines: &[String]| {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            job(&lines).sources(&url, &sha)
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
        self.variables.iter().fold(job, |job, (key, value)| job.variable(key, value))
    }
}

#[allow(dead_code, reason = "for attacks to come")]
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
            ("calls", "closed"),
            ("network", "closed"),
        ];
        for (name, expected) in confined.into_iter().filter(|_| !findings.is_empty()) {
            // The sandbox may keep the capabilities for files: git must be able to clean files of other users.
            let found = findings.get(name).map(|found| if OF_FILES.contains(&found.as_str()) { NONE } else { found });
            assert_eq!(found, Some(expected), "{name} in {findings:#?}");
        }
        assert_eq!(REACHED.load(Ordering::SeqCst), 0, "the machine's loopback was reached");
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

/// No capabilities; and those for files (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER).
const NONE: &str = "0000000000000000";
const OF_FILES: [&str; 2] = [NONE, "000000000000000b"];

/// A shell command that writes a file with any content.
fn writes(path: &str, text: &str) -> String {
    format!("echo {} | base64 -d >{path}", base64::engine::general_purpose::STANDARD.encode(text))
}

mod attacks {
    use std::process::{Command, Stdio};

    use super::*;

    /// A service's shell command that adds a program as a git filter after the agent has inspected `.git/config` and
    /// before the checkout.
    fn adds_a_filter(program: &str) -> String {
        let filter = "[filter \"x\"]\n\tsmudge = \"sh .git/program >&2; cat\"\n";
        format!(
            "{}; {}; while :; do for git in /builds/*/*/.git; do cp /program $git/program; \
             grep -q smudge $git/config || cat /filter >>$git/config; done 2>/dev/null; done",
            writes("/program", program),
            writes("/filter", filter),
        )
    }

    /// Repeats an attack that must win a race, until the attacker's program has run in the sandbox.
    fn run_until_it_gets_in(attack: impl Fn() -> Attack) -> Outcome {
        let outcomes = (0..10).map(|_| attack().run());
        let outcome = outcomes.into_iter().find(|outcome| !outcome.findings().is_empty());
        outcome.expect("the attacker's program did not run in ten tries")
    }

    #[test]
    fn a_service_adds_a_filter_before_the_checkout() {
        run_until_it_gets_in(|| {
            in_containers().file(".gitattributes", "* filter=x\n").service(&adds_a_filter(&probe()))
        })
        .got_nowhere();
    }

    /// In an earlier version, the name of the directory was part of a shell script that ran outside the container.
    #[test]
    fn the_name_of_the_directory_is_a_command() {
        in_containers()
            .file("probe.sh", &probe())
            .submodule("lib", "$SERVER/team/library.git")
            .variable("GIT_CLONE_PATH", "$CI_BUILDS_DIR/x';sh probe.sh >&2;: 'y")
            .script(&["cat lib/lib.txt"])
            .run()
            .got_nowhere()
            .succeeded();
    }

    /// An earlier job puts a program into a submodule's configuration; the attacking job makes git fetch submodules.
    #[test]
    fn fetch_options_request_a_submodules_program() {
        for containers in [true, false] {
            Attack { containers, ..in_containers() }
                .submodule("lib", "$SERVER/team/library.git")
                .earlier("git -C lib config remote.origin.uploadpack 'touch /tmp/mayfly-hostile-fetch; git-upload-pack' || :")
                .variable("GIT_FETCH_EXTRA_FLAGS", "--recurse-submodules=yes")
                .run()
                .failed_with("GIT_FETCH_EXTRA_FLAGS: `--recurse-submodules=yes`")
                .made_no(Path::new("/tmp/mayfly-hostile-fetch"));
        }
    }

    /// The address of a submodule redirects to a service that only the machine can reach; git's trace output would
    /// print the response.
    #[test]
    fn a_submodule_redirects_to_the_metadata_service() {
        for containers in [true, false] {
            let service = crate::support::http::listen(None, |mut connection| {
                while crate::support::http::read_request(&mut connection).is_some() {
                    let answer = crate::support::http::Answer::new(200).body("the-roles-credentials");
                    let _ = crate::support::http::write_answer(connection.get_mut(), &answer);
                }
            });
            let host = service.trim_start_matches("http://");
            Attack { containers, ..in_containers() }
                .submodule("lib", &format!("$SERVER/elsewhere/{host}/latest/meta-data"))
                .variable("GIT_TRACE_CURL", "1")
                .variable("GIT_CURL_VERBOSE", "1")
                .variable("GIT_TRACE", "1")
                .run()
                .failed_with("redirects to another host")
                .without("the-roles-credentials")
                .without("Authorization: Basic");
        }
    }

    #[test]
    fn a_filter_in_a_directory_of_an_earlier_job() {
        in_containers()
            .earlier("umask 077; mkdir -p left; echo x >left/file")
            .file(".gitattributes", "* filter=x\n")
            .service(&adds_a_filter(&probe()))
            .run()
            .got_nowhere();
    }

    #[test]
    fn a_filter_uses_more_memory_than_the_job_may() {
        let program = "perl -e '$x = \"a\" x (512 << 20); print STDERR \"hostile memory unlimited\\n\"' || true\n\
                       echo 'hostile tried memory' >&2\n";
        let outcome = run_until_it_gets_in(|| {
            in_containers()
                .keys("memory = \"128m\"")
                .file(".gitattributes", "* filter=x\n")
                .service(&adds_a_filter(program))
        });
        let findings = outcome.findings();
        assert!(findings.contains_key("tried") && !findings.contains_key("memory"), "{}", outcome.job.log());
    }

    #[test]
    fn a_filter_starts_more_processes_than_the_job_may() {
        let program = "perl -e 'my $n = 0; while ($n < 400) { my $p = fork(); last unless defined $p; \
                       if (!$p) { sleep 20; exit } $n++ } print STDERR \"hostile processes $n\\n\"; kill 9, -getpgrp()'\n";
        let outcome = run_until_it_gets_in(|| {
            in_containers()
                .keys("[runners.mayfly]\nconfined_processes = 100")
                .file(".gitattributes", "* filter=x\n")
                .service(&adds_a_filter(program))
        });
        let started: u32 = outcome.findings()["processes"].parse().expect("a number");
        assert!(started < 100, "{started} processes");
    }

    /// If the agent lacks the privileges for the sandbox, it runs no job.
    #[test]
    fn without_the_privileges_for_a_sandbox_no_job_runs() {
        let gitlab = GitLab::start();
        let home = Home::with_containers(&gitlab, "", "");
        let config = home.config().display().to_string();
        let limited = |arguments: &[&str]| {
            let program = home.command(&[]);
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set", "-sys_admin"]).arg(program.get_program()).args(arguments).env_clear();
            command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
            command.current_dir(home.path("")).stdin(Stdio::null()).output().expect("setpriv")
        };
        let checked = limited(&["check", "--config", &config]);
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(!checked.status.success() && text.contains("CAP_SYS_ADMIN"), "{text}");
        let root = tempfile::tempdir().expect("a directory");
        let git = GitServer::start(root.path());
        let (url, sha) = git.repository("team/demo", &[("file", "x")]);
        let id = gitlab.queue(job(&["echo ran"]).sources(&url, &sha).build());
        let ended = limited(&["run", "--config", &config, "--once"]);
        let job = gitlab.finished(id);
        assert_eq!((job.state.as_str(), job.failure_reason.as_deref()), ("failed", Some("runner_system_failure")));
        assert!(job.has("CAP_SYS_ADMIN"), "{}\n{}", job.log(), String::from_utf8_lossy(&ended.stderr));
    }

    /// An earlier job manipulates the repository so that git takes other content for that of the commit.
    #[test]
    fn an_earlier_job_changes_what_is_checked_out() {
        let object = "o=$(git rev-parse HEAD:file.txt); n=$(echo evil | git hash-object -w --stdin)";
        let file = "f() { echo .git/objects/$(echo $1 | cut -c 1-2)/$(echo $1 | cut -c 3-); }";
        for line in [
            "git update-index --skip-worktree file.txt; echo evil >file.txt",
            "git update-index --assume-unchanged file.txt; echo evil >file.txt",
            // The same size and, as far as a job can forge it, the same time stamp.
            "touch -r file.txt ../time; echo 'FROM git' >file.txt; touch -r ../time file.txt",
            &format!("{object}; git replace $o $n; git pack-refs --all; rm file.txt"),
            &format!("{object}; git replace $o $n; echo evil >file.txt; git add file.txt"),
            "git sparse-checkout set --no-cone /other && ! [ -e file.txt ]",
            &format!("{object}; {file}; rm -f $(f $o) file.txt; cp $(f $n) $(f $o)"),
            "echo '* text eol=crlf' >.git/info/attributes; rm file.txt; git checkout file.txt",
            "mv .git/objects ../objects; mkdir -p .git/objects/info; echo ../../objects >.git/objects/info/alternates",
            "git commit-graph write --reachable; chmod 000 .git",
        ] {
            let line = format!("mkdir -p .git/info; {line}");
            let outcome =
                on_the_machine().earlier(&line).script(&["cat file.txt; git status --short"]).run().succeeded();
            let lines = outcome.job.lines();
            assert!(lines.iter().any(|line| line == "from git"), "after `{line}`: {lines:#?}");
            assert!(!lines.iter().any(|line| line.contains(" M file.txt")), "after `{line}`: {lines:#?}");
        }
    }

    /// Pipes and endless files where git and the agent read.
    #[test]
    fn an_earlier_job_leaves_files_that_block_readers() {
        let paths = [
            ".git/HEAD",
            ".git/config",
            ".git/index",
            ".git/packed-refs",
            ".git/shallow",
            ".git/refs/heads/x",
            ".git/objects/info/mayfly-format",
            ".git/objects/pack/pack-0.idx",
            ".git/mayfly-checkout",
            ".gitattributes",
            ".gitignore",
        ];
        let plant = |how: &str, path: &str| format!("mkdir -p .git/objects/pack; rm -f {path}; {how} {path}");
        let each = paths.iter().flat_map(|path| [plant("mkfifo", path), plant("truncate -s 4G", path)]);
        let all: Vec<String> = paths.iter().map(|path| plant("mkfifo", path)).collect();
        let attacks =
            each.map(|line| on_the_machine().earlier(&line)).chain([in_containers().earlier(&all.join("; "))]);
        for attack in attacks {
            let line = attack.earlier.join("; ");
            let outcome = attack.script(&["cat file.txt"]).run().succeeded();
            assert!(outcome.job.lines().iter().any(|line| line == "from git"), "{line}: {}", outcome.job.log());
        }
    }

    /// A protected job does not find files of an unprotected job.
    #[test]
    fn an_unprotected_job_prepares_a_protected_one() {
        for containers in [true, false] {
            Attack { containers, ..in_containers() }
                .earlier("touch planted")
                .variable("CI_COMMIT_REF_PROTECTED", "true")
                .variable("GIT_CLEAN_FLAGS", "none")
                .script(&["! [ -e planted ]"])
                .run()
                .succeeded();
        }
    }

    /// A naive matcher visits each directory once for each `**` of the pattern.
    #[test]
    fn a_pattern_has_many_double_stars_over_a_deep_tree() {
        for containers in [true, false] {
            Attack { containers, ..in_containers() }
                .script(&["d=d; for i in $(seq 900); do d=$d/d; done; mkdir -p $d"])
                .artifacts(&[&("**/d/".repeat(200) + "none")])
                .run()
                .succeeded()
                .says("no matching files");
        }
    }

    /// A naive archiver logs a line for each file that cannot be archived.
    #[test]
    fn thousands_of_pipes_are_packed() {
        for containers in [true, false] {
            Attack { containers, ..in_containers() }
                .script(&["mkdir d; for i in $(seq 2000); do mkfifo d/$i; done; echo x >d/x"])
                .artifacts(&["d"])
                .run()
                .succeeded()
                .says("1900 more warnings are not shown");
        }
    }

    #[test]
    fn artifacts_lead_out_of_the_project_by_links() {
        for containers in [true, false] {
            Attack { containers, ..in_containers() }
                .script(&["mkdir d; ln -s /etc/passwd d/file; ln -s / d/root; echo x >d/x; ln -s /etc etc"])
                .artifacts(&["d", "d/root/etc/passwd", "etc/*", "../../../../etc/passwd", "/etc/passwd"])
                .run()
                .succeeded()
                .without("root:x:0");
        }
    }

    #[test]
    fn a_process_detaches_itself_and_stays() {
        let sleep = crate::support::mayfly::nap();
        let detached = format!("setsid sh -c '(setsid {sleep} &) &' </dev/null >/dev/null 2>&1 &");
        for containers in [true, false] {
            Attack { containers, ..in_containers() }.script(&[&detached, "sleep 0.3"]).run().succeeded();
            assert!(!crate::support::mayfly::is_running(&sleep), "it outlived its job");
        }
    }
}
