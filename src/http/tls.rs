//! TLS trust: the system's certificate authorities, the configured ones, and client certificates.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::{Deserialize, Serialize};

use super::verifier::Verifier;

/// Certificate files of one runner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TlsFiles {
    /// Certificate authorities to trust in addition to those of the system.
    pub ca_file: Option<PathBuf>,
    /// The client certificate.
    pub cert_file: Option<PathBuf>,
    /// The key of the client certificate.
    pub key_file: Option<PathBuf>,
    /// The contents of these files, for a process that cannot read the files.
    #[serde(default)]
    pub contents: CertificateContents,
}

/// The contents of certificate files. `Debug` does not show them.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CertificateContents {
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl fmt::Debug for CertificateContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateContents")
    }
}

impl TlsFiles {
    /// The same files with their contents, for a process that runs as the job's user and may not read the files.
    pub fn with_contents(&self) -> Self {
        let read = |path: &Option<PathBuf>| fs::read_to_string(path.as_deref()?).ok();
        let contents =
            CertificateContents { ca: read(&self.ca_file), cert: read(&self.cert_file), key: read(&self.key_file) };
        Self { contents, ..self.clone() }
    }

    /// The certificate authorities without the client certificate, which is for GitLab only.
    pub fn authorities(&self) -> Self {
        let contents = CertificateContents { ca: self.contents.ca.clone(), ..CertificateContents::default() };
        Self { ca_file: self.ca_file.clone(), contents, ..Self::default() }
    }

    /// Trusts these additional certificate authorities (PEM), without a file.
    pub fn from_authorities(pem: String) -> Self {
        let contents = CertificateContents { ca: Some(pem), ..CertificateContents::default() };
        Self { ca_file: Some(PathBuf::from("the manager's authorities")), contents, ..Self::default() }
    }

    /// The state of the files, to detect changes. Compare it only with another stamp, never with the clock: a file that
    /// is moved into place may be old.
    pub fn stamp(&self) -> Stamp {
        [&self.ca_file, &self.cert_file, &self.key_file].map(|path| {
            let metadata = fs::metadata(path.as_deref()?).ok()?;
            Some((metadata.modified().ok()?, metadata.ino(), metadata.len()))
        })
    }
}

/// Modification time, inode and size of each file.
pub type Stamp = [Option<(SystemTime, u64, u64)>; 3];

/// The TLS configuration of a client. Fails if a certificate or key file is unusable.
pub fn config(files: &TlsFiles) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(anchors(files)?)?));
    let (Some(cert_file), Some(key_file)) = (&files.cert_file, &files.key_file) else {
        return Ok(Arc::new(builder.with_no_client_auth()));
    };
    let chain = certificates(cert_file, files.contents.cert.as_deref())?;
    let pem = content(key_file, files.contents.key.as_deref())?;
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| format!("{}: no usable private key in the file: {error}", key_file.display()))?;
    // Without this check, a certificate whose key was not renewed would fail only on the server.
    CertifiedKey::from_der(chain.clone(), key.clone_key(), &rustls::crypto::ring::default_provider()).map_err(
        |error| {
            let (cert, key) = (cert_file.display(), key_file.display());
            format!("{cert} and {key}: certificate and key do not belong together: {error}")
        },
    )?;
    let config = builder.with_client_auth_cert(chain, key);
    config.map(Arc::new).map_err(|error| format!("{}: {error}", cert_file.display()))
}

/// The client side of a TLS connection to `host`. Fails as [`config`] does, or if `host` is not a valid name.
pub fn connection(config: Arc<ClientConfig>, host: &str) -> Result<ClientConnection, String> {
    let host = host.trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
    ClientConnection::new(config, name).map_err(|error| error.to_string())
}

/// The certificate authorities of the system and of `ca_file`. A missing `ca_file` adds none.
pub fn anchors(files: &TlsFiles) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut anchors = rustls_native_certs::load_native_certs().certs;
    let carried = files.contents.ca.as_deref();
    if let Some(path) = files.ca_file.as_deref().filter(|path| carried.is_some() || path.exists()) {
        anchors.extend(certificates(path, carried)?);
    }
    Ok(anchors)
}

/// The content of a file, or its `carried` content from another process.
fn content(path: &Path, carried: Option<&str>) -> Result<Vec<u8>, String> {
    match carried {
        Some(text) => Ok(text.as_bytes().to_vec()),
        None => fs::read(path).map_err(|error| format!("{}: {error}", path.display())),
    }
}

fn certificates(path: &Path, carried: Option<&str>) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = content(path, carried)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{}: {error}", path.display()))?;
    if found.is_empty() {
        return Err(format!("{}: the file contains no PEM certificate", path.display()));
    }
    Ok(found)
}
