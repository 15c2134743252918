//! An HTTP server for metrics and health: one response per connection, each in its own thread, with a time limit.
//!
//! A slow or hostile client occupies one of a few small threads for a few seconds. If all threads are occupied, the
//! server closes the oldest connection to serve a new client.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::address::{bind, listen_instead_of};
use crate::sync;
use crate::sys;

/// The maximum number of concurrent connections, each with its thread.
const MAX_CONNECTIONS: usize = 8;
/// The time limit of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest request head, in bytes.
const MAX_REQUEST_HEAD: usize = 8 * 1024;
/// How much unread input is discarded before the connection is closed, in bytes.
const MAX_UNREAD: usize = 64 * 1024;
/// The delay after a connection could not be accepted.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// The stack size of the threads, in bytes.
const STACK: usize = 128 * 1024;

/// A response of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageResponse {
    pub status: u16,
    pub content_type: &'static str,
    pub body: String,
}

impl PageResponse {
    /// Plain text.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }
}

/// Returns the page at a path; `None` if it does not exist.
pub type Pages = Arc<dyn Fn(&str) -> Option<PageResponse> + Send + Sync>;

/// Listens until it is dropped.
pub struct Listener {
    address: String,
    socket: Arc<TcpListener>,
    stop: Arc<EventFd>,
    connections: Arc<Connections>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens at `address`: `host:port`, `:port` for every interface, or a host alone. Fails if the address is invalid
    /// or cannot be bound.
    pub fn start(address: &str, pages: Pages) -> Result<Self, String> {
        let started = bind(address).and_then(|socket| Self::serve(address, socket, pages));
        started.map_err(|error| format!("`listen_address = \"{address}\"`: {error}"))
    }

    /// Listens at `address` in place of this listener. Fails as [`Listener::start`]; then this listener still listens.
    pub fn move_to(&mut self, address: &str, pages: Pages) -> Result<(), String> {
        let started = listen_instead_of(&self.socket, address, |socket| Self::serve(address, socket, pages));
        *self = started.map_err(|error| format!("`listen_address = \"{address}\"`: {error}"))?;
        Ok(())
    }

    /// Starts the thread that accepts connections.
    fn serve(address: &str, socket: TcpListener, pages: Pages) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = Arc::new(socket);
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let connections = Arc::<Connections>::default();
        let (accepting, stop_fd, open) = (Arc::clone(&socket), Arc::clone(&stop), Arc::clone(&connections));
        let serve = move || accept_connections(&accepting, &stop_fd, &open, &pages);
        let thread = sync::spawn("monitor", STACK, serve)?;
        Ok(Self { address: address.to_owned(), socket, stop, connections, thread: Some(thread) })
    }

    /// The configured address.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.connections.close_all();
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Accepts connections until `stop` is written.
fn accept_connections(socket: &TcpListener, stop: &EventFd, connections: &Arc<Connections>, pages: &Pages) {
    loop {
        if let Ok([_, true]) = sys::wait([Some(socket.as_fd()), Some(stop.as_fd())], None) {
            return;
        }
        match socket.accept() {
            Ok((stream, _)) => accept(stream, connections, pages),
            // File descriptors may be exhausted; meanwhile clients wait in the kernel's queue. Or the socket does not
            // listen while `move_to` tries another address.
            Err(error) if !is_temporary(&error) => {
                if let Ok([true]) = sys::wait([Some(stop.as_fd())], Some(ACCEPT_RETRY_INTERVAL)) {
                    return;
                }
            }
            Err(_) => {}
        }
    }
}

/// Whether the client has already disconnected, or a signal arrived.
fn is_temporary(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | WouldBlock)
}

fn accept(stream: TcpStream, connections: &Arc<Connections>, pages: &Pages) {
    let Some(connection) = Connections::add(connections, stream) else { return };
    let pages = Arc::clone(pages);
    // If no thread can be created, the closure is dropped, which closes the connection.
    let _ = sync::spawn("monitor-client", STACK, move || {
        // An error affects only this client.
        let _ = handle_connection(&connection.stream, &pages);
    });
}

/// The open connections.
#[derive(Default)]
struct Connections {
    open: Mutex<OpenConnections>,
    closed: Condvar,
}

