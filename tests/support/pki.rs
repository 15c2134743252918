//! Certificates of a small authority: root, intermediate, and server certificates, both valid and invalid.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// The name of the intermediate authority.
pub const INTERMEDIATE: &str = "mayfly test intermediate";

pub struct Pki {
    /// The root's certificate as PEM.
    pub root: String,
    /// The intermediate's certificate as PEM.
    pub intermediate: String,
    root_der: CertificateDer<'static>,
    intermediate_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
pub struct Identity {
    /// Certificate and intermediate as PEM.
    pub chain: String,
    /// The key as PEM.
    pub key: String,
    leaf_der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

/// The certificates that a server sends besides its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    Complete,
    WithoutIntermediate,
}

impl Pki {
    pub fn new() -> Self {
        let root_key = KeyPair::generate().expect("a key");
        let root = authority("mayfly test root");
        let root_certificate = root.self_signed(&root_key).expect("a certificate");
        let root_issuer = Issuer::new(root, root_key);
        let key = KeyPair::generate().expect("a key");
        let intermediate = authority(INTERMEDIATE);
        let certificate = intermediate.signed_by(&key, &root_issuer).expect("a certificate");
        Self {
            root: root_certificate.pem(),
            intermediate: certificate.pem(),
            root_der: root_certificate.der().clone(),
            intermediate_der: certificate.der().clone(),
            issuer: Issuer::new(intermediate, key),
        }
    }

    /// A certificate for loopback.
    pub fn server(&self) -> Identity {
        self.identity(&["localhost", "127.0.0.1"], |_| {})
    }

    /// A certificate for a host.
    pub fn server_of(&self, name: &str) -> Identity {
        self.identity(&[name], |_| {})
    }

    /// A certificate for another host.
    pub fn wrong_name(&self) -> Identity {
        self.identity(&["other.test"], |_| {})
    }

    /// An expired certificate.
    pub fn expired(&self) -> Identity {
        self.identity(&["localhost", "127.0.0.1"], |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 2, 3);
        })
    }

    /// A server with a certificate that is both authority and server certificate (`CA:TRUE`), as `openssl req -x509`
    /// creates; and that certificate.
    pub fn self_signed() -> (String, Arc<ServerConfig>) {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name).display().to_string();
        let made = std::process::Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
            .args(["-keyout", &at("key.pem"), "-out", &at("cert.pem")])
            .output()
            .expect("run openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let read = |name: &str| std::fs::read_to_string(at(name)).expect("a file");
        let certificate = CertificateDer::from_pem_slice(read("cert.pem").as_bytes()).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(read("key.pem").as_bytes()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the protocol versions must be supported")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key);
        (read("cert.pem"), Arc::new(config.expect("a key that fits")))
    }

    fn identity(&self, names: &[&str], change: impl Fn(&mut CertificateParams)) -> Identity {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("the names must be valid");
        params.distinguished_name.push(DnType::CommonName, "mayfly test leaf");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate: Certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity {
            chain: certificate.pem() + &self.intermediate,
            key: key.serialize_pem(),
            leaf_der: certificate.der().clone(),
            key_der: key.serialize_der(),
        }
    }

    /// A server that presents `identity`.
    pub fn serve(&self, identity: &Identity, chain: Chain) -> Arc<ServerConfig> {
        self.config(identity, chain, None)
    }

    /// A server that requires a client certificate of this authority.
    pub fn serve_known(&self, identity: &Identity) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root_der.clone()).expect("a root");
        self.config(identity, Chain::Complete, Some(roots))
    }

    fn config(&self, identity: &Identity, chain: Chain, clients: Option<RootCertStore>) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the protocol versions must be supported");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let mut presented = vec![identity.leaf_der.clone()];
        if chain == Chain::Complete {
            presented.push(self.intermediate_der.clone());
        }
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key_der.clone()));
        Arc::new(builder.with_single_cert(presented, key).expect("a key that fits"))
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
