//! Decides which server certificates are accepted: those issued by a trusted authority, and a certificate that is
//! itself a trust anchor.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::chain;

/// Verifies servers against trust anchors.
///
/// `openssl req -x509` creates one certificate with `CA:TRUE` that is both authority and server certificate. RFC 5280
/// has no path from such a certificate to itself, so `webpki` rejects it (`CaUsedAsEndEntity`), while OpenSSL, Git and
/// Go accept it. Therefore a server certificate that is identical to a trust anchor is accepted here, after its name,
/// dates and purpose are checked; the handshake proves that the server has its key.
#[derive(Debug)]
pub struct Verifier {
    authorities: Arc<WebPkiServerVerifier>,
    anchors: Vec<CertificateDer<'static>>,
}

impl Verifier {
    /// Fails if there are no trust anchors.
    pub fn new(anchors: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(anchors.iter().cloned());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build();
        let authorities = authorities.map_err(|error| {
            format!(
                "no trusted certificate authority ({error}); install the package ca-certificates or set `tls-ca-file`"
            )
        })?;
        Ok(Self { authorities, anchors })
    }

    fn verify_anchor(certificate: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        let read = chain::read(certificate).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        read.check_dates(now).and_then(|()| read.check_purpose()).map_err(Error::InvalidCertificate)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.anchors.iter().any(|anchor| anchor.as_ref() == end_entity.as_ref()) {
            return Self::verify_anchor(end_entity, server_name, now).map(|()| ServerCertVerified::assertion());
        }
        self.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};

    /// A self-signed certificate with `CA:TRUE`, for `h.test`.
    fn self_signed(change: impl Fn(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["h.test".to_owned()]).expect("the names must be valid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").der().clone()
    }

    fn verify(anchor: &CertificateDer<'static>, presented: &CertificateDer<'_>, name: &str) -> Result<(), Error> {
        let verifier = Verifier::new(vec![anchor.clone()]).expect("a verifier");
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        verifier.verify_server_cert(presented, &[], &name, &[], UnixTime::now()).map(|_| ())
    }

    #[test]
    fn accepts_a_certificate_that_is_a_trust_anchor() {
        let own = self_signed(|_| {});
        assert_eq!(verify(&own, &own, "h.test"), Ok(()));
    }

    #[test]
    fn checks_name_dates_and_purpose_of_a_trust_anchor() {
        use CertificateError::{Expired, InvalidPurpose, NotValidForNameContext, NotValidYet};
        let problem = |certificate: &CertificateDer<'static>, name| match verify(certificate, certificate, name) {
            Err(Error::InvalidCertificate(problem)) => problem,
            other => panic!("{other:?}"),
        };
        assert!(matches!(problem(&self_signed(|_| {}), "other.test"), NotValidForNameContext { .. }));
        let expired = self_signed(|params| params.not_after = date_time_ymd(2021, 2, 3));
        assert_eq!(problem(&expired, "h.test"), Expired);
        let future = self_signed(|params| params.not_before = date_time_ymd(2990, 2, 3));
        assert_eq!(problem(&future, "h.test"), NotValidYet);
        let client = self_signed(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
        assert_eq!(problem(&client, "h.test"), InvalidPurpose);
    }

    #[test]
    fn refuses_another_certificate_with_the_same_name() {
        let (trusted, presented) = (self_signed(|_| {}), self_signed(|_| {}));
        assert!(verify(&trusted, &presented, "h.test").is_err());
    }
}