#[derive(Default)]
struct OpenConnections {
    next_number: u64,
    streams: VecDeque<(u64, Arc<TcpStream>)>,
    /// Set when the listener is dropped: no connection is added any more.
    is_closed: bool,
}

/// One of the open connections. Its drop frees the thread for another client, also after a panic.
struct Connection {
    connections: Arc<Connections>,
    number: u64,
    stream: Arc<TcpStream>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.lock().streams.retain(|(other, _)| *other != self.number);
        self.connections.closed.notify_all();
    }
}

impl Connections {
    /// Waits for a free thread. Closes the oldest connection if no thread is free. Returns `None` when the listener is
    /// dropped: the pages of the open connections may hang, for example on a network file system.
    fn add(connections: &Arc<Self>, stream: TcpStream) -> Option<Connection> {
        let mut open = connections.lock();
        while !open.is_closed && open.streams.len() >= MAX_CONNECTIONS {
            if let Some((_, oldest)) = open.streams.front() {
                let _ = oldest.shutdown(Shutdown::Both);
            }
            open = sync::wait(&connections.closed, open);
        }
        if open.is_closed {
            return None;
        }
        let (number, stream) = (open.next_number, Arc::new(stream));
        open.next_number += 1;
        open.streams.push_back((number, Arc::clone(&stream)));
        Some(Connection { connections: Arc::clone(connections), number, stream })
    }

    fn close_all(&self) {
        let mut open = self.lock();
        open.is_closed = true;
        for (_, stream) in &open.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.closed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        sync::lock(&self.open)
    }
}

/// Serves one connection.
fn handle_connection(stream: &TcpStream, pages: &Pages) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let until = Instant::now() + CONNECTION_TIMEOUT;
    let (response, with_body) = match read_head(stream, until)? {
        Head::Request { method, path } => match method.as_str() {
            "GET" | "HEAD" => {
                let response = pages(&path).unwrap_or_else(|| PageResponse::text(404, "see /metrics and /healthz\n"));
                (response, method == "GET")
            }
            _ => (PageResponse::text(405, "only GET and HEAD are supported\n"), true),
        },
        Head::TooLarge => (PageResponse::text(431, "the request is too large\n"), true),
        Head::Malformed => (PageResponse::text(400, "the request is not valid HTTP\n"), true),
        Head::Disconnected => return Ok(()),
    };
    let mut text = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n",
        response.status,
        reason_phrase(response.status),
        response.content_type,
        response.body.len(),
        if response.status == 405 { "Allow: GET, HEAD\r\n" } else { "" },
    );
    if with_body {
        text.push_str(&response.body);
    }
    write_until(stream, text.as_bytes(), until)?;
    stream.shutdown(Shutdown::Write)?;
    // Closing a connection with unread input would reset it and discard the response.
    let mut buffer = [0; 1024];
    let mut unread = MAX_UNREAD;
    while unread > 0 {
        match read_until(stream, &mut buffer, until)? {
            0 => break,
            length => unread = unread.saturating_sub(length),
        }
    }
    Ok(())
}

/// The head of a request.
enum Head {
    Request {
        method: String,
        path: String,
    },
    TooLarge,
    Malformed,
    /// The client has disconnected before it sent the whole head.
    Disconnected,
}

fn read_head(stream: &TcpStream, until: Instant) -> io::Result<Head> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let length = read_until(stream, &mut buffer, until)?;
        if length == 0 {
            return Ok(Head::Disconnected);
        }
        head.extend_from_slice(&buffer[..length]);
        let ended = |end: &[u8]| head.windows(end.len()).any(|window| window == end);
        if ended(b"\r\n\r\n") || ended(b"\n\n") {
            return Ok(parse(&head).unwrap_or(Head::Malformed));
        }
        if head.len() >= MAX_REQUEST_HEAD {
            return Ok(Head::TooLarge);
        }
    }
}

fn parse(head: &[u8]) -> Option<Head> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\n').next()?).ok()?.trim_end();
    let mut words = line.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_valid = words.next().is_none() && version.starts_with("HTTP/1.") && target.starts_with('/');
    let path = target.split(['?', '#']).next()?;
    is_valid.then(|| Head::Request { method: method.to_owned(), path: path.to_owned() })
}

