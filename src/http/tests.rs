//! Tests of the client with misbehaving servers.

use std::cell::RefCell;
use std::fs;
use std::time::Duration;

use super::testing::{Authority, TestServer};
use super::tls::TlsFiles;
use super::{Client, HttpError, Method, Request, Response};

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Unavailable\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy";

fn client(url: &str, files: &TlsFiles) -> Client {
    Client::new(url, files, "tests", Duration::from_secs(60)).expect("a client")
}

fn request(url: &str, method: Method, body: &'static [u8]) -> Request<'static> {
    let headers = vec![
        ("JOB-TOKEN", "secret-of-the-job".to_owned()),
        ("RUNNER-TOKEN", "secret-of-the-runner".to_owned()),
        ("PRIVATE-TOKEN", "secret-of-a-person".to_owned()),
        ("Content-Type", "application/json".to_owned()),
        ("X-Request-Id", "0123".to_owned()),
    ];
    Request { method, url: format!("{url}/a"), headers, body, timeout: None }
}

fn call(url: &str, method: Method, body: &'static [u8]) -> Result<Response, HttpError> {
    client(url, &TlsFiles::default()).call(&request(url, method, body), &|_| panic!("no wait is due"))
}

fn redirect(status: u16, to: &str) -> String {
    format!("HTTP/1.1 {status} Elsewhere\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")
}

#[test]
fn retries_a_busy_server_five_times_with_the_same_request() {
    let server = TestServer::new(&[BUSY, BUSY, BUSY, BUSY, BUSY, GOOD]);
    let waits = RefCell::new(Vec::new());
    let rest = |wait| {
        waits.borrow_mut().push(wait);
        true
    };
    let files = TlsFiles::default();
    let response = client(&server.url, &files).call(&request(&server.url, Method::Put, b"whole body"), &rest);
    assert_eq!(response.expect("a response").status, 503);
    assert_eq!(*waits.borrow(), [Duration::from_secs(7); 4]);
    let seen = server.seen();
    assert_eq!(seen.len(), 5);
    assert!(seen.iter().all(|request| request.body == b"whole body" && request.head == seen[0].head), "{seen:?}");
}

#[test]
fn a_request_with_a_time_limit_does_not_wait_for_a_server_that_hangs() {
    // The test does not accept the connection, but the kernel completes the TCP handshake and buffers the request.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    for method in [Method::Put, Method::Get] {
        let request = Request { timeout: Some(Duration::from_millis(50)), ..request(&url, method, b"") };
        let called = client(&url, &TlsFiles::default()).call(&request, &|_| panic!("no wait is due"));
        assert!(matches!(called, Err(HttpError::Transport(_))), "{called:?}");
    }
}

#[test]
fn a_caller_that_does_not_wait_gets_the_last_response() {
    let server = TestServer::new(&[BUSY, GOOD]);
    let files = TlsFiles::default();
    let response = client(&server.url, &files).call(&request(&server.url, Method::Put, b"{}"), &|_| false);
    assert_eq!((response.expect("a response").status, server.seen().len()), (503, 1));
}

