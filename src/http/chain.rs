//! Parses the parts of certificates that messages show: subject, issuer, names, dates, and the URL of the issuer's
//! certificate.

use std::net::Ipv6Addr;

use rustls::CertificateError;
use rustls_pki_types::UnixTime;

/// The readable part of a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    issuer: Vec<u8>,
    subject: Vec<u8>,
    /// The issuer's common name, for messages.
    issuer_name: String,
    subject_name: String,
    not_before: String,
    not_after: String,
    names: Vec<String>,
    /// The URL of the issuer's certificate (Authority Information Access).
    issuer_url: Option<String>,
    purpose: Purpose,
    holder: Holder,
}

/// What the extended key usage of a certificate permits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Purpose {
    /// Server authentication. A certificate without an extended key usage permits it too.
    #[default]
    Servers,
    /// Only other purposes.
    OthersOnly,
}

/// Who a certificate is for, according to its basic constraints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Holder {
    #[default]
    EndEntity,
    /// `CA:TRUE`.
    Authority,
}

impl Certificate {
    /// Fails if the certificate has expired or is not valid yet at `now`.
    pub fn check_dates(&self, now: UnixTime) -> Result<(), CertificateError> {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let now = date_of(jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX));
        if [&self.not_before, &self.not_after].iter().any(|date| date.contains('?')) {
            return Err(CertificateError::BadEncoding);
        }
        match (self.not_before > now, self.not_after < now) {
            (true, _) => Err(CertificateError::NotValidYet),
            (_, true) => Err(CertificateError::Expired),
            _ => Ok(()),
        }
    }

    /// The host names and addresses for which the certificate is valid.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The end of the validity, for messages.
    pub fn not_after(&self) -> &str {
        &self.not_after
    }

    /// Fails if the extended key usage excludes server authentication.
    pub fn check_purpose(&self) -> Result<(), CertificateError> {
        match self.purpose {
            Purpose::Servers => Ok(()),
            Purpose::OthersOnly => Err(CertificateError::InvalidPurpose),
        }
    }
}

/// The chain up to its root: appends the authority that issued the last certificate, unless that certificate is
/// self-signed. `None` if the authority is not in `roots`.
pub fn with_root(mut chain: Vec<Vec<u8>>, roots: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let last = read(chain.last()?)?;
    if last.issuer != last.subject {
        let root = roots.iter().find(|der| read(der).is_some_and(|root| root.subject == last.issuer))?;
        chain.push(root.clone());
    }
    Some(chain)
}

/// A certificate as PEM (RFC 7468).
pub fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

/// Explains in one line why a chain was rejected, and what to do.
pub fn explain(host: &str, chain: &[Certificate], error: &rustls::Error) -> String {
    use rustls::CertificateError::{
        Expired, ExpiredContext, InvalidPurpose, InvalidPurposeContext, NotValidForName, NotValidForNameContext,
        NotValidYet, NotValidYetContext, Other, UnknownIssuer,
    };
    let rustls::Error::InvalidCertificate(problem) = error else {
        return format!("{host}: the TLS handshake fails: {error}");
    };
    let leaf = chain.first().cloned().unwrap_or_default();
    let now = date_of(jiff::Timestamp::now());
    match problem {
        Expired | ExpiredContext { .. } => {
            let (whose, certificate) = at_fault(host, chain, |certificate| certificate.not_after < now);
            format!(
                "{whose} expired at {}; renew it on the server, or correct the clock of this machine",
                certificate.not_after
            )
        }
        NotValidYet | NotValidYetContext { .. } => {
            let (whose, certificate) = at_fault(host, chain, |certificate| certificate.not_before > now);
            let from = certificate.not_before;
            format!("{whose} is not valid before {from}; correct the clock of this machine")
        }
        NotValidForName | NotValidForNameContext { .. } if leaf.names.is_empty() => format!(
            "the certificate of {host} has no subject alternative name, and its common name `{}` does not count; issue \
             one with the name of the server (openssl req -addext subjectAltName=DNS:{host})",
            leaf.subject_name
        ),
        NotValidForName | NotValidForNameContext { .. } => format!(
            "the certificate is not for {host} but for {}; use one of these names in `url`",
            leaf.names.join(", ")
        ),
        UnknownIssuer => unknown_issuer(host, chain),
        // `webpki` does not search for the issuer of an authority that is used as a server certificate.
        Other(_) if leaf.holder == Holder::Authority => unknown_issuer(host, chain),
        InvalidPurpose | InvalidPurposeContext { .. } => format!(
            "the certificate of {host} is not for servers (its extended key usage lacks serverAuth); replace it on the \
             server"
        ),
        other => format!("the certificate of {host} is rejected: {other:?}"),
    }
}

