//! An agent that implements the protocol with a manager and runs no jobs, so that a test can have hundreds of them.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::fleet::FLEET_TOKEN;
use super::wait_until;

/// The timeout of any request to a manager; a request for a job waits for 50 s.
const TIMEOUT: Duration = Duration::from_secs(150);

/// An agent.
pub struct LightAgent {
    stream: BufReader<TcpStream>,
    port: u16,
    token: String,
}

/// A job that was offered.
pub struct Offered {
    pub id: String,
    pub offer: String,
}

impl LightAgent {
    /// Registers an agent on an instance, which must soon become a member of the group.
    pub fn register(port: u16, instance: &str) -> Self {
        let mut agent = Self { stream: connect(port), port, token: FLEET_TOKEN.to_owned() };
        let introduction = json!({"protocol": 1, "instance": instance, "boot": "b", "version": "0", "labels": {}});
        let body = json!({"token": FLEET_TOKEN, "mayfly": introduction});
        wait_until("a registered agent", || {
            let (status, answer) = agent.call("POST", "runners/verify", &body);
            assert!(matches!(status, 200 | 404), "{status} {answer}");
            if let Some(token) = answer["mayfly"]["token"].as_str() {
                token.clone_into(&mut agent.token);
            }
            status == 200
        });
        agent
    }

    /// Requests a job; `None` if there is none, or the manager closed the connection.
    pub fn job(&mut self) -> Option<Offered> {
        let (status, body) = self.call("POST", "jobs/request", &json!({}));
        assert!(matches!(status, 201 | 204 | 0), "{status} {body}");
        let offer = || body["mayfly"]["offer"].as_str().expect("the id of the offer").to_owned();
        (status == 201).then(|| Offered { id: body["id"].to_string(), offer: offer() })
    }

    /// Accepts an offer; returns the status of the response.
    pub fn accept(&mut self, offered: &Offered) -> u16 {
        self.call("PUT", &format!("jobs/{}", offered.id), &json!({"offer": offered.offer, "state": "running"})).0
    }

    /// Reports the end of a job.
    pub fn end(&mut self, id: &str) {
        let (status, body) = self.call("POST", "runners/heartbeat", &json!({"jobs": [], "ended": [id]}));
        assert_eq!(status, 200, "{body}");
    }

    /// Closes the connection and opens another one.
    pub fn reconnect(&mut self) {
        self.stream = connect(self.port);
    }

    /// The status, which is 0 if the manager closed the connection, and the body.
    fn call(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        send(self.stream.get_mut(), method, path, &self.token, body);
        read(&mut self.stream)
    }
}

/// Sends a request of an agent.
pub fn send(stream: &mut impl Write, method: &str, path: &str, token: &str, body: &Value) {
    let body = body.to_string();
    let request = format!(
        "{method} /api/v4/{path} HTTP/1.1\r\nHost: h\r\nRUNNER-TOKEN: {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("send the request");
    stream.flush().expect("send the request");
}

/// Reads a response: the status, which is 0 if the manager closed the connection, and the body.
pub fn read(stream: &mut impl BufRead) -> (u16, Value) {
    let (mut status, mut length) = (0, 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).expect("a line");
        if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
            status = rest[..3].parse().expect("a status");
        }
        if let Some(rest) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = rest.trim().parse().expect("a length");
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

fn connect(port: u16) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect to the server");
    stream.set_nodelay(true).expect("set the socket option");
    stream.set_read_timeout(Some(TIMEOUT)).expect("set the timeout");
    BufReader::with_capacity(2048, stream)
}
