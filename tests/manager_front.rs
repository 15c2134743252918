//! What stands between agents and their manager: a proxy with TLS, or a manager that has not started completely.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::ServerConfig;

use crate::support::gitlab::GitLab;
use crate::support::http::{Answer, Connection, Request, listen, receive, write_answer};
use crate::support::job::job;
use crate::support::pki::Pki;
use crate::support::pool::Pool;
use crate::support::scenario::Scenario;

/// Passes each request on to a manager, unless `rule` answers it. Returns the URL.
fn front(
    tls: Option<Arc<ServerConfig>>,
    manager: u16,
    rule: impl Fn(&Request) -> Option<Answer> + Clone + Send + 'static,
) -> String {
    listen(tls, move |mut connection| {
        while let Some(request) = receive(&mut connection) {
            let is_done = match rule(&request) {
                Some(answer) => write_answer(connection.get_mut(), &answer).is_err(),
                None => {
                    pass_on(&mut connection, &request, manager);
                    true
                }
            };
            if is_done {
                return;
            }
        }
    })
}

/// Passes one request on; the connection ends with the response.
fn pass_on(connection: &mut Connection, request: &Request, manager: u16) -> Option<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", manager)).ok()?;
    let mut head = format!("{} {} HTTP/1.1\r\nConnection: close\r\n", request.method, request.path);
    let passed = |name: &str| !matches!(name, "connection" | "content-length" | "transfer-encoding");
    for (name, value) in request.headers.iter().filter(|(name, _)| passed(name)) {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("Content-Length: {}\r\n\r\n", request.body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&request.body)).ok()?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).ok()?;
    connection.get_mut().write_all(&response).and_then(|()| connection.get_mut().flush()).ok()
}

#[test]
fn a_proxy_of_a_private_authority_may_ask_for_the_agents_certificate() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let pki = Pki::new();
    let identity = pki.server();
    let url = front(Some(pki.serve_known(&identity)), fleet.port, |_| None);
    let client = pki.server();
    let [authority, certificate, key] = ["root.pem", "client.pem", "client.key"].map(|name| fleet.home.path(name));
    for (path, pem) in [(&authority, &pki.root), (&certificate, &client.chain), (&key, &client.key)] {
        fs::write(path, pem).expect("write a file");
    }
    let trusting = format!("tls-ca-file = \"{}\"", authority.display());
    let home = Scenario::managed("i-1").runner(&trusting).home_at(&url);
    let stranger = home.start(&[]);
    stranger.wait_for_log("poll failed");
    assert!(!manager.log().contains("agent registered"), "{}\n{}", manager.log(), stranger.log());
    drop(stranger);
    let own =
        format!("{trusting}\ntls-cert-file = \"{}\"\ntls-key-file = \"{}\"", certificate.display(), key.display());
    let home = Scenario::managed("i-1").runner(&own).home_at(&url);
    let agent = home.start(&[]);
    manager.wait_for_log("agent registered pool=pool instance=i-1");
    let id = gitlab.queue(job(&["echo through the proxy"]).build());
    assert!(gitlab.finished(id).has("through the proxy"), "{}", agent.log());
}

/// Each call meets a manager that has not started its pools: the agent keeps its token and repeats the call.
#[test]
fn an_agent_waits_for_a_manager_that_starts() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    // Every second call is refused: of registrations, requests for jobs, acceptances and heartbeats.
    let url = front(None, fleet.port, move |_| {
        counted.fetch_add(1, Ordering::SeqCst).is_multiple_of(2).then(|| {
            let answer = Answer::json(503, &serde_json::json!({"message": "the manager starts"}));
            answer.with("X-Mayfly-Manager", "0").with("Retry-After", "1")
        })
    });
    let home = Scenario::managed("i-1").home_at(&url);
    let agent = home.start(&[]);
    agent.wait_for_log("the manager starts");
    manager.wait_for_log("agent registered pool=pool instance=i-1");
    for _ in 0..3 {
        let id = gitlab.queue(job(&["echo started"]).build());
        assert_eq!(gitlab.finished(id).state, "success", "{}\n{}", agent.log(), manager.log());
        manager.wait_for_log(&format!("job ended pool=pool job={id}"));
    }
    assert_eq!(manager.log().matches("agent registered").count(), 1, "{}\n{}", manager.log(), agent.log());
}