/// The faulty certificate of a chain, which need not be the server's own, and a name for it.
fn at_fault(host: &str, chain: &[Certificate], is_wrong: impl Fn(&Certificate) -> bool) -> (String, Certificate) {
    match chain.iter().position(is_wrong) {
        Some(at) if at > 0 => {
            (format!("the certificate of `{}`, which {host} also sends,", chain[at].subject_name), chain[at].clone())
        }
        _ => (format!("the certificate of {host}"), chain.first().cloned().unwrap_or_default()),
    }
}

/// Explains that this machine does not trust the issuer of a chain. The chain may end with its root certificate or with
/// a certificate below the root.
fn unknown_issuer(host: &str, chain: &[Certificate]) -> String {
    let Some(last) = chain.last() else { return format!("{host} sends no certificate") };
    let location = last.issuer_url.as_ref().map(|url| format!(" (at {url})")).unwrap_or_default();
    if last.issuer == last.subject {
        return format!(
            "this machine does not trust the root certificate `{}`, with which the chain of {host} ends; add that \
             certificate to the file of `tls-ca-file`",
            last.subject_name
        );
    }
    if last.holder == Holder::Authority {
        return format!(
            "this machine does not trust the authority `{}`, which issued `{}`, the last certificate of the chain of \
             {host}; add the certificate of `{}`{location} to the file of `tls-ca-file` (or to the chain on the server, if \
             it is an intermediate certificate)",
            last.issuer_name, last.subject_name, last.issuer_name
        );
    }
    format!(
        "the chain of {host} is incomplete, or its authority is not trusted: the certificate of `{}`, which issued `{}`, \
         is missing{location}; add it to the chain on the server, or to the file of `tls-ca-file`",
        last.issuer_name, last.subject_name
    )
}

/// Parses a certificate; `None` if it is incomplete or malformed.
pub fn read(der: &[u8]) -> Option<Certificate> {
    let (_, certificate, _) = element(der)?;
    let (_, mut rest, _) = element(certificate)?;
    let mut fields = Vec::new();
    while let Some((tag, content, after)) = element(rest) {
        fields.push((tag, content));
        rest = after;
    }
    // An explicit version precedes the other fields if it is not 1.
    let skip = usize::from(fields.first()?.0 == 0xa0);
    let issuer = fields.get(skip + 2)?.1;
    let validity = fields.get(skip + 3)?.1;
    let subject = fields.get(skip + 4)?.1;
    let (before_tag, before, after) = element(validity)?;
    let (after_tag, after, _) = element(after)?;
    let extensions = fields.iter().find(|(tag, _)| *tag == 0xa3).map(|(_, content)| *content);
    let mut found = Certificate {
        issuer: issuer.to_vec(),
        subject: subject.to_vec(),
        issuer_name: name(issuer),
        subject_name: name(subject),
        not_before: date(before_tag, before),
        not_after: date(after_tag, after),
        ..Certificate::default()
    };
    if let Some((_, list, _)) = extensions.and_then(element) {
        read_extensions(list, &mut found);
    }
    Some(found)
}

fn read_extensions(mut list: &[u8], found: &mut Certificate) {
    const ALTERNATIVE_NAMES: [u8; 3] = [0x55, 0x1d, 0x11];
    const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 0x13];
    const EXTENDED_KEY_USAGE: [u8; 3] = [0x55, 0x1d, 0x25];
    const INFORMATION_ACCESS: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 1, 1];
    while let Some((_, extension, after)) = element(list) {
        list = after;
        let Some((_, oid, mut rest)) = element(extension) else { continue };
        let mut value = None;
        while let Some((tag, content, after)) = element(rest) {
            value = (tag == 4).then_some(content).or(value);
            rest = after;
        }
        let Some((_, inner, _)) = value.and_then(element) else { continue };
        if oid == ALTERNATIVE_NAMES {
            found.names = alternative_names(inner);
        } else if oid == INFORMATION_ACCESS {
            found.issuer_url = issuer_url(inner);
        } else if oid == BASIC_CONSTRAINTS {
            let is_authority = element(inner).is_some_and(|(tag, content, _)| tag == 1 && content == [0xff]);
            found.holder = if is_authority { Holder::Authority } else { Holder::EndEntity };
        } else if oid == EXTENDED_KEY_USAGE {
            found.purpose = if allows_servers(inner) { Purpose::Servers } else { Purpose::OthersOnly };
        }
    }
}