#[test]
fn does_not_retry_permanent_errors() {
    for status in [400, 403, 409, 501, 505, 511] {
        let server = TestServer::new(&[&format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n")]);
        assert_eq!(call(&server.url, Method::Post, b"{}").expect("a response").status, status);
    }
}

#[test]
fn a_connection_closed_without_a_response_is_an_error() {
    let server = TestServer::new(&[""]);
    assert!(matches!(call(&server.url, Method::Post, b"{}"), Err(HttpError::Transport(_))));
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn an_incomplete_response_keeps_its_beginning() {
    let server =
        TestServer::new(&["HTTP/1.1 201 Created\r\nConnection: close\r\nContent-Length: 90\r\n\r\n{\"id\": 7"]);
    let response = call(&server.url, Method::Post, b"{}").expect("a status");
    assert_eq!((response.status, response.body.as_slice()), (201, &b"{\"id\": 7"[..]));
    assert!(response.cut.is_some());
}

#[test]
fn a_body_is_never_sent_to_another_server() {
    let other = TestServer::new(&[GOOD]);
    for status in [307, 308] {
        let server = TestServer::new(&[&redirect(status, &format!("{}/b", other.url))]);
        let error =
            call(&server.url, Method::Post, b"{\"token\":\"secret\"}").expect_err("must be refused").to_string();
        assert!(error.contains(&server.url) && error.contains(&other.url) && !error.contains("secret"), "{error}");
    }
    assert!(other.seen().is_empty());
}

#[test]
fn a_redirect_to_another_server_carries_no_token() {
    for status in [301, 302, 303, 307, 308] {
        let other = TestServer::new(&[GOOD]);
        let server = TestServer::new(&[&redirect(status, &format!("{}/b?c=d", other.url))]);
        assert_eq!(call(&server.url, Method::Get, b"").expect("a response").status, 200);
        let seen = other.seen();
        assert!(seen[0].head.starts_with("get /b?c=d "), "{seen:?}");
        assert!(!seen[0].head.contains("secret"), "{seen:?}");
    }
}

/// A 200 after a redirect to another page does not mean that the request took effect.
#[test]
fn a_redirect_turns_no_request_into_another_one() {
    for (status, method) in [(301, Method::Post), (302, Method::Put), (303, Method::Patch), (302, Method::Delete)] {
        let other = TestServer::new(&[GOOD]);
        let server = TestServer::new(&[&redirect(status, &format!("{}/b", other.url))]);
        let error = call(&server.url, method, b"").expect_err("must be refused").to_string();
        assert!(error.contains(&other.url) && other.seen().is_empty(), "{error}");
        let server = TestServer::new(&[&redirect(status, "/users/sign_in"), GOOD]);
        assert_eq!(call(&server.url, method, b"{}").expect("a response").status, status);
        assert_eq!(server.seen().len(), 1);
    }
}

#[test]
fn a_redirect_on_the_same_server_repeats_the_whole_request() {
    let server = TestServer::new(&[&redirect(308, "/b"), GOOD]);
    assert_eq!(call(&server.url, Method::Post, b"{}").expect("a response").status, 200);
    let seen = &server.seen()[1];
    assert!(seen.head.starts_with("post /b ") && seen.body == b"{}", "{seen:?}");
    assert_eq!(seen.header("job-token"), Some("secret-of-the-job"));
}

#[test]
fn ends_redirect_loops() {
    let circle = redirect(302, "/a");
    let server = TestServer::new(&[circle.as_str(); 20]);
    let error = call(&server.url, Method::Get, b"").expect_err("the request must fail").to_string();
    assert!(error.contains("more than 10 times"), "{error}");
    assert_eq!(server.seen().len(), 11);
}

#[test]
fn a_redirect_from_http_to_https_uses_the_certificate_authorities() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().expect("a directory"));
    let ca_file = directory.path().join("ca.pem");
    fs::write(&ca_file, authority.pem()).expect("write the file");
    let files = TlsFiles { ca_file: Some(ca_file), ..TlsFiles::default() };
    let secure = TestServer::with_tls(&authority, &[GOOD]);
    let server = TestServer::new(&[&redirect(301, &format!("{}/b", secure.url))]);
    let request = request(&server.url, Method::Get, b"");
    let response = client(&server.url, &files).call(&request, &|_| true);
    assert_eq!(response.expect("a response").status, 200);
    let seen = secure.seen();
    assert!(seen[0].head.starts_with("get /b ") && seen[0].body.is_empty(), "{seen:?}");
    assert!(!seen[0].head.contains("secret"), "{seen:?}");
}

#[test]
fn a_key_of_another_certificate_is_an_error_that_names_both_files() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().expect("a directory"));
    let server = TestServer::with_tls(&authority, &[GOOD]);
    let path = |name: &str| directory.path().join(name);
    fs::write(path("ca.pem"), authority.pem()).expect("write the file");
    fs::write(path("agent.crt"), authority.leaf("agent").0).expect("write the file");
    fs::write(path("agent.key"), authority.leaf("agent").1).expect("write the file");
    let files = TlsFiles {
        ca_file: Some(path("ca.pem")),
        cert_file: Some(path("agent.crt")),
        key_file: Some(path("agent.key")),
        ..TlsFiles::default()
    };
    let outcome = client(&server.url, &files).call(&request(&server.url, Method::Get, b""), &|_| true);
    let Err(HttpError::Configuration(why)) = outcome else { panic!("{outcome:?}") };
    assert!(why.contains("agent.crt") && why.contains("agent.key"), "{why}");
}

