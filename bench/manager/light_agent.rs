//! An agent that speaks the manager's protocol and runs nothing.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};

use crate::support::fleet::{FLEET_TOKEN, Fleet};
use crate::support::light_agent;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// An agent that runs nothing.
pub struct LightAgent {
    socket: TcpStream,
    stream: BufReader<Box<dyn Stream>>,
    token: String,
    pub running: Option<(String, String)>,
    pub ended: Vec<String>,
}

impl LightAgent {
    pub fn register(fleet: &Fleet, trust: Option<&Arc<ClientConfig>>, instance: &str) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", fleet.port)).expect("connect to the server");
        socket.set_nodelay(true).expect("set the socket option");
        let kept = socket.try_clone().expect("a descriptor");
        let stream: Box<dyn Stream> = match trust {
            None => Box::new(socket),
            Some(trust) => {
                let name = ServerName::try_from("localhost").expect("a name");
                Box::new(StreamOwned::new(
                    ClientConnection::new(Arc::clone(trust), name).expect("create the TLS connection"),
                    socket,
                ))
            }
        };
        let stream = BufReader::with_capacity(2048, stream);
        let mut agent = Self { socket: kept, stream, token: FLEET_TOKEN.to_owned(), running: None, ended: Vec::new() };
        let introduction = json!({"protocol": 1, "instance": instance, "boot": "b", "version": "0", "labels": {}});
        loop {
            agent.send("POST", "runners/verify", &json!({"token": FLEET_TOKEN, "mayfly": introduction}));
            let (status, body) = agent.read();
            if status == 200 {
                agent.token = body["mayfly"]["token"].as_str().expect("a token").to_owned();
                return agent;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn send(&mut self, method: &str, path: &str, body: &Value) {
        light_agent::send(self.stream.get_mut(), method, path, &self.token, body);
    }

    pub fn read(&mut self) -> (u16, Value) {
        light_agent::read(&mut self.stream)
    }

    /// Waits until the manager has sent something.
    pub fn is_answered_before(&self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(left).expect("a timeout")).expect("wait for the descriptors") > 0
    }

    pub fn ask(&mut self) {
        self.send("POST", "jobs/request", &json!({}));
    }

    /// The job that the request brings, and its offer.
    pub fn job(&mut self) -> Option<(String, String)> {
        let (status, body) = self.read();
        let offer = body["mayfly"]["offer"].as_str().map(str::to_owned);
        (status == 201).then(|| (body["id"].to_string(), offer.expect("an offer")))
    }

    pub fn accept(&mut self, id: &str, offer: &str) -> bool {
        self.send("PUT", &format!("jobs/{id}"), &json!({"offer": offer, "state": "running"}));
        self.read().0 == 200
    }

    pub fn heartbeat(&mut self) {
        let jobs: Vec<Value> = self
            .running
            .iter()
            .map(|(id, offer)| json!({"id": id, "offer": offer, "phase": "script", "token": "t"}))
            .collect();
        let ended = std::mem::take(&mut self.ended);
        self.send("POST", "runners/heartbeat", &json!({"jobs": jobs, "ended": ended}));
        assert_eq!(self.read().0, 200);
    }
}
