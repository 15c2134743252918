//! Servers with certificates: of a private authority, and invalid ones.

use std::sync::{Arc, Mutex};

use crate::support::git::GitServer;
use crate::support::gitlab::{GitLab, RUNNER_TOKEN};
use crate::support::http::{Answer, listen, read_request, write_answer};
use crate::support::job::job;
use crate::support::mayfly::Home;
use crate::support::output_text;
use crate::support::pki::{Chain, INTERMEDIATE, Identity, Pki};
use crate::support::scenario::Scenario;

/// A GitLab with a certificate, and a home that trusts the certificates in `ca.pem`.
fn scene(pki: &Pki, identity: &Identity, chain: Chain, trusted: &str) -> (GitLab, Home) {
    let gitlab = GitLab::start_with(Some(pki.serve(identity, chain)));
    let home = Home::empty();
    std::fs::write(home.path("ca.pem"), trusted).expect("write a file");
    Scenario::shell().runner(&trusting(&home)).write(&home, &gitlab.url);
    (gitlab, home)
}

fn trusting(home: &Home) -> String {
    format!("tls-ca-file = \"{}\"", home.path("ca.pem").display())
}

/// Whether `mayfly check` passes, and its output.
fn check(home: &Home) -> (bool, String) {
    let output = home.call(&["check", "--config", &home.config().display().to_string()]);
    let text = output_text(&output);
    (output.status.success(), text)
}

