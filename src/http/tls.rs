//! Trust: the certificates of the system and those of the operator, client certificates, and what a server presents.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::{Deserialize, Serialize};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, TlsProvider, parse_pem};

/// Certificate files of one runner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TlsFiles {
    /// Authorities to trust beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate.
    pub cert_file: Option<PathBuf>,
    /// The client's key.
    pub key_file: Option<PathBuf>,
    /// What was in them, where it is known.
    #[serde(default)]
    pub contents: Contents,
}

/// What certificate files hold; it is not shown.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Contents {
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Contents")
    }
}

impl TlsFiles {
    /// The same with what is in the files now, for a process that may not read them: that of a job's user.
    pub fn carried(&self) -> Self {
        let read = |path: &Option<PathBuf>| fs::read_to_string(path.as_deref()?).ok();
        let contents = Contents { ca: read(&self.ca_file), cert: read(&self.cert_file), key: read(&self.key_file) };
        Self { contents, ..self.clone() }
    }

    /// The authorities alone: a client's certificate is for one server.
    pub fn authorities(&self) -> Self {
        let contents = Contents { ca: self.contents.ca.clone(), ..Contents::default() };
        Self { ca_file: self.ca_file.clone(), contents, ..Self::default() }
    }

    /// Which state the files are in. Compared with itself and not with the clock: the times of files run behind it, and
    /// a file that is moved into place may be old.
    pub fn stamp(&self) -> Stamp {
        [&self.ca_file, &self.cert_file, &self.key_file].map(|path| {
            let metadata = fs::metadata(path.as_deref()?).ok()?;
            Some((metadata.modified().ok()?, metadata.ino(), metadata.len()))
        })
    }
}

/// When each of the files was written, which file it is, and its size.
pub type Stamp = [Option<(SystemTime, u64, u64)>; 3];

/// What `ureq` needs to know. Errors: a file is there and is not what it should be.
pub fn config(files: &TlsFiles) -> Result<TlsConfig, String> {
    let client = client_certificate(files)?;
    let config = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots(files)?))
        .client_cert(client);
    Ok(config.build())
}

/// The authorities of the system and of `ca_file`; a file that is missing adds none.
pub fn roots(files: &TlsFiles) -> Result<Vec<Certificate<'static>>, String> {
    let system = rustls_native_certs::load_native_certs();
    let mut roots: Vec<_> = system.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let carried = files.contents.ca.as_deref();
    if let Some(path) = files.ca_file.as_deref().filter(|path| carried.is_some() || path.exists()) {
        roots.extend(certificates(path, carried)?);
    }
    Ok(roots)
}

/// What a file holds: as it was carried here, or else as it is.
fn content(path: &Path, carried: Option<&str>) -> Result<Vec<u8>, String> {
    match carried {
        Some(text) => Ok(text.as_bytes().to_vec()),
        None => fs::read(path).map_err(|error| format!("{}: {error}", path.display())),
    }
}

fn certificates(path: &Path, carried: Option<&str>) -> Result<Vec<Certificate<'static>>, String> {
    let describe = |why: String| format!("{}: {why}", path.display());
    let pem = content(path, carried)?;
    let mut found = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| describe(error.to_string()))? {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        return Err(describe("no PEM certificate in it".to_owned()));
    }
    Ok(found)
}

fn client_certificate(files: &TlsFiles) -> Result<Option<ClientCert>, String> {
    let (Some(cert_file), Some(key_file)) = (&files.cert_file, &files.key_file) else { return Ok(None) };
    let chain = certificates(cert_file, files.contents.cert.as_deref())?;
    let pem = content(key_file, files.contents.key.as_deref())?;
    let key = PrivateKey::from_pem(&pem).map_err(|error| format!("{}: {error}", key_file.display()))?;
    check_pair(&chain, &pem).map_err(|error| format!("{} and {}: {error}", cert_file.display(), key_file.display()))?;
    Ok(Some(ClientCert::new_with_certs(&chain, key)))
}

/// Whether a certificate and a key belong together: `ureq` takes that for granted, and a pair that is being renewed may
/// be half old, half new.
fn check_pair(chain: &[Certificate<'static>], key: &[u8]) -> Result<(), String> {
    let chain = chain.iter().map(|certificate| CertificateDer::from(certificate.der().to_vec())).collect();
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| error.to_string())?;
    rustls::sign::CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
        .map(|_| ())
        .map_err(|error| format!("they do not belong together: {error}"))
}

/// One side of a TLS connection of our own. Errors: as [`config`], or a name that is none.
pub fn connection(files: &TlsFiles, host: &str) -> Result<Box<rustls::ClientConnection>, String> {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(root_store(files)?);
    let config = match (&files.cert_file, &files.key_file) {
        (Some(cert_file), Some(key_file)) => {
            let chain = certificates(cert_file, files.contents.cert.as_deref())?;
            let chain = chain.iter().map(|certificate| CertificateDer::from(certificate.der().to_vec())).collect();
            let pem = content(key_file, files.contents.key.as_deref())?;
            let key =
                PrivateKeyDer::from_pem_slice(&pem).map_err(|error| format!("{}: {error}", key_file.display()))?;
            config.with_client_auth_cert(chain, key).map_err(|error| format!("{}: {error}", cert_file.display()))?
        }
        _ => config.with_no_client_auth(),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
    let connection = rustls::ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())?;
    Ok(Box::new(connection))
}

/// Trust anchors for a handshake of our own.
pub fn root_store(files: &TlsFiles) -> Result<rustls::RootCertStore, String> {
    let mut store = rustls::RootCertStore::empty();
    let roots = roots(files)?;
    store.add_parsable_certificates(roots.iter().map(|root| CertificateDer::from(root.der().to_vec())));
    Ok(store)
}