fn allows_servers(mut list: &[u8]) -> bool {
    const SERVER: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 3, 1];
    const ANY: [u8; 4] = [0x55, 0x1d, 0x25, 0];
    while let Some((_, oid, after)) = element(list) {
        list = after;
        if oid == SERVER || oid == ANY {
            return true;
        }
    }
    false
}

fn alternative_names(mut list: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while let Some((tag, content, after)) = element(list) {
        list = after;
        match (tag, content) {
            (0x82, name) => names.push(String::from_utf8_lossy(name).into_owned()),
            (0x87, [a, b, c, d]) => names.push(format!("{a}.{b}.{c}.{d}")),
            (0x87, address) => {
                names.extend(<[u8; 16]>::try_from(address).map(|address| Ipv6Addr::from(address).to_string()));
            }
            _ => {}
        }
    }
    names
}

fn issuer_url(mut list: &[u8]) -> Option<String> {
    const ISSUERS: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 0x30, 2];
    while let Some((_, access, after)) = element(list) {
        list = after;
        let (_, oid, location) = element(access)?;
        if let Some((0x86, url, _)) = element(location).filter(|_| oid == ISSUERS) {
            return Some(String::from_utf8_lossy(url).into_owned());
        }
    }
    None
}

/// The common name of a distinguished name, or its last part.
fn name(mut sequence: &[u8]) -> String {
    let mut best = String::new();
    while let Some((_, set, after)) = element(sequence) {
        sequence = after;
        let Some((_, pair, _)) = element(set) else { continue };
        let Some((_, oid, rest)) = element(pair) else { continue };
        let Some((_, text, _)) = element(rest) else { continue };
        best = String::from_utf8_lossy(text).into_owned();
        if oid == [0x55, 4, 3] {
            break;
        }
    }
    best
}

/// Formats a UTCTime or GeneralizedTime as `2030-01-02 03:04:05 UTC`.
fn date(tag: u8, text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let full = match tag {
        0x17 if text.get(..2).is_some_and(|year| year < "50") => format!("20{text}"),
        0x17 => format!("19{text}"),
        _ => text.into_owned(),
    };
    let part = |from: usize, to: usize| full.get(from..to).unwrap_or("??").to_owned();
    format!("{}-{}-{} {}:{}:{} UTC", part(0, 4), part(4, 6), part(6, 8), part(8, 10), part(10, 12), part(12, 14))
}

/// Formats a time as [`date`] does, so that the two can be compared as text.
fn date_of(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Tag, content and remaining bytes of the first DER element.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, after) = rest.split_at_checked(length)?;
    Some((*tag, content, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    #[test]
    fn parses_names_and_dates() {
        let mut params = CertificateParams::new(vec!["gitlab.test".to_owned(), "127.0.0.1".to_owned()])
            .expect("the names must be valid");
        params.distinguished_name.push(DnType::CommonName, "the leaf");
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
        let read = read(certificate.der()).expect("read the certificate");
        assert_eq!((read.subject_name.as_str(), read.issuer_name.as_str()), ("the leaf", "the leaf"));
        assert_eq!(read.names, ["gitlab.test", "127.0.0.1"]);
        assert_eq!(read.not_after, "2031-02-03 00:00:00 UTC");
    }

    #[test]
    fn names_an_expired_certificate_that_is_not_the_servers() {
        let expired = |name: &str, not_after: &str| Certificate {
            subject_name: name.to_owned(),
            not_after: not_after.to_owned(),
            ..Certificate::default()
        };
        let (good, bad) = (expired("leaf", "2999-01-01 00:00:00 UTC"), expired("middle", "2021-02-03 00:00:00 UTC"));
        let error = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let text = explain("h.test", &[good.clone(), bad.clone()], &error);
        assert!(text.contains("`middle`") && text.contains("expired at 2021-02-03"), "{text}");
        let text = explain("h.test", &[bad, good], &error);
        assert!(text.starts_with("the certificate of h.test expired at 2021-02-03"), "{text}");
    }

    #[test]
    fn refuses_invalid_certificates() {
        for der in [&b""[..], b"\x30\x84\xff\xff\xff\xff", b"\x30\x03\x30\x01\x00", &[0x30; 64]] {
            assert!(read(der).is_none());
        }
    }
}
