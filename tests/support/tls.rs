//! Certificates of a small authority of the tests' own, good and broken, and a GitLab behind them.

use std::io::BufReader;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::gitlab::{GitLab, read_request, write_answer};

/// A root, an intermediate, and what is needed to issue more.
pub struct Pki {
    pub root: Certificate,
    pub intermediate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// What a server presents.
pub struct Presented {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("params");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Pki {
    pub fn new() -> Self {
        let (root_params, root_key) = (authority("Test Root"), KeyPair::generate().expect("a key"));
        let root = root_params.self_signed(&root_key).expect("a root");
        let root_issuer = Issuer::new(root_params, root_key);
        let (params, key) = (authority("Test Intermediate"), KeyPair::generate().expect("a key"));
        let intermediate = params.signed_by(&key, &root_issuer).expect("an intermediate");
        Self { root, intermediate, issuer: Issuer::new(params, key) }
    }

    /// A server's certificate for these names, with or without the intermediate, valid until this year.
    pub fn leaf(&self, name: &str, complete: bool, until: i32) -> Presented {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("params");
        params.distinguished_name.push(DnType::CommonName, format!("{name} leaf"));
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("a leaf");
        let mut chain = vec![leaf.der().clone()];
        chain.extend(complete.then(|| self.intermediate.der().clone()));
        Presented { chain, key }
    }
}

/// The address of `gitlab` behind TLS, on host `localhost`.
pub fn serve(gitlab: &GitLab, presented: Presented) -> String {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(presented.key.serialize_der()).expect("a key");
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(presented.chain, key)
        .expect("a certificate");
    let (config, gitlab) = (Arc::new(config), gitlab.clone());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://localhost:{}", listener.local_addr().expect("an address").port());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (config, gitlab) = (Arc::clone(&config), gitlab.clone());
            thread::spawn(move || {
                let connection = rustls::ServerConnection::new(config).expect("a connection");
                let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
                while let Some(request) = read_request(&mut stream) {
                    let Some(answer) = gitlab.respond(&request) else { return };
                    if write_answer(stream.get_mut(), &answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}
