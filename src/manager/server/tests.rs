//! The server with real connections.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use super::*;

struct Recorder {
    tickets: Mutex<Sender<Ticket>>,
    gone: Mutex<Sender<Ticket>>,
}

impl Handler for Recorder {
    fn handle(&self, request: ServerRequest, exchange: Exchange) {
        match request.path.as_str() {
            "/wait" => {
                let ticket = exchange.defer();
                self.tickets.lock().expect("no thread may panic").send(ticket).expect("the receiver must exist");
            }
            path => exchange.respond(&ServerResponse::message(200, path)),
        }
    }

    fn handle_disconnect(&self, ticket: Ticket) {
        self.gone.lock().expect("no thread may panic").send(ticket).expect("the receiver must exist");
    }
}

struct Running {
    server: HttpServer,
    _handler: Arc<dyn Handler>,
    tickets: Receiver<Ticket>,
    gone: Receiver<Ticket>,
}

impl Running {
    fn start() -> Self {
        Self::start_with_threads(MAX_THREADS)
    }

    fn start_with_threads(max_threads: usize) -> Self {
        let (tickets, their_tickets) = mpsc::channel();
        let (gone, their_gone) = mpsc::channel();
        let handler: Arc<dyn Handler> = Arc::new(Recorder { tickets: Mutex::new(tickets), gone: Mutex::new(gone) });
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = HttpServer::start_with_threads(listener, None, Arc::downgrade(&handler), max_threads)
            .expect("start the server");
        Self { server, _handler: handler, tickets: their_tickets, gone: their_gone }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.listener().local_addr().expect("an address"))
            .expect("connect to the server");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set the timeout");
        stream
    }
}

fn ask(stream: &mut TcpStream, path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).expect("write all bytes");
}

fn answer(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("an answer");
        text.push(byte[0]);
    }
    let head = String::from_utf8(text).expect("the text must be UTF-8");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    head + &String::from_utf8(body).expect("the text must be UTF-8")
}

#[test]
fn answers_one_request_after_the_other_on_a_connection() {
    let running = Running::start();
    let mut stream = running.connect();
    for path in ["/a", "/b", "/c"] {
        ask(&mut stream, path);
        let text = answer(&mut stream);
        assert!(text.starts_with("HTTP/1.1 200") && text.contains(path), "{text}");
    }
    stream.write_all(b"GET /d HTTP/1.1\r\n\r\nGET /e HTTP/1.1\r\nConnection: close\r\n\r\n").expect("write all bytes");
    assert!(answer(&mut stream).contains("/d"));
    assert!(answer(&mut stream).contains("/e"), "it came with the one before");
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
}

#[test]
fn a_request_waits_without_a_thread_and_gets_its_response() {
    let running = Running::start();
    let mut streams: Vec<TcpStream> = (0..200).map(|_| running.connect()).collect();
    for stream in &mut streams {
        ask(stream, "/wait");
    }
    let tickets: Vec<Ticket> = streams.iter().map(|_| running.tickets.recv().expect("a request must arrive")).collect();
    let responder = running.server.responder();
    for ticket in &tickets {
        assert!(responder.respond(*ticket, ServerResponse::empty(204)));
        assert!(!responder.respond(*ticket, ServerResponse::empty(204)), "once");
    }
    for stream in &mut streams {
        assert!(answer(stream).starts_with("HTTP/1.1 204"));
        ask(stream, "/again");
        assert!(answer(stream).contains("/again"));
    }
}

#[test]
fn slow_clients_occupy_no_thread() {
    let running = Running::start();
    let mut slow: Vec<TcpStream> = (0..300).map(|_| running.connect()).collect();
    for stream in &mut slow {
        stream.write_all(b"POST /slow HTTP/1.1\r\nContent-Length: 4\r\n\r\nha").expect("write all bytes");
    }
    let mut stream = running.connect();
    ask(&mut stream, "/fast");
    assert!(answer(&mut stream).contains("/fast"), "the server must not wait for the slow clients");
    for stream in &mut slow {
        stream.write_all(b"lf").expect("write all bytes");
        assert!(answer(stream).contains("/slow"));
    }
}

/// The system refuses more threads, and the only one has been idle for longer than a surplus thread may be.
#[test]
fn one_thread_serves_the_requests_of_all_connections() {
    let running = Running::start_with_threads(1);
    let mut streams: Vec<TcpStream> = (0..20).map(|_| running.connect()).collect();
    for path in ["/one", "/two"] {
        std::thread::sleep(Duration::from_millis(100));
        streams.iter_mut().for_each(|stream| ask(stream, path));
        for stream in &mut streams {
            assert!(answer(stream).contains(path));
        }
    }
}

#[test]
fn tells_when_a_client_that_waited_is_gone() {
    let running = Running::start();
    let mut stream = running.connect();
    ask(&mut stream, "/wait");
    let ticket = running.tickets.recv().expect("a request must arrive");
    drop(stream);
    assert_eq!(running.gone.recv().expect("the disconnection must be reported"), ticket);
    assert!(!running.server.responder().respond(ticket, ServerResponse::empty(204)));
}

