//! A fake server for tests of transfers: sends prepared responses, one per connection, and records the requests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread::{self, JoinHandle};

/// A recorded request.
#[derive(Debug)]
pub struct Asked {
    /// Method and path.
    pub line: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The decoded body.
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A prepared response.
pub struct Answer {
    pub status: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Send this length in the header instead of the length of the body.
    pub claimed: Option<usize>,
}

pub fn answer(status: &'static str, body: &[u8]) -> Answer {
    Answer { status, headers: Vec::new(), body: body.to_vec(), claimed: None }
}

pub struct Server {
    pub url: String,
    thread: JoinHandle<Vec<Asked>>,
}

impl Server {
    pub fn start(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let thread = thread::spawn(move || answers.into_iter().map(|answer| serve(&listener, &answer)).collect());
        Self { url, thread }
    }

    /// Waits until all responses were sent, and returns the requests.
    pub fn asked(self) -> Vec<Asked> {
        self.thread.join().unwrap()
    }
}

fn serve(listener: &TcpListener, answer: &Answer) -> Asked {
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
    let mut asked = Asked { line: line.trim_end().to_owned(), headers, body: Vec::new() };
    if asked.header("expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    }
    asked.body = body(&asked, &mut reader);
    let length = answer.claimed.unwrap_or(answer.body.len());
    write!(stream, "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: {length}\r\n", answer.status).unwrap();
    for (name, value) in &answer.headers {
        write!(stream, "{name}: {value}\r\n").unwrap();
    }
    stream.write_all(b"\r\n").unwrap();
    stream.write_all(&answer.body).unwrap();
    asked
}

fn body(asked: &Asked, reader: &mut impl BufRead) -> Vec<u8> {
    let mut body = Vec::new();
    if asked.header("transfer-encoding") == Some("chunked") {
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
    let length = asked.header("content-length").map_or(0, |length| length.parse().unwrap());
    reader.take(length).read_to_end(&mut body).unwrap();
    body
}
