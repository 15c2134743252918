//! A server that sends exactly the responses of a test, also invalid ones, and records the requests.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A recorded request: its head, in lower case, and its body.
#[derive(Clone, Debug)]
pub struct SeenRequest {
    pub head: String,
    pub body: Vec<u8>,
}

impl SeenRequest {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// A server on loopback; runs until the process ends.
pub struct TestServer {
    pub url: String,
    seen: Arc<Mutex<Vec<SeenRequest>>>,
}

impl TestServer {
    /// Sends these responses, one per request; closes the connection after the last one and after one with `Connection:
    /// close`. An empty response closes it without a response.
    pub fn new(responses: &[&str]) -> Self {
        Self::start("http://127.0.0.1", None, responses)
    }

    /// The same over TLS, as `localhost`.
    pub fn with_tls(authority: &Authority, responses: &[&str]) -> Self {
        Self::start("https://localhost", Some(authority.server("localhost")), responses)
    }

    fn start(scheme_and_host: &str, tls: Option<Arc<ServerConfig>>, responses: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("{scheme_and_host}:{}", listener.local_addr().expect("an address").port());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut responses: VecDeque<String> = responses.iter().map(|response| (*response).to_owned()).collect();
        let recorded = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some(config) = &tls {
                    let connection = ServerConnection::new(Arc::clone(config)).expect("a configuration");
                    serve(BufReader::new(StreamOwned::new(connection, stream)), &mut responses, &recorded);
                } else {
                    serve(BufReader::new(stream), &mut responses, &recorded);
                }
            }
        });
        Self { url, seen }
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<SeenRequest> {
        self.seen.lock().expect("no panic").clone()
    }
}

fn serve<S: Read + Write>(
    mut stream: BufReader<S>,
    responses: &mut VecDeque<String>,
    recorded: &Mutex<Vec<SeenRequest>>,
) {
    while let Some(request) = read(&mut stream) {
        recorded.lock().expect("no panic").push(request);
        let response = responses.pop_front().unwrap_or_default();
        let sent = stream.get_mut().write_all(response.as_bytes()).and_then(|()| stream.get_mut().flush());
        if sent.is_err() || response.is_empty() || response.contains("Connection: close") {
            return;
        }
    }
}

fn read(stream: &mut impl BufRead) -> Option<SeenRequest> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let mut request = SeenRequest { head: head.to_ascii_lowercase().replace("\r\n", "\n"), body: Vec::new() };
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    request.body.resize(length, 0);
    stream.read_exact(&mut request.body).ok()?;
    Some(request)
}

/// An authority that issues certificates for servers and clients.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Test Authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        Self { issuer }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for a name, and its key, both as PEM.
    pub fn leaf(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.signed_by(&key, &self.issuer).expect("a certificate").pem(), key.serialize_pem())
    }

    fn server(&self, name: &str) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the protocol versions must be supported")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key);
        Arc::new(config.expect("a configuration"))
    }
}
