//! A fake server for tests of transfers: sends prepared responses, one per connection, and records the requests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread::{self, JoinHandle};

/// A recorded request.
#[derive(Debug)]
pub struct RecordedRequest {
    /// Method and path.
    pub line: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The decoded body.
    pub body: Vec<u8>,
}

impl RecordedRequest {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A prepared response.
pub struct PreparedResponse {
    pub status: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Send this length in the header instead of the length of the body.
    pub content_length: Option<usize>,
}

pub fn response(status: &'static str, body: &[u8]) -> PreparedResponse {
    PreparedResponse { status, headers: Vec::new(), body: body.to_vec(), content_length: None }
}

pub struct Server {
    pub url: String,
    thread: JoinHandle<Vec<RecordedRequest>>,
}

impl Server {
    pub fn start(responses: Vec<PreparedResponse>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let thread = thread::spawn(move || responses.into_iter().map(|response| serve(&listener, &response)).collect());
        Self { url, thread }
    }

    /// Waits until all responses were sent, and returns the requests.
    pub fn requests(self) -> Vec<RecordedRequest> {
        self.thread.join().unwrap()
    }
}

fn serve(listener: &TcpListener, response: &PreparedResponse) -> RecordedRequest {
    let (mut stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        match header.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let mut request = RecordedRequest { line: line.trim_end().to_owned(), headers, body: Vec::new() };
    if request.header("expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    }
    request.body = body(&request, &mut reader);
    let length = response.content_length.unwrap_or(response.body.len());
    write!(stream, "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: {length}\r\n", response.status).unwrap();
    for (name, value) in &response.headers {
        write!(stream, "{name}: {value}\r\n").unwrap();
    }
    stream.write_all(b"\r\n").unwrap();
    stream.write_all(&response.body).unwrap();
    request
}

fn body(request: &RecordedRequest, reader: &mut impl BufRead) -> Vec<u8> {
    let mut body = Vec::new();
    if request.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            let mut chunk = vec![0; size + 2];
            if reader.read_exact(&mut chunk).is_err() || size == 0 {
                return body;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    reader.take(length).read_to_end(&mut body).unwrap();
    body
}
