//! Attacks by servers: redirects to other hosts, and certificates of other hosts.

use std::sync::{Arc, Mutex};

use crate::support::http::{listen, read_request, write_answer};
use crate::support::pki::{Chain, Pki};
use crate::support::scenario::Scenario;

use super::*;

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

/// The server redirects each request to another host, which would receive the token.
#[test]
fn calls_are_redirected_to_another_host() {
    let seen = Arc::new(Mutex::new(String::new()));
    let log = Arc::clone(&seen);
    let elsewhere = listen(None, move |mut connection| {
        while let Some(request) = read_request(&mut connection) {
            let body = String::from_utf8_lossy(&request.body).into_owned();
            *log.lock().expect("the thread must not panic") +=
                &format!("{} {:?} {body}\n", request.path, request.headers);
            let _ = write_answer(connection.get_mut(), &Answer::new(200));
        }
    });
    let gitlab = GitLab::start();
    // The name of the other host differs, although its address is the same.
    let location = elsewhere.replace("127.0.0.1", "localhost") + "/api";
    for route in ["POST jobs/request", "PATCH trace", "PUT job", "POST artifacts"] {
        let redirect = |status| Fault::Answer(Answer::new(status).with("Location", &location));
        gitlab.fail(route, [307, 302].map(redirect));
    }
    let home = Scenario::shell().home(&gitlab);
    let artifact =
        json!({"name": "out", "paths": ["f"], "when": "always", "artifact_type": "archive", "artifact_format": "zip"});
    let id = gitlab.queue(job(&["echo x >f"]).set("artifacts", json!([artifact])).build());
    let mut agent = home.start(&["--once"]);
    gitlab.finished(id);
    agent.wait();
    let seen = seen.lock().expect("the thread must not panic");
    assert!(!seen.contains("tokenOfTheRunner") && !seen.contains("glcbt-"), "{seen}");
}

/// A trusted authority issued the certificate of the server for another name.
#[test]
fn a_server_has_the_certificate_of_another_name() {
    let pki = Pki::new();
    for identity in [pki.wrong_name(), pki.expired()] {
        let gitlab = GitLab::start_with(Some(pki.serve(&identity, Chain::Complete)));
        let home = Home::empty();
        std::fs::write(home.path("ca.pem"), &pki.root).expect("write the file");
        Scenario::shell()
            .runner(&format!("tls-ca-file = \"{}\"", home.path("ca.pem").display()))
            .write(&home, &gitlab.url);
        let id = gitlab.queue(job(&["true"]).build());
        let mut agent = home.start(&[]);
        agent.wait_for_log("invalid peer certificate");
        assert_eq!((gitlab.job_state(id).as_str(), gitlab.count("POST jobs/request")), ("pending", 0));
        agent.signal("QUIT");
        agent.wait();
    }
}
