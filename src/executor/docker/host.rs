//! The address of the container engine: from the configuration, from the environment variables of the docker command
//! line, or the default socket.

use std::env;
use std::path::{Path, PathBuf};

use crate::config::docker::DockerConfig;
use crate::http::Address;
use crate::http::tls::TlsFiles;

/// The default address.
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// The default ports of an engine, without and with TLS.
const PLAIN_PORT: u16 = 2375;
const TLS_PORT: u16 = 2376;

/// An address and its TLS settings, as the user wrote them.
#[derive(Default)]
struct HostSetting<'a> {
    host: &'a str,
    tls_verify: bool,
    /// The directory of the certificates.
    certificates: Option<&'a Path>,
}

/// The engine's address. Fails if the configured address is invalid.
pub fn address(docker: &DockerConfig) -> Result<Address, String> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    if !docker.host.is_empty() {
        let setting = HostSetting {
            host: &docker.host,
            tls_verify: docker.tls_verify,
            certificates: docker.tls_cert_path.as_deref(),
        };
        return parse(&setting).map_err(|why| format!("`host` below [runners.docker]: {why}"));
    }
    let Some(host) = variable("DOCKER_HOST") else {
        return parse(&HostSetting { host: DEFAULT_HOST, ..HostSetting::default() });
    };
    let certificates = variable("DOCKER_CERT_PATH").map(PathBuf::from);
    let setting = HostSetting {
        host: &host,
        tls_verify: variable("DOCKER_TLS_VERIFY").is_some(),
        certificates: certificates.as_deref(),
    };
    parse(&setting).map_err(|why| format!("DOCKER_HOST: {why}"))
}

/// Checks the address of an engine. The error says why the address is invalid and what to write; the caller adds where
/// the user wrote it.
pub fn check(host: &str) -> Result<(), String> {
    parse(&HostSetting { host, ..HostSetting::default() }).map(drop)
}

fn parse(setting: &HostSetting<'_>) -> Result<Address, String> {
    let HostSetting { host, tls_verify, certificates } = setting;
    let invalid = |why: &str| format!("`{host}` {why}; write unix:///path or tcp://host:port");
    let (scheme, rest) = host.split_once("://").ok_or_else(|| invalid("is not an address"))?;
    match scheme {
        "unix" if rest.starts_with('/') => Ok(Address::Unix(PathBuf::from(rest))),
        "tcp" | "http" | "https" => {
            let rest = rest.trim_end_matches('/');
            if rest.is_empty() || rest.contains('/') {
                return Err(invalid("is not an address"));
            }
            let has_tls = *tls_verify || scheme == "https";
            let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            let authority = match has_port {
                true => rest.to_owned(),
                false => format!("{rest}:{}", if has_tls { TLS_PORT } else { PLAIN_PORT }),
            };
            Ok(Address::Tcp(authority, has_tls.then(|| tls_files(*certificates))))
        }
        "ssh" | "npipe" | "fd" => Err(invalid("has a scheme that mayfly does not support")),
        _ => Err(invalid("is not an address")),
    }
}

/// The files in a certificate directory; the client certificate is optional.
fn tls_files(directory: Option<&Path>) -> TlsFiles {
    let file = |name: &str| directory.map(|directory| directory.join(name));
    let (cert_file, key_file) = (file("cert.pem"), file("key.pem"));
    let has_client_certificate = [&cert_file, &key_file].into_iter().flatten().any(|path| path.exists());
    TlsFiles {
        ca_file: file("ca.pem"),
        cert_file: cert_file.filter(|_| has_client_certificate),
        key_file: key_file.filter(|_| has_client_certificate),
        ..TlsFiles::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_addresses_as_docker_does() {
        let parsed = |host: &str, tls_verify| {
            address(&DockerConfig { host: host.to_owned(), tls_verify, ..DockerConfig::default() })
        };
        assert_eq!(parsed("unix:///run/x.sock", false), Ok(Address::Unix("/run/x.sock".into())));
        assert_eq!(parsed("tcp://10.0.0.1", false), Ok(Address::Tcp("10.0.0.1:2375".into(), None)));
        assert!(matches!(parsed("tcp://h:99", true), Ok(Address::Tcp(authority, Some(_))) if authority == "h:99"));
        assert!(matches!(parsed("https://h", false), Ok(Address::Tcp(authority, Some(_))) if authority == "h:2376"));
        for host in ["/var/run/docker.sock", "ssh://h", "unix://relative", "tcp://", "tcp://h/path"] {
            let why = parsed(host, false).expect_err("must be refused");
            assert!(why.contains("`host` below [runners.docker]") && why.contains("unix:///path"), "{why}");
            let why = check(host).expect_err("must be refused");
            assert!(why.starts_with(&format!("`{host}`")) && why.contains("unix:///path"), "{why}");
        }
    }
}
