//! The server certificate.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The TLS configuration of a server with this certificate. Errors: the file that cannot be used, and the cause.
pub fn load(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, String> {
    let wrong = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let pem = std::fs::read(certificate).map_err(|error| wrong(certificate, &error))?;
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|error| wrong(certificate, &error))?;
    if chain.is_empty() {
        return Err(wrong(certificate, &"the file has no PEM certificate"));
    }
    let pem = std::fs::read(key).map_err(|error| wrong(key, &error))?;
    let key_der = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| wrong(key, &format!("no usable private key in the file: {error}")))?;
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key_der).map_err(|error| {
        format!("{} and {}: certificate and key do not belong together: {error}", certificate.display(), key.display())
    })?;
    // Agents rarely reconnect, so a session cache would only use memory.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