#[test]
fn a_private_authority_works_for_the_agent_and_the_jobs_git() {
    let pki = Pki::new();
    let identity = pki.server();
    let (gitlab, home) = scene(&pki, &identity, Chain::Complete, &pki.root);
    Scenario::shell().config("user = \"nobody\"").runner(&trusting(&home)).write(&home, &gitlab.url);
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start_with(root.path(), Some(pki.serve(&identity, Chain::Complete)));
    let (url, sha) = git.repository("team/demo", &[("f.txt", "over https\n")]);
    let script = [
        "cat f.txt",
        "git ls-remote origin HEAD >/dev/null && echo listed",
        "openssl x509 -noout -subject -in \"$CI_SERVER_TLS_CA_FILE\" 2>/dev/null || head -n 1 \"$CI_SERVER_TLS_CA_FILE\"",
        "echo \"key: ${CI_SERVER_TLS_KEY_FILE:-none}\"",
    ];
    let id = gitlab.queue(job(&script).sources(&url, &sha).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success", "{}", job.log());
    let lines = job.lines();
    for line in ["over https", "listed", "key: none"] {
        assert!(lines.contains(&line.to_owned()), "{line} in {lines:#?}");
    }
    assert!(lines.iter().any(|line| line.contains("mayfly test root") || line.contains("BEGIN CERTIFICATE")));
    assert!(agent.wait().success());
}

#[test]
fn a_self_signed_certificate_works_for_the_agent_and_the_jobs_git() {
    let (certificate, server) = Pki::self_signed();
    let gitlab = GitLab::start_with(Some(Arc::clone(&server)));
    let home = Home::empty();
    Scenario::shell().write(&home, &gitlab.url);
    let (passed, text) = check(&home);
    let explained = "does not trust the root certificate `localhost`, with which the chain of localhost ends";
    assert!(!passed && text.contains(explained) && text.contains("tls-ca-file"), "{text}");
    std::fs::write(home.path("ca.pem"), &certificate).expect("write a file");
    Scenario::shell().runner(&trusting(&home)).write(&home, &gitlab.url);
    let (passed, text) = check(&home);
    assert!(passed, "{text}");
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start_with(root.path(), Some(server));
    let (url, sha) = git.repository("team/demo", &[("f.txt", "over https\n")]);
    let id = gitlab.queue(job(&["cat f.txt"]).sources(&url, &sha).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert!(job.state == "success" && job.has("over https"), "{}", job.log());
    assert!(agent.wait().success());
}

#[test]
fn a_complete_chain_of_an_unknown_root_is_not_called_incomplete() {
    let pki = Pki::new();
    let gitlab = GitLab::start_with(Some(pki.serve(&pki.server(), Chain::Complete)));
    let home = Scenario::shell().home(&gitlab);
    let (passed, text) = check(&home);
    assert!(!passed && text.contains("does not trust the authority `mayfly test root`"), "{text}");
    assert!(!text.contains("incomplete") && text.contains("tls-ca-file"), "{text}");
}

#[test]
fn a_certificate_beside_the_configuration_is_trusted() {
    let pki = Pki::new();
    let gitlab = GitLab::start_with(Some(pki.serve(&pki.server(), Chain::Complete)));
    let home = Scenario::shell().home(&gitlab);
    assert!(!check(&home).0, "nobody trusts it yet");
    std::fs::create_dir(home.path("certs")).expect("create the directory");
    std::fs::write(home.path("certs/localhost.crt"), &pki.root).expect("write a file");
    let (passed, text) = check(&home);
    assert!(passed && text.contains("complete (2 certificate(s) sent)"), "{text}");
    let id = gitlab.queue(job(&["cat \"$CI_SERVER_TLS_CA_FILE\""]).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert!(job.log().contains("BEGIN CERTIFICATE"), "{}", job.log());
    assert!(agent.wait().success());
}

#[test]
fn jobs_get_the_certificate_chain_of_a_trusted_server() {
    let pki = Pki::new();
    let gitlab = GitLab::start_with(Some(pki.serve(&pki.server(), Chain::Complete)));
    let home = Scenario::shell().home(&gitlab);
    std::fs::write(home.path("system.pem"), &pki.root).expect("write a file");
    let id = gitlab.queue(job(&["cat \"$CI_SERVER_TLS_CA_FILE\""]).build());
    let config = home.config().display().to_string();
    let mut agent = home.command(&["run", "--once", "--config", &config]);
    let ended = agent.env("SSL_CERT_FILE", home.path("system.pem")).output().expect("run mayfly");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let log = gitlab.job(id).lines().join("\n");
    assert_eq!(log.matches("BEGIN CERTIFICATE").count(), 3, "server, intermediate, root: {log}");
    let root: Vec<&str> = pki.root.trim().lines().collect();
    assert!(log.contains(&root.join("\n")), "{log}");
}

#[test]
fn an_incomplete_chain_is_reported_and_can_be_fixed_without_a_restart() {
    let pki = Pki::new();
    let (gitlab, home) = scene(&pki, &pki.server(), Chain::WithoutIntermediate, &pki.root);
    let (passed, text) = check(&home);
    assert!(!passed && text.contains(INTERMEDIATE) && text.contains("tls-ca-file"), "{text}");
    let id = gitlab.queue(job(&["echo reached"]).build());
    let mut agent = home.start(&["--once"]);
    agent.wait_for_log("UnknownIssuer");
    assert_eq!(gitlab.job(id).state, "pending");
    std::fs::write(home.path("ca.pem"), pki.root.clone() + &pki.intermediate).expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success", "{}", agent.log());
    assert!(agent.wait().success());
    let (passed, text) = check(&home);
    assert!(passed, "{text}");
}

#[test]
fn wrong_certificates_do_not_pass_the_check() {
    let pki = Pki::new();
    for (identity, part) in
        [(pki.expired(), "expired at 2021-02-03"), (pki.wrong_name(), "is not for localhost but for other.test")]
    {
        let (_gitlab, home) = scene(&pki, &identity, Chain::Complete, &pki.root);
        let (passed, text) = check(&home);
        assert!(!passed && text.contains(part), "{part} in {text}");
    }
    let (_gitlab, home) = scene(&pki, &pki.server(), Chain::Complete, "no certificate");
    let (passed, text) = check(&home);
    assert!(!passed && text.contains("ca.pem: the file contains no PEM certificate"), "{text}");
}

#[test]
fn supports_client_certificates() {
    let pki = Pki::new();
    let (server, client) = (pki.server(), pki.server());
    let gitlab = GitLab::start_with(Some(pki.serve_known(&server)));
    let home = Home::empty();
    std::fs::write(home.path("ca.pem"), &pki.root).expect("write a file");
    Scenario::shell().runner(&trusting(&home)).write(&home, &gitlab.url);
    let (passed, text) = check(&home);
    assert!(!passed, "{text}");
    std::fs::write(home.path("client.pem"), &client.chain).expect("write a file");
    std::fs::write(home.path("client.key"), &client.key).expect("write a file");
    let more = format!(
        "{}\ntls-cert-file = \"{}\"\ntls-key-file = \"{}\"",
        trusting(&home),
        home.path("client.pem").display(),
        home.path("client.key").display()
    );
    Scenario::shell().runner(&more).write(&home, &gitlab.url);
    let (passed, text) = check(&home);
    assert!(passed, "{text}");
    let script = ["grep -c CERTIFICATE \"$CI_SERVER_TLS_CERT_FILE\"", "ls -l \"$CI_SERVER_TLS_KEY_FILE\" | cut -c1-10"];
    let id = gitlab.queue(job(&script).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert!(job.lines().contains(&"-rw-------".to_owned()), "{}", job.log());
    assert!(agent.wait().success());
}

#[test]
fn register_over_https() {
    let pki = Pki::new();
    let gitlab = GitLab::start_with(Some(pki.serve(&pki.server(), Chain::Complete)));
    let home = Home::empty();
    std::fs::write(home.path("ca.pem"), &pki.root).expect("write a file");
    std::fs::write(home.path("token"), RUNNER_TOKEN).expect("write a file");
    let path = |name: &str| home.path(name).display().to_string();
    let (config, token, ca) = (path("config.toml"), path("token"), path("ca.pem"));
    let base =
        ["register", "-n", "--config", &config, "--url", &gitlab.url, "--token-file", &token, "--executor", "shell"];
    let refused = home.call(&base);
    assert!(!refused.status.success() && !home.config().exists());
    let output = home.call(&[&base[..], &["--tls-ca-file", &ca]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (passed, text) = check(&home);
    assert!(passed, "{text}");
}

#[test]
fn a_proxy_from_the_environment_is_not_used_for_loopback() {
    let gitlab = GitLab::start();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let proxy = listen(None, move |mut connection| {
        while let Some(request) = read_request(&mut connection) {
            log.lock().expect("the thread must not panic").push(format!("{} {}", request.method, request.path));
            if write_answer(connection.get_mut(), &Answer::new(502)).is_err() {
                return;
            }
        }
    });
    let home = Scenario::shell().home(&gitlab);
    let config = home.config().display().to_string();
    let verify =
        || home.command(&["verify", "--config", &config]).env("HTTP_PROXY", &proxy).output().expect("run mayfly");
    assert!(verify().status.success());
    assert!(seen.lock().expect("the thread must not panic").is_empty(), "loopback is asked directly");
    Scenario::shell().write(&home, "http://gitlab.test");
    verify();
    assert!(seen.lock().expect("the thread must not panic").iter().any(|line| line.contains("gitlab.test")));
}
