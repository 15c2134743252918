//! Explains problems with the certificates of a server to operators.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use super::chain;
use super::client::Method;
use super::proxy::{Proxy, Route};
use super::tls::{self, TlsFiles, anchors};
use super::transfer::{Outgoing, Timeouts, Transfer};
use super::verifier::Verifier;

use crate::sync;

/// The timeout for connecting and for each read.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest response head of a proxy.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Makes a TLS handshake with a server and checks its certificates. The error says in one line what is wrong and what
/// to do.
pub fn diagnose(url: &str, files: &TlsFiles) -> Result<String, String> {
    let (host, presented) = inspect(url, files)?;
    let Some(presented) = presented else {
        return Ok(format!(
            "{host}: `check` cannot inspect the certificate chain through this proxy; requests verify it nevertheless"
        ));
    };
    let chain: Vec<chain::Certificate> = presented.chain.iter().filter_map(|der| chain::read(der)).collect();
    match presented.verdict {
        Ok(()) => Ok(format!("{host}: the TLS chain is complete ({} certificate(s) sent)", chain.len())),
        Err(error) => Err(chain::explain(&host, &chain, &error)),
    }
}

/// The `https` URL to which a server redirects an `http` URL.
pub fn redirect_to_https(url: &str, files: &TlsFiles) -> Option<String> {
    if !url.starts_with("http://") {
        return None;
    }
    let timeouts = Timeouts { total: TIMEOUT, response: TIMEOUT };
    let transfer = Transfer::new(url, files, "mayfly", timeouts).ok()?;
    let response = transfer.send(Method::Get, url, &[], Outgoing::Nothing).ok()?;
    let location = response.header("Location").filter(|_| (300..400).contains(&response.status))?;
    let target = super::origin(&super::resolve(url, location).ok()?);
    target.starts_with("https://").then_some(target)
}

/// The chain of a server up to the trusted authority, as PEM. `None` without TLS, or if a proxy hides the chain. Fails
/// if the server is unreachable or not trusted.
pub fn trusted_chain(url: &str, files: &TlsFiles) -> Result<Option<String>, String> {
    if !url.starts_with("https://") {
        return Ok(None);
    }
    let (_, Some(presented)) = inspect(url, files)? else { return Ok(None) };
    presented.verdict.map_err(|error| error.to_string())?;
    let chain: Vec<Vec<u8>> = presented.chain.iter().map(|der| der.to_vec()).collect();
    let roots: Vec<Vec<u8>> = anchors(files)?.iter().map(|root| root.to_vec()).collect();
    Ok(chain::with_root(chain, &roots).map(|chain| chain.iter().map(|der| chain::pem(der)).collect()))
}

/// The host of a URL, and the chain that it sends; `None` if the proxy is not supported here.
fn inspect(url: &str, files: &TlsFiles) -> Result<(String, Option<PresentedChain>), String> {
    let origin = super::origin(url);
    let authority = origin.strip_prefix("https://").unwrap_or(&origin).to_owned();
    let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())) {
        Some((host, port)) => (host.to_owned(), port.parse().unwrap_or(443)),
        None => (authority, 443_u16),
    };
    let host = host.trim_matches(['[', ']']).to_owned();
    let uri = super::url::parse(url).map_err(|error| error.to_string())?;
    let proxy_route = Route::from_environment(&uri)?;
    let presented = match TcpRoute::through(proxy_route.proxy()) {
        Some(route) => Some(handshake(&host, port, &route, files)?),
        None => None,
    };
    Ok((host, presented))
}

/// How to connect to a server.
enum TcpRoute {
    Direct,
    Tunnel { host: String, port: u16 },
}

impl TcpRoute {
    /// `None` for a proxy with credentials or TLS, which this module does not support.
    fn through(proxy: Option<&Proxy>) -> Option<Self> {
        let Some(proxy) = proxy else { return Some(Self::Direct) };
        let agent = proxy.to_library();
        let plain = !proxy.is_tls() && agent.username().is_none() && agent.password().is_none();
        plain.then(|| Self::Tunnel { host: agent.host().to_owned(), port: agent.port() })
    }