#[test]
fn an_invalid_new_certificate_file_keeps_the_previous_trust() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().expect("a directory"));
    let ca_file = directory.path().join("ca.pem");
    fs::write(&ca_file, authority.pem()).expect("write the file");
    let files = TlsFiles { ca_file: Some(ca_file.clone()), ..TlsFiles::default() };
    let closing = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    let server = TestServer::with_tls(&authority, &[closing; 3]);
    let client = client(&server.url, &files);
    let ask = || client.call(&request(&server.url, Method::Get, b""), &|_| true);
    assert_eq!(ask().expect("a response").status, 200);
    fs::write(&ca_file, "half of a cert").expect("write the file");
    assert_eq!(ask().expect("a response with the old trust").status, 200);
    fs::write(&ca_file, Authority::new().pem()).expect("write the file");
    assert!(matches!(ask(), Err(HttpError::Transport(_))), "a file that can be read again is taken up");
}

#[test]
fn a_forwarded_request_has_the_absolute_url_also_on_a_kept_connection() {
    let proxy = TestServer::new(&[GOOD, GOOD]);
    let address = proxy.url.replace("http://", "http://agent:p%40ss@");
    let route = super::Route::Forward(super::proxy::Proxy::read(&address).expect("a proxy"));
    let agent = super::agent(super::plain_config(), &route, None).expect("an agent");
    for path in ["/a?b=c", "/d"] {
        let mut response = agent.post(format!("http://gitlab.test:8080{path}")).send("POST /body").expect("a response");
        assert_eq!(response.body_mut().read_to_string().expect("a body"), "ok");
    }
    let seen = proxy.seen();
    assert!(seen[0].head.starts_with("post http://gitlab.test:8080/a?b=c http/1.1\n"), "{seen:?}");
    assert!(seen[1].head.starts_with("post http://gitlab.test:8080/d http/1.1\n"), "{seen:?}");
    for request in &seen {
        assert_eq!(request.header("host"), Some("gitlab.test:8080"));
        assert_eq!(request.header("proxy-authorization"), Some("basic ywdlbnq6cebzcw=="), "agent:p@ss, in lower case");
    }
}

#[test]
fn an_error_of_the_proxy_is_not_a_response_of_the_server() {
    for headers in ["X-Squid-Error: ERR_ACCESS_DENIED 0\r\n", "Proxy-Status: squid; error=http_request_denied\r\n"] {
        let proxy = TestServer::new(&[&format!("HTTP/1.1 403 Forbidden\r\n{headers}Content-Length: 0\r\n\r\n")]);
        let route = super::Route::Forward(super::proxy::Proxy::read(&proxy.url).expect("a proxy"));
        let agent = super::agent(super::plain_config(), &route, None).expect("an agent");
        let response = agent.get("http://gitlab.test/").call().expect("a response");
        let refusal = |route| super::proxy_health::refusal(route, 403, response.headers());
        assert!(refusal(&route).is_some_and(|why| why.contains("the proxy returns status 403")));
        assert_eq!(refusal(&super::Route::Direct), None);
    }
}
