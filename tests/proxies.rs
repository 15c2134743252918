//! Proxies from the environment: which requests use them, and how.

use serde_json::json;

use crate::support::gitlab::GitLab;
use crate::support::job::job;
use crate::support::mayfly::Home;
use crate::support::pki::{Chain, Pki};
use crate::support::proxy::Squid;
use crate::support::scenario::Scenario;

fn with_artifacts() -> serde_json::Value {
    job(&["seq 100000 >f"])
        .set(
            "artifacts",
            json!([{"name": "out", "paths": ["f"], "artifact_format": "zip", "artifact_type": "archive"}]),
        )
        .build()
}

#[test]
fn squid_forwards_plain_http_without_tunnels() {
    let gitlab = GitLab::start();
    let port = gitlab.url.rsplit(':').next().expect("a port").to_owned();
    let squid = Squid::start(&[]);
    let home = Home::empty();
    Scenario::shell().write(&home, &format!("http://gitlab.test:{port}"));
    let id = gitlab.queue(with_artifacts());
    let mut agent = home.start_with(&["--once"], &[("HTTP_PROXY", &squid.url)]);
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success", "{}", job.log());
    assert_eq!(job.artifacts.len(), 1);
    assert!(agent.wait().success(), "{}", agent.log());
    let requests = squid.requests();
    let base = format!("http://gitlab.test:{port}/api/v4/");
    for call in ["POST {base}jobs/request", "PATCH {base}jobs/", "PUT {base}jobs/", "POST {base}jobs/"] {
        let call = call.replace("{base}", &base);
        assert!(requests.iter().any(|request| request.starts_with(&call)), "{call} in {requests:#?}");
    }
    assert!(!requests.iter().any(|request| request.starts_with("CONNECT")), "{requests:#?}");
}

#[test]
fn squid_opens_tunnels_for_https() {
    let pki = Pki::new();
    let gitlab = GitLab::start_with(Some(pki.serve(&pki.server_of("gitlab.test"), Chain::Complete)));
    let port = gitlab.url.rsplit(':').next().expect("a port").to_owned();
    let squid = Squid::start(&[port.parse().expect("a number")]);
    let home = Home::empty();
    std::fs::write(home.path("ca.pem"), &pki.root).expect("write a file");
    let trust = format!("tls-ca-file = \"{}\"", home.path("ca.pem").display());
    Scenario::shell().runner(&trust).write(&home, &format!("https://gitlab.test:{port}"));
    let id = gitlab.queue(with_artifacts());
    let mut agent = home.start_with(&["--once"], &[("HTTPS_PROXY", &squid.url)]);
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success", "{}", job.log());
    assert_eq!(job.artifacts.len(), 1);
    assert!(agent.wait().success(), "{}", agent.log());
    let requests = squid.requests();
    assert!(requests.iter().all(|request| *request == format!("CONNECT gitlab.test:{port}")), "{requests:#?}");
}

#[test]
fn a_proxy_error_is_not_taken_for_a_response_of_gitlab() {
    let gitlab = GitLab::start();
    let squid = Squid::start(&[]);
    let home = Home::empty();
    // squid refuses this port (`Safe_ports`) with status 403. A 403 from GitLab would pause the runner.
    Scenario::shell().write(&home, "http://gitlab.test:81");
    let agent = home.start_with(&[], &[("HTTP_PROXY", &squid.url)]);
    agent.wait_for_log("the proxy returns status 403: ERR_ACCESS_DENIED");
    agent.wait_for_log("(through the proxy http://127.0.0.1:");
    drop((agent, gitlab));
}