    /// Connects to a port of a server.
    fn open(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        match self {
            Self::Direct => connect(host, port),
            Self::Tunnel { host: through, port: at } => tunnel(connect(through, *at)?, host, port)
                .map_err(|error| format!("the proxy {through}:{at} refuses a tunnel to {host}:{port}: {error}")),
        }
    }
}

fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let unreachable = |error: io::Error| format!("cannot connect to {host}:{port}: {error}");
    let mut outcome = Err(io::Error::other("the name has no address"));
    for address in (host, port).to_socket_addrs().map_err(unreachable)? {
        outcome = TcpStream::connect_timeout(&address, TIMEOUT);
        if outcome.is_ok() {
            break;
        }
    }
    let stream = outcome.map_err(unreachable)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(unreachable)?;
    Ok(stream)
}

fn tunnel(mut stream: TcpStream, host: &str, port: u16) -> io::Result<TcpStream> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    write!(stream, "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n")?;
    let mut head = Vec::new();
    // Read single bytes: the bytes after the head belong to the TLS handshake.
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD_BYTES {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let status = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
    match status.split(' ').nth(1) {
        Some(code) if code.starts_with('2') => Ok(stream),
        _ => Err(io::Error::other(format!("the response is `{status}`"))),
    }
}

struct PresentedChain {
    chain: Vec<CertificateDer<'static>>,
    verdict: Result<(), rustls::Error>,
}

/// A handshake that records the whole chain, even of an untrusted server.
fn handshake(host: &str, port: u16, route: &TcpRoute, files: &TlsFiles) -> Result<PresentedChain, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::new(anchors(files)?)?;
    let recorder = Arc::new(Recorder { inner: verifier, seen: std::sync::Mutex::new(None) });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&recorder) as Arc<dyn rustls::client::danger::ServerCertVerifier>)
        .with_no_client_auth();
    let mut connection = tls::connection(Arc::new(config), host)?;
    let mut socket = route.open(host, port)?;
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    let handshake = stream.flush();
    let seen = sync::lock(&recorder.seen).take();
    match (seen, handshake) {
        (Some(presented), _) => Ok(presented),
        (None, Err(error)) => Err(format!("{host}:{port}: the TLS handshake fails: {error}")),
        (None, Ok(())) => Err(format!("{host}:{port}: the server sends no certificate")),
    }
}

/// Records the chain that a server sends, and the result of the real verifier.
#[derive(Debug)]
struct Recorder {
    inner: Verifier,
    seen: std::sync::Mutex<Option<PresentedChain>>,
}

impl std::fmt::Debug for PresentedChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PresentedChain({})", self.chain.len())
    }
}

impl rustls::client::danger::ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &rustls_pki_types::ServerName<'_>,
        ocsp_response: &[u8],
        now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        let outcome = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let chain = std::iter::once(end_entity).chain(intermediates).map(|der| der.clone().into_owned()).collect();
        let verdict = outcome.as_ref().map(|_| ()).map_err(Clone::clone);
        *sync::lock(&self.seen) = Some(PresentedChain { chain, verdict });
        outcome
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::TestServer;

    fn stream_to(server: &TestServer) -> TcpStream {
        TcpStream::connect(server.url.strip_prefix("http://").expect("an http URL")).expect("connect to the server")
    }

    #[test]
    fn requests_a_tunnel_that_begins_after_the_response_head() {
        let server = TestServer::new(&["HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nhello"]);
        let mut stream = tunnel(stream_to(&server), "::1", 443).expect("a tunnel");
        assert!(server.seen()[0].head.starts_with("connect [::1]:443 http/1.1\n"), "{:?}", server.seen());
        let mut rest = [0; 5];
        stream.read_exact(&mut rest).expect("read the rest");
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn quotes_the_refusal_of_a_proxy() {
        let server = TestServer::new(&["HTTP/1.1 403 Not for you\r\n\r\n"]);
        let error = tunnel(stream_to(&server), "h.test", 443).expect_err("must be refused").to_string();
        assert!(error.contains("403 Not for you"), "{error}");
    }
}