#[test]
fn the_server_moves_to_every_interface_on_its_port_and_keeps_its_connections() {
    let running = Running::start();
    // A connection that the server has not accepted yet would be reset.
    let mut first = running.connect();
    ask(&mut first, "/before");
    assert!(answer(&mut first).contains("/before"));
    let port = running.server.listener().local_addr().expect("an address").port();
    running.server.listen_at(&format!("0.0.0.0:{port}")).expect("the address of its own listener");
    let mut second = TcpStream::connect(("127.0.0.2", port)).expect("connect to another interface");
    for stream in [&mut first, &mut second] {
        ask(stream, "/a");
        assert!(answer(stream).contains("/a"));
    }
}

#[test]
fn the_server_keeps_its_address_when_another_one_is_in_use() {
    let running = Running::start();
    let taken = TcpListener::bind("127.0.0.1:0").and_then(|taken| Ok((taken.local_addr()?, taken))).expect("a port");
    running.server.listen_at(&taken.0.to_string()).expect_err("the address is in use");
    let mut stream = running.connect();
    ask(&mut stream, "/a");
    assert!(answer(&mut stream).contains("/a"));
}

#[test]
fn tls_shows_the_certificate_and_carries_requests() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).expect("write the file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("write the file");
    let running = Running::start();
    running.server.set_tls(Some(certificate::load(&certificate, &key).expect("load the certificate")));
    let port = running.server.listener().local_addr().expect("an address").port();
    let files = crate::http::tls::TlsFiles { ca_file: Some(certificate.clone()), ..Default::default() };
    let url = format!("https://localhost:{port}");
    let client = crate::http::Client::new(&url, &files, "test", Duration::from_secs(60)).expect("a client");
    for path in ["/one", "/two"] {
        let request = crate::http::Request {
            method: crate::http::Method::Post,
            url: format!("{url}{path}"),
            headers: Vec::new(),
            body: &[b'x'; 10_000],
            timeout: None,
        };
        let response = client.call(&request, &|_| false).expect("a response");
        assert_eq!(response.status, 200);
        assert!(String::from_utf8_lossy(&response.body).contains(path));
    }
    std::fs::write(&key, "nonsense").expect("write the file");
    assert!(certificate::load(&certificate, &key).is_err_and(|why| why.contains("no usable private key")));
}

/// Reports each request, and responds when the test sends a sign.
struct Slow {
    requests: Mutex<Sender<()>>,
    sign: Mutex<Receiver<()>>,
    has_responded: AtomicBool,
}

impl Handler for Slow {
    fn handle(&self, request: ServerRequest, exchange: Exchange) {
        if request.path == "/wait" {
            exchange.defer();
            return self.requests.lock().expect("no thread may panic").send(()).expect("the receiver must exist");
        }
        self.requests.lock().expect("no thread may panic").send(()).expect("the receiver must exist");
        self.sign.lock().expect("no thread may panic").recv().expect("the test must send a sign");
        exchange.respond(&ServerResponse::message(200, "accepted"));
        self.has_responded.store(true, Ordering::SeqCst);
    }

    fn handle_disconnect(&self, _: Ticket) {}
}

/// A manager that drains exits as soon as an agent has accepted the last job. Without the response, that agent never
/// starts the job.
#[test]
fn a_server_that_stops_sends_the_responses_of_requests_in_progress() {
    let ((requests, request), (send_sign, sign)) = (mpsc::channel(), mpsc::channel());
    let has_responded = AtomicBool::new(false);
    let handler = Arc::new(Slow { requests: Mutex::new(requests), sign: Mutex::new(sign), has_responded });
    let weak: Weak<dyn Handler> = Arc::downgrade(&(Arc::clone(&handler) as Arc<dyn Handler>));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = HttpServer::start(listener, None, weak).expect("start the server");
    let mut idle = TcpStream::connect(address).expect("connect to the server");
    let mut waiting = TcpStream::connect(address).expect("connect to the server");
    ask(&mut waiting, "/wait");
    request.recv().expect("the long poll must arrive");
    let mut accepting = TcpStream::connect(address).expect("connect to the server");
    ask(&mut accepting, "/accept");
    request.recv().expect("the request must arrive");

    let stopping = std::thread::spawn(move || drop(server));
    assert_eq!(idle.read(&mut [0]).expect("the server must close a connection without a request"), 0);
    assert_eq!(waiting.read(&mut [0]).expect("the server must not wait for the end of a long poll"), 0);
    send_sign.send(()).expect("the handler must wait");
    stopping.join().expect("the server must stop");

    assert!(handler.has_responded.load(Ordering::SeqCst), "the server must wait for the response");
    assert!(answer(&mut accepting).starts_with("HTTP/1.1 200"));
}