fn read_until(mut stream: &TcpStream, buffer: &mut [u8], until: Instant) -> io::Result<usize> {
    stream.set_read_timeout(Some(time_left(until)?))?;
    stream.read(buffer)
}

fn write_until(mut stream: &TcpStream, text: &[u8], until: Instant) -> io::Result<()> {
    let mut text = text;
    while !text.is_empty() {
        stream.set_write_timeout(Some(time_left(until)?))?;
        let written = stream.write(text)?;
        text = &text[written..];
    }
    Ok(())
}

fn time_left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        _ => "Service Unavailable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
    }

    fn start() -> (Listener, String) {
        start_with(Arc::new(|path| (path == "/page").then(|| PageResponse::text(200, "x".repeat(300_000)))))
    }

    fn start_with(pages: Pages) -> (Listener, String) {
        for _ in 0..10 {
            let address = format!("127.0.0.1:{}", free_port());
            if let Ok(listener) = Listener::start(&address, Arc::clone(&pages)) {
                return (listener, address);
            }
        }
        panic!("no port is free");
    }

    fn request(address: &str, request: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("connect to the server");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set the timeout");
        stream.write_all(request.as_bytes()).expect("write all bytes");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a response");
        response
    }

    #[test]
    fn serves_valid_requests_and_explains_errors_in_others() {
        let (_listener, address) = start();
        let page = request(&address, "GET /page?x=1 HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with(&"x".repeat(1000)), "{}", &page[..200]);
        let head = request(&address, "HEAD /page HTTP/1.0\r\n\r\n");
        assert!(head.contains("Content-Length: 300000\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        for (text, status) in [
            ("GET /other HTTP/1.1\r\n\r\n", "404"),
            ("POST /page HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405"),
            ("nonsense\n\n", "400"),
            ("GET  HTTP/1.1\r\n\r\n", "400"),
            (&format!("GET /page HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(MAX_REQUEST_HEAD)), "431"),
        ] {
            assert!(request(&address, text).starts_with(&format!("HTTP/1.1 {status} ")), "{text:.40}");
        }
    }

    #[test]
    fn silent_clients_do_not_block_others() {
        let (listener, address) = start();
        let silent: Vec<TcpStream> =
            (0..3 * MAX_CONNECTIONS).map(|_| TcpStream::connect(&address).expect("connect to the server")).collect();
        assert!(request(&address, "GET /page HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
        // Dropping the listener also closes them.
        drop(listener);
        for mut stream in silent {
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set the timeout");
            let read = stream.read(&mut [0; 8]).map_err(|error| error.kind());
            assert!(matches!(read, Ok(0) | Err(io::ErrorKind::ConnectionReset)), "{read:?}");
        }
    }

    #[test]
    fn pages_that_hang_do_not_block_the_drop_of_the_listener() {
        let (_hang, hanging) = std::sync::mpsc::channel::<()>();
        let hanging = Mutex::new(hanging);
        let (began, requests) = std::sync::mpsc::channel();
        let pages: Pages = Arc::new(move |_| {
            began.send(()).expect("the test waits for the requests");
            // Returns only when the test ends.
            let _ = sync::lock(&hanging).recv();
            None
        });
        let (listener, address) = start_with(pages);
        let connect = || {
            let mut stream = TcpStream::connect(&address).expect("connect to the server");
            stream.write_all(b"GET /page HTTP/1.1\r\n\r\n").expect("send a request");
            stream
        };
        let _clients: Vec<TcpStream> = (0..=MAX_CONNECTIONS).map(|_| connect()).collect();
        (0..MAX_CONNECTIONS).for_each(|_| requests.recv().expect("a request arrives"));
        drop(listener);
    }

    #[test]
    fn reports_an_address_in_use() {
        let (listener, address) = start();
        assert_eq!(listener.address(), address);
        let pages: Pages = Arc::new(|_| None);
        let why = Listener::start(&address, pages).err().expect("must be refused");
        assert!(why.contains("listen_address") && why.contains(&address), "{why}");
    }
}
