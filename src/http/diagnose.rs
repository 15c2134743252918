//! What a server presents, and what is wrong with it, for people who set a machine up.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::chain;
use super::tls::{TlsFiles, root_store};

/// Shakes hands with a server and says what is wrong with its certificates. Errors: what to do, in one line.
pub fn diagnose(url: &str, files: &TlsFiles) -> Result<String, String> {
    let origin = super::origin(url);
    let authority = origin.strip_prefix("https://").unwrap_or(&origin).to_owned();
    let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())) {
        Some((host, port)) => (host.to_owned(), port.parse().unwrap_or(443)),
        None => (authority, 443_u16),
    };
    let host = host.trim_matches(['[', ']']).to_owned();
    let presented = handshake(&host, port, files)?;
    let chain: Vec<chain::Certificate> = presented.chain.iter().filter_map(|der| chain::read(der)).collect();
    match presented.verdict {
        Ok(()) => Ok(format!("TLS chain of {host} is complete ({} certificate(s) presented)", chain.len())),
        Err(error) => Err(chain::explain(&host, &chain, &error)),
    }
}

struct Presented {
    chain: Vec<CertificateDer<'static>>,
    verdict: Result<(), rustls::Error>,
}

/// A handshake that goes on whatever the verdict, so that the whole chain is seen.
fn handshake(host: &str, port: u16, files: &TlsFiles) -> Result<Presented, String> {
    use std::io::Write;
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
    let unreachable = |error: std::io::Error| format!("{host}:{port} cannot be reached: {error}");
    let timeout = std::time::Duration::from_secs(10);
    let addresses = std::net::ToSocketAddrs::to_socket_addrs(&(host, port)).map_err(unreachable)?;
    let mut outcome = Err(std::io::Error::other("it has no address"));
    for address in addresses {
        outcome = std::net::TcpStream::connect_timeout(&address, timeout);
        if outcome.is_ok() {
            break;
        }
    }
    let mut socket = outcome.map_err(unreachable)?;
    let _ = socket.set_read_timeout(Some(timeout));
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
