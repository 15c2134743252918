//! Attacks that run a program beside the container, where the agent works on the job's files.

use std::process::{Command, Stdio};

use super::*;
use crate::support::scenario::Scenario;

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
    run_until_it_gets_in(|| in_containers().file(".gitattributes", "* filter=x\n").service(&adds_a_filter(&probe())))
        .got_nowhere();
}

/// In an earlier version, the name of the directory was part of a shell script that ran outside of the container.
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
    let home = Scenario::containers().home(&gitlab);
    let config = home.config().display().to_string();
    let limited = |arguments: &[&str]| {
        let program = home.command(&[]);
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-sys_admin"]).arg(program.get_program()).args(arguments).env_clear();
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(home.path("")).stdin(Stdio::null()).output().expect("run setpriv")
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

/// Variables with which git and its libraries start other programs, or select another repository.
#[test]
fn variables_name_programs_for_git() {
    let program = "sh $CI_PROJECT_DIR/probe.sh >&2";
    let mut attack = in_containers()
        .earlier("true")
        .file("probe.sh", &probe())
        .submodule("lib", "ssh://git@127.0.0.1/team/library.git")
        .variable("GIT_CONFIG_COUNT", "1")
        .variable("GIT_CONFIG_KEY_0", "core.fsmonitor")
        .variable("GIT_CONFIG_VALUE_0", program)
        .variable("GIT_CONFIG_PARAMETERS", &format!("'core.fsmonitor'='{program}'"));
    for name in [
        "GIT_SSH_COMMAND",
        "GIT_SSH",
        "GIT_ASKPASS",
        "SSH_ASKPASS",
        "GIT_PROXY_COMMAND",
        "GIT_EXTERNAL_DIFF",
        "GIT_PAGER",
        "GIT_EDITOR",
        "GIT_SEQUENCE_EDITOR",
        "LD_PRELOAD",
        "BASH_ENV",
        "ENV",
    ] {
        attack = attack.variable(name, program);
    }
    for name in [
        "GIT_CONFIG_GLOBAL",
        "GIT_CONFIG_SYSTEM",
        "GIT_EXEC_PATH",
        "GIT_TEMPLATE_DIR",
        "GIT_DIR",
        "GIT_COMMON_DIR",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GCONV_PATH",
        "LD_LIBRARY_PATH",
        "PERL5LIB",
        "HOME",
        "XDG_CONFIG_HOME",
        "PATH",
    ] {
        attack = attack.variable(name, "$CI_PROJECT_DIR");
    }
    attack.run().ran_nothing();
}

/// Git runs beside the container, but must not reach addresses that the container cannot reach.
#[test]
fn addresses_of_submodules_lead_to_the_machines_loopback() {
    let port = witness();
    for address in [
        format!("http://127.0.0.1:{port}/x"),
        format!("http://localhost:{port}/x"),
        format!("http://127.1:{port}/x"),
        format!("http://2130706433:{port}/x"),
        format!("http://0.0.0.0:{port}/x"),
        format!("http://[::ffff:127.0.0.1]:{port}/x"),
        format!("git://127.0.0.1:{port}/x"),
        format!("ssh://git@127.0.0.1:{port}/x"),
        format!("ext::bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'"),
        "file:///etc".to_owned(),
        "--upload-pack=touch /tmp/mayfly-hostile-option".to_owned(),
    ] {
        let outcome = in_containers().submodule("lib", &address).run().got_nowhere();
        assert_eq!(outcome.job.state, "failed", "{address}: {}", outcome.job.log());
        if address.starts_with("ssh:") || address.starts_with("git:") {
            assert!(outcome.job.has("use an https:// URL in .gitmodules"), "{address}: {}", outcome.job.log());
        }
        outcome.made_no(Path::new("/tmp/mayfly-hostile-option"));
    }
}

/// The same through a proxy that the job chooses, for git and for git-lfs.
#[test]
fn proxies_of_the_job_lead_to_the_machines_loopback() {
    for scheme in ["http", "https", "socks5", "socks5h"] {
        let proxy = format!("{scheme}://127.0.0.1:{}", witness());
        let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
        let attack = in_containers().submodule("lib", "http://server.test/library.git");
        let attack = names.into_iter().fold(attack, |attack, name| attack.variable(name, &proxy));
        attack.variable("NO_PROXY", "").run().got_nowhere();
    }
}

/// A file of the repository selects the server of git-lfs.
#[test]
fn git_lfs_is_sent_to_the_machines_loopback() {
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 5\n", "a".repeat(64));
    let configuration = |url: &str| {
        format!(
            "[lfs]\n\turl = {url}\n\tstandalonetransferagent = x\n\tconcurrenttransfers = 100\n[lfs \"customtransfer.x\"]\n\t\
             path = sh\n\targs = probe.sh\n[core]\n\tfsmonitor = sh probe.sh\n"
        )
    };
    for url in [format!("http://127.0.0.1:{}/lfs", witness()), format!("ssh://127.0.0.1:{}/lfs", witness())] {
        in_containers()
            .file("probe.sh", &probe())
            .file(".lfsconfig", &configuration(&url))
            .file(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")
            .file("large.bin", &pointer)
            .run()
            .ran_nothing()
            .got_nowhere();
    }
}
