//! A minimal HTTP server: reads requests and writes responses, over TCP or TLS.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

/// A bidirectional byte stream.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

pub type Connection = BufReader<Box<dyn Stream>>;

/// Serves connections to a port on loopback, each in its own thread, until the process ends. Returns the URL.
pub fn listen(tls: Option<Arc<ServerConfig>>, serve: impl Fn(Connection) + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let url = match tls {
        Some(_) => format!("https://localhost:{port}"),
        None => format!("http://127.0.0.1:{port}"),
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (serve, tls) = (serve.clone(), tls.clone());
            thread::spawn(move || serve(connection(stream, tls)));
        }
    });
    url
}

/// An accepted connection.
pub fn connection(stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> Connection {
    BufReader::with_capacity(
        64 * 1024,
        match tls {
            Some(config) => Box::new(StreamOwned::new(ServerConnection::new(config).expect("a configuration"), stream)),
            None => Box::new(stream),
        },
    )
}

/// A request.
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    /// The body as JSON, or null.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The value of a header; empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(&name.to_ascii_lowercase()).map_or("", String::as_str)
    }
}

/// A response.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    pub fn json(status: u16, body: &Value) -> Self {
        Self::new(status).with("Content-Type", "application/json").body(body.to_string())
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// Reads one request; sends `100 Continue` if the client expects it.
pub fn receive(connection: &mut Connection) -> Option<Request> {
    let mut request = read_head(connection)?;
    if request.header("Expect") == "100-continue" {
        connection.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
        connection.get_mut().flush().ok()?;
    }
    request.body = read_body(connection, &request.headers)?;
    Some(request)
}

/// Reads one request; `None` if the client has closed the connection.
pub fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut request = read_head(reader)?;
    request.body = read_body(reader, &request.headers)?;
    Some(request)
}

fn read_head(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Request { method, path: path.to_owned(), query: query.to_owned(), headers, body: Vec::new() })
}

fn read_body(reader: &mut impl BufRead, headers: &BTreeMap<String, String>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|encoding| encoding == "chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let length = usize::from_str_radix(line.trim(), 16).ok()?;
            reader.take(length as u64).read_to_end(&mut body).ok()?;
            reader.read_exact(&mut [0; 2]).ok()?;
            if length == 0 {
                return Some(body);
            }
        }
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    body.resize(length, 0);
    reader.read_exact(&mut body).ok()?;
    Some(body)
}

/// Writes a response in one piece.
pub fn write_answer(writer: &mut impl Write, answer: &Answer) -> std::io::Result<()> {
    let mut text = head(answer);
    text.extend_from_slice(&answer.body);
    writer.write_all(&text)?;
    writer.flush()
}

/// Writes a response with only half its body.
pub fn write_half(writer: &mut impl Write, answer: &Answer) -> std::io::Result<()> {
    let mut text = head(answer);
    text.extend_from_slice(&answer.body[..answer.body.len() / 2]);
    writer.write_all(&text)?;
    writer.flush()
}

fn head(answer: &Answer) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {} Status\r\n", answer.status);
    for (name, value) in &answer.headers {
        text += &format!("{name}: {value}\r\n");
    }
    if answer.status != 204 {
        text += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    (text + "\r\n").into_bytes()
}
