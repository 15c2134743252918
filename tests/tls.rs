//! Servers with certificates, good and broken.

use crate::support::gitlab::GitLab;
use crate::support::job::job;
use crate::support::mayfly::Home;
use crate::support::tls::{Pki, serve};

fn check(home: &Home) -> (bool, String) {
    let config = home.config().display().to_string();
    let output = home.call(&["check", "--config", &config]);
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn jobs_come_over_tls_and_know_the_authority() {
    let (gitlab, pki) = (GitLab::start(), Pki::new());
    let url = serve(&gitlab, pki.leaf("localhost", true, 2040));
    let home = Home::empty();
    // Found beside the configuration by the server's name.
    std::fs::create_dir(home.path("certs")).expect("made");
    std::fs::write(home.path("certs/localhost.crt"), pki.root.pem()).expect("written");
    home.configure(&url, "", "");
    let id = gitlab.queue(job(&["head -n 1 \"$CI_SERVER_TLS_CA_FILE\""]).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert!(agent.wait().success(), "{}", agent.log());
    assert!(job.lines().contains(&"-----BEGIN CERTIFICATE-----".to_owned()), "{}", job.log());
    let (passed, text) = check(&home);
    assert!(passed && text.contains("complete (2 certificate(s) presented)"), "{text}");
    gitlab.assert_strict();
}

#[test]
fn check_says_what_is_wrong_with_a_certificate() {
    let (gitlab, pki) = (GitLab::start(), Pki::new());
    let home = Home::empty();
    std::fs::write(home.path("root.pem"), pki.root.pem()).expect("written");
    std::fs::write(home.path("both.pem"), format!("{}{}", pki.root.pem(), pki.intermediate.pem())).expect("written");
    let configure = |url: &str, file: &str| {
        home.configure(url, "", &format!("tls-ca-file = \"{}\"", home.path(file).display()));
    };
    let incomplete = serve(&gitlab, pki.leaf("localhost", false, 2040));
    configure(&incomplete, "root.pem");
    let (passed, text) = check(&home);
    assert!(!passed && text.contains("the certificate of `Test Intermediate`"), "{text}");
    assert!(text.contains("is missing") && text.contains("tls-ca-file"), "{text}");
    configure(&incomplete, "both.pem");
    let (passed, text) = check(&home);
    assert!(passed, "the intermediate in the file mends it: {text}");
    for (presented, part) in [
        (pki.leaf("localhost", true, 2020), "expired at 2020-01-01"),
        (pki.leaf("other.test", true, 2040), "not for localhost but for other.test"),
    ] {
        configure(&serve(&gitlab, presented), "root.pem");
        let (passed, text) = check(&home);
        assert!(!passed && text.contains(part), "{part} in {text}");
    }
    gitlab.assert_strict();
}

#[test]
fn an_authority_that_is_put_there_later_is_taken_up() {
    let (gitlab, pki) = (GitLab::start(), Pki::new());
    let url = serve(&gitlab, pki.leaf("localhost", true, 2040));
    let home = Home::empty();
    let file = home.path("ca.pem");
    std::fs::write(&file, Pki::new().root.pem()).expect("written");
    home.configure(&url, "", &format!("tls-ca-file = \"{}\"", file.display()));
    let id = gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&["--once"]);
    agent.wait_for_log("no answer to the request");
    std::fs::write(&file, pki.root.pem()).expect("written");
    assert_eq!(gitlab.finished(id).state, "success", "{}", agent.log());
    assert!(agent.wait().success());
}
