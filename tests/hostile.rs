//! Attacks of jobs on the machine, each in a few lines: what the job brings along, and what must hold afterwards.
//!
//! An attack is a function below [`attacks`], so that it has a name that a test run can be asked for. Most are made of an
//! [`Attack`]: files of the repository, what an earlier job leaves, what services do meanwhile, variables; the outcome
//! says whether it came to nothing. [`probe`] is a program that tells what whoever runs it may do, so that confinement can
//! be judged by somebody who got in.

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

/// A program that tells what it may do, a finding a line (`hostile NAME VALUE`), on standard error.
fn probe() -> String {
    include_str!("support/probe.sh").replace("WITNESS", &witness().to_string())
}

/// The port of a server on the machine's loopback that no job may reach: who does is counted in [`REACHED`].
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

/// An attack in the making.
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

/// What became of it.
#[allow(dead_code, reason = "for attacks to come")]
struct Outcome {
    /// The attacking job; an earlier one has succeeded.
    job: Job,
    /// What the agent said.
    agent: String,
    home: Home,
}

/// On an agent whose jobs run in containers.
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

/// On an agent whose jobs run on the machine.
#[allow(dead_code, reason = "attacks on shell jobs use it")]
fn on_the_machine() -> Attack {
    Attack { containers: false, ..in_containers() }
}

#[allow(dead_code, reason = "for attacks to come")]
impl Attack {
    /// More lines of configuration: of `[runners.docker]` for jobs in containers, else of the runner.
    fn keys(mut self, keys: &str) -> Self {
        self.keys += &format!("{keys}\n");
        self
    }

    /// A file of the repository.
    fn file(mut self, path: &str, text: &str) -> Self {
        self.files.push((path.to_owned(), text.to_owned()));
        self
    }

    /// A line of a job that ran before in the same directory.
    fn earlier(mut self, line: &str) -> Self {
        self.earlier.push(line.to_owned());
        self
    }

    /// A service of the job, as a script for the shell of busybox.
    fn service(mut self, script: &str) -> Self {
        self.services.push(script.to_owned());
        self
    }

    /// A submodule, at an address in which `$SERVER` is the server of the repository.
    fn submodule(mut self, path: &str, address: &str) -> Self {
        self.submodule = Some((path.to_owned(), address.to_owned()));
        self.variable("GIT_SUBMODULE_STRATEGY", "normal")
    }

    fn variable(mut self, key: &str, value: &str) -> Self {
        self.variables.push((key.to_owned(), value.to_owned()));
        self
    }

    /// What the job runs.
    fn script(mut self, lines: &[&str]) -> Self {
        self.script = lines.iter().map(|line| (*line).to_owned()).collect();
        self
    }

    /// What the job uploads.
    fn artifacts(mut self, patterns: &[&str]) -> Self {
        self.artifacts = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        self
    }

    /// Does it.
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
    /// Findings of [`probe`], where it ran at all.
    fn findings(&self) -> BTreeMap<String, String> {
        let lines = self.job.lines();
        let findings = lines.iter().filter_map(|line| line.split_once("hostile ")?.1.split_once(' '));
        findings.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    }

    /// The attacker's program did not run, or could do nothing.
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
            // The files of the job may belong to others, and git is to clean them away all the same.
            let found = findings.get(name).map(|found| if OF_FILES.contains(&found.as_str()) { NONE } else { found });
            assert_eq!(found, Some(expected), "{name} in {findings:#?}");
        }
        assert_eq!(REACHED.load(Ordering::SeqCst), 0, "the machine's loopback was reached");
        self
    }

    /// The job failed, and its log says this.
    fn failed_with(self, part: &str) -> Self {
        assert_eq!(self.job.state, "failed", "{}", self.job.log());
        assert!(self.job.has(part), "{part} in {}", self.job.log());
        self
    }

    /// The job's log says this.
    fn says(self, part: &str) -> Self {
        assert!(self.job.has(part), "{part} in {}", self.job.log());
        self
    }

    /// The job came to its end as any other.
    fn succeeded(self) -> Self {
        assert_eq!(self.job.state, "success", "{}\n{}", self.job.log(), self.agent);
        self
    }

    /// Neither the job's log nor its artifacts hold this.
    fn without(self, secret: &str) -> Self {
        let holds = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!holds(&self.job.trace), "{secret} in {}", self.job.log());
        assert!(!self.job.artifacts.iter().any(|artifact| holds(&artifact.content)), "{secret} in an artifact");
        self
    }

    /// A file of the machine is not there.
    fn made_no(self, path: &Path) -> Self {
        assert!(path.symlink_metadata().is_err(), "{} is there\n{}", path.display(), self.job.log());
        self
    }
}

/// No capabilities, and those of files (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER).
const NONE: &str = "0000000000000000";
const OF_FILES: [&str; 2] = [NONE, "000000000000000b"];

/// A line of shell that writes a file with any content.
fn writes(path: &str, text: &str) -> String {
    format!("echo {} | base64 -d >{path}", base64::engine::general_purpose::STANDARD.encode(text))
}

mod attacks {
    use std::process::{Command, Stdio};

    use super::*;

    /// The line of a service that has a program run as a filter of git: what is between the agent's look at
    /// `.git/config` and the checkout.
    fn adds_a_filter(program: &str) -> String {
        let filter = "[filter \"x\"]\n\tsmudge = \"sh .git/program >&2; cat\"\n";
        format!(
            "{}; {}; while :; do for git in /builds/*/*/.git; do cp /program $git/program; \
             grep -q smudge $git/config || cat /filter >>$git/config; done 2>/dev/null; done",
            writes("/program", program),
            writes("/filter", filter),
        )
    }

    /// Repeats an attack that has to win a race until the attacker's program has run beside the container.
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

    /// The directory of the checkout was text of a shell script that ran beside the container.
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

    /// An earlier job leaves a program in a submodule's configuration, and this one has git fetch submodules.
    #[test]
    fn a_submodules_program_is_asked_for_by_options_of_fetch() {
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

    /// The address of a submodule redirects to a service that only the machine reaches, and traces of git print it.
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
    fn a_filter_takes_more_memory_than_the_job_has() {
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

    /// A machine that lets the agent make no walls: no job is run without them.
    #[test]
    fn without_the_right_to_confine_nothing_is_run() {
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

    /// What an earlier job does to the repository so that git takes other content for the commit's.
    #[test]
    fn an_earlier_job_changes_what_is_checked_out() {
        let object = "o=$(git rev-parse HEAD:file.txt); n=$(echo evil | git hash-object -w --stdin)";
        let file = "f() { echo .git/objects/$(echo $1 | cut -c 1-2)/$(echo $1 | cut -c 3-); }";
        for line in [
            "git update-index --skip-worktree file.txt; echo evil >file.txt",
            "git update-index --assume-unchanged file.txt; echo evil >file.txt",
            // Of the same size and, as far as a job can say so, of the same time.
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

    /// Pipes and files without end where git and the agent read.
    #[test]
    fn an_earlier_job_leaves_what_cannot_be_read() {
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

    /// What an unprotected job leaves is not what a protected one finds.
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

    /// Each directory was visited once for each `**` of the pattern.
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

    /// Each file that cannot be packed was a line of the log.
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
