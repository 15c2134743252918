//! A socket between an agent and its engine; a test can delay or replace the engine's responses.

use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::docker::Docker;
use super::http::{Request, read_request};

/// The treatment of a request.
#[derive(Clone, Debug)]
pub enum Treatment {
    /// Forwarded to the engine.
    Forward,
    /// Forwarded after a delay.
    ForwardAfter(Duration),
    /// Not forwarded; answered with this raw response.
    Answer(String),
}

impl Treatment {
    /// An error response in the format of the engine.
    pub fn error(status: u16, message: &str) -> Self {
        let body = format!("{{\"message\":\"{message}\"}}");
        let length = body.len();
        Self::Answer(format!("HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"))
    }
}

type Rule = dyn Fn(&Request) -> Treatment + Send + Sync;

/// The socket; served until the process ends.
pub struct EngineProxy(tempfile::TempDir);

impl EngineProxy {
    /// Serves a socket in front of an engine; `rule` decides about each request.
    pub fn start(engine: &Docker, rule: impl Fn(&Request) -> Treatment + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("s")).expect("bind the address");
        let host = engine.host();
        let target = PathBuf::from(host.strip_prefix("unix://").expect("a path"));
        let rule: Arc<Rule> = Arc::new(rule);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (rule, target) = (Arc::clone(&rule), target.clone());
                thread::spawn(move || serve(&client, &target, &*rule));
            }
        });
        Self(directory)
    }

    /// The value for `host` below `[runners.docker]`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.0.path().join("s").display())
    }
}

/// Serves one connection of the agent, until one side closes it.
fn serve(client: &UnixStream, target: &Path, rule: &Rule) {
    let mut reader = BufReader::new(client.try_clone().expect("a descriptor"));
    let Ok(engine) = UnixStream::connect(target) else { return };
    let answers = (engine.try_clone().expect("a descriptor"), client.try_clone().expect("a descriptor"));
    thread::spawn(move || forward_until_end(answers.0, &answers.1));
    while let Some(request) = read_request(&mut reader) {
        match rule(&request) {
            Treatment::Forward => {}
            Treatment::ForwardAfter(wait) => thread::sleep(wait),
            Treatment::Answer(text) => {
                let mut client = client;
                let _ = client.write_all(text.as_bytes());
                let _ = client.shutdown(Shutdown::Both);
                return;
            }
        }
        if (&engine).write_all(&request_bytes(&request)).is_err() {
            return;
        }
        if !request.header("upgrade").is_empty() {
            forward_until_end(reader, &engine);
            return;
        }
    }
    let _ = engine.shutdown(Shutdown::Write);
}

fn forward_until_end(mut from: impl Read, mut to: &UnixStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

fn request_bytes(request: &Request) -> Vec<u8> {
    let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
    let mut text = format!("{} {}{query} HTTP/1.1\r\n", request.method, request.path);
    for (name, value) in request.headers.iter().filter(|(name, _)| *name != "transfer-encoding") {
        text += &format!("{name}: {value}\r\n");
    }
    if !request.headers.contains_key("content-length") && !request.body.is_empty() {
        text += &format!("content-length: {}\r\n", request.body.len());
    }
    let mut bytes = (text + "\r\n").into_bytes();
    bytes.extend_from_slice(&request.body);
    bytes
}
