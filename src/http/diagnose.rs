//! What a server presents, and what is wrong with it, for people who set a machine up.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use super::chain;
use super::proxy::{self, Proxy};
use super::tls::{TlsFiles, root_store, roots};

/// How long a server may be silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that the head of a proxy's answer has at most.
const HEAD_MAX: usize = 16 * 1024;

/// Shakes hands with a server and says what is wrong with its certificates. Errors: what to do, in one line.
pub fn diagnose(url: &str, files: &TlsFiles) -> Result<String, String> {
    let (host, presented) = look(url, files)?;
    let Some(presented) = presented else {
        return Ok(format!("the TLS chain of {host} is not looked at through this proxy; calls still verify it"));
    };
    let chain: Vec<chain::Certificate> = presented.chain.iter().filter_map(|der| chain::read(der)).collect();
    match presented.verdict {
        Ok(()) => Ok(format!("TLS chain of {host} is complete ({} certificate(s) presented)", chain.len())),
        Err(error) => Err(chain::explain(&host, &chain, &error)),
    }
}

/// The chain with which a server proves itself, up to the authority that this machine trusts, as PEM; `None` when there
/// is no TLS, or a proxy hides it. Errors: the server cannot be reached or is not trusted.
pub fn trusted_chain(url: &str, files: &TlsFiles) -> Result<Option<String>, String> {
    if !url.starts_with("https://") {
        return Ok(None);
    }
    let (_, Some(presented)) = look(url, files)? else { return Ok(None) };
    presented.verdict.map_err(|error| error.to_string())?;
    let mut chain: Vec<Vec<u8>> = presented.chain.iter().map(|der| der.to_vec()).collect();
    let roots: Vec<Vec<u8>> = roots(files)?.iter().map(|root| root.der().to_vec()).collect();
    Ok(chain::complete(&mut chain, &roots).then(|| chain.iter().map(|der| chain::pem(der)).collect()))
}

/// The host of a URL, and what it presents unless a proxy stands in between.
fn look(url: &str, files: &TlsFiles) -> Result<(String, Option<Presented>), String> {
    let origin = super::origin(url);
    let authority = origin.strip_prefix("https://").unwrap_or(&origin).to_owned();
    let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())) {
        Some((host, port)) => (host.to_owned(), port.parse().unwrap_or(443)),
        None => (authority, 443_u16),
    };
    let host = host.trim_matches(['[', ']']).to_owned();
    let uri = super::url::parse(url).map_err(|error| error.to_string())?;
    let proxy = proxy::of_environment(&uri)?;
    let presented = match Way::of(proxy.as_ref()) {
        Some(way) => Some(handshake(&host, port, &way, files)?),
        None => None,
    };
    Ok((host, presented))
}

/// How a server is reached.
enum Way {
    Direct,
    Tunnel { host: String, port: u16 },
}

impl Way {
    /// `None` for a proxy that wants a name and password, or TLS: `check` is not the place to speak to those.
    fn of(proxy: Option<&Proxy>) -> Option<Self> {
        let Some(proxy) = proxy else { return Some(Self::Direct) };
        let agent = proxy.for_agent();
        let plain = !proxy.is_tls() && agent.username().is_none() && agent.password().is_none();
        plain.then(|| Self::Tunnel { host: agent.host().to_owned(), port: agent.port() })
    }

    /// A connection to a server's port. Errors: why there is none.
    fn open(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        match self {
            Self::Direct => connect(host, port),
            Self::Tunnel { host: through, port: at } => tunnel(connect(through, *at)?, host, port)
                .map_err(|error| format!("the proxy {through}:{at} does not lead to {host}:{port}: {error}")),
        }
    }
}

fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let unreachable = |error: io::Error| format!("{host}:{port} cannot be reached: {error}");
    let mut outcome = Err(io::Error::other("it has no address"));
    for address in (host, port).to_socket_addrs().map_err(unreachable)? {
        outcome = TcpStream::connect_timeout(&address, PATIENCE);
        if outcome.is_ok() {
            break;
        }
    }
    let stream = outcome.map_err(unreachable)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(unreachable)?;
    Ok(stream)
}

fn tunnel(mut stream: TcpStream, host: &str, port: u16) -> io::Result<TcpStream> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    write!(stream, "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n")?;
    let mut head = Vec::new();
    // Byte by byte: what follows the head belongs to the handshake.
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_MAX {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let status = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
    match status.split(' ').nth(1) {
        Some(code) if code.starts_with('2') => Ok(stream),
        _ => Err(io::Error::other(format!("it answers `{status}`"))),
    }
}

struct Presented {
    chain: Vec<CertificateDer<'static>>,
    verdict: Result<(), rustls::Error>,
}

/// A handshake that goes on whatever the verdict, so that the whole chain is seen.
fn handshake(host: &str, port: u16, way: &Way, files: &TlsFiles) -> Result<Presented, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(root_store(files)?), provider.clone())
            .build()
            .map_err(|error| {
                format!("no authority can be trusted: {error}; install ca-certificates or set `tls-ca-file`")
            })?;
    let witness = Arc::new(Witness { inner: verifier, seen: std::sync::Mutex::new(None) });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&witness) as Arc<dyn rustls::client::danger::ServerCertVerifier>)
        .with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())?;
    let mut socket = way.open(host, port)?;
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    let shaken = stream.flush();
    let seen = witness.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    match (seen, shaken) {
        (Some(presented), _) => Ok(presented),
        (None, Err(error)) => Err(format!("{host}:{port} does not speak TLS as it should: {error}")),
        (None, Ok(())) => Err(format!("{host}:{port} presented no certificate")),
    }
}

/// Keeps what a server presents and what the real verifier says of it.
#[derive(Debug)]
struct Witness {
    inner: Arc<rustls::client::WebPkiServerVerifier>,
    seen: std::sync::Mutex<Option<Presented>>,
}

impl std::fmt::Debug for Presented {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Presented({})", self.chain.len())
    }
}

impl rustls::client::danger::ServerCertVerifier for Witness {
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
        *self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Presented { chain, verdict });
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
    use crate::http::testing::Server;

    fn stream_to(server: &Server) -> TcpStream {
        TcpStream::connect(server.url.strip_prefix("http://").expect("plain http")).expect("connected")
    }

    #[test]
    fn a_tunnel_is_asked_for_and_begins_behind_the_head() {
        let server = Server::new(&["HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nhello"]);
        let mut stream = tunnel(stream_to(&server), "::1", 443).expect("a tunnel");
        assert!(server.seen()[0].head.starts_with("connect [::1]:443 http/1.1\n"), "{:?}", server.seen());
        let mut rest = [0; 5];
        stream.read_exact(&mut rest).expect("what follows");
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn a_proxy_that_refuses_is_quoted() {
        let server = Server::new(&["HTTP/1.1 403 Not for you\r\n\r\n"]);
        let error = tunnel(stream_to(&server), "h.test", 443).expect_err("refused").to_string();
        assert!(error.contains("403 Not for you"), "{error}");
    }
}
