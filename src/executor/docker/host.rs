//! The address of the container engine: from the configuration, from the environment variables of the docker command
//! line, or the default socket.

use std::env;
use std::path::{Path, PathBuf};

use crate::config::docker::DockerConfig;
use crate::http::Address;
use crate::http::tls::TlsFiles;

/// The default address.
const USUAL: &str = "unix:///var/run/docker.sock";

/// The engine's address. Fails if the configured address is invalid.
pub fn address(docker: &DockerConfig) -> Result<Address, String> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    if !docker.host.is_empty() {
        return parse(
            &docker.host,
            docker.tls_verify,
            docker.tls_cert_path.as_deref(),
            "`host` below [runners.docker]",
        );
    }
    match variable("DOCKER_HOST") {
        Some(host) => {
            let certificates = variable("DOCKER_CERT_PATH").map(PathBuf::from);
            parse(&host, variable("DOCKER_TLS_VERIFY").is_some(), certificates.as_deref(), "DOCKER_HOST")
        }
        None => parse(USUAL, false, None, ""),
    }
}

fn parse(text: &str, tls: bool, certificates: Option<&Path>, place: &str) -> Result<Address, String> {
    let wrong = |why: &str| format!("{place}: `{text}` {why}; write unix:///path or tcp://host:port");
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("is not an address"))?;
    match scheme {
        "unix" if rest.starts_with('/') => Ok(Address::Unix(PathBuf::from(rest))),
        "tcp" | "http" | "https" => {
            let rest = rest.trim_end_matches('/');
            let tls = tls || scheme == "https";
            if rest.is_empty() || rest.contains('/') {
                return Err(wrong("is not an address"));
            }
            let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            let port = if tls { 2376 } else { 2375 };
            let place = if has_port { rest.to_owned() } else { format!("{rest}:{port}") };
            Ok(Address::Tcp(place, tls.then(|| files(certificates))))
        }
        "ssh" | "npipe" | "fd" => Err(wrong("has a scheme that mayfly does not support")),
        _ => Err(wrong("is not an address")),
    }
}

/// The files in a certificate directory; the client certificate is optional.
fn files(directory: Option<&Path>) -> TlsFiles {
    let file = |name: &str| directory.map(|directory| directory.join(name));
    let (cert_file, key_file) = (file("cert.pem"), file("key.pem"));
    let is_known = [&cert_file, &key_file].into_iter().flatten().any(|path| path.exists());
    TlsFiles {
        ca_file: file("ca.pem"),
        cert_file: cert_file.filter(|_| is_known),
        key_file: key_file.filter(|_| is_known),
        ..TlsFiles::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_addresses_as_docker_does() {
        let of = |host: &str, tls_verify| {
            address(&DockerConfig { host: host.to_owned(), tls_verify, ..DockerConfig::default() })
        };
        assert_eq!(of("unix:///run/x.sock", false), Ok(Address::Unix("/run/x.sock".into())));
        assert_eq!(of("tcp://10.0.0.1", false), Ok(Address::Tcp("10.0.0.1:2375".into(), None)));
        assert!(matches!(of("tcp://h:99", true), Ok(Address::Tcp(place, Some(_))) if place == "h:99"));
        assert!(matches!(of("https://h", false), Ok(Address::Tcp(place, Some(_))) if place == "h:2376"));
        for host in ["/var/run/docker.sock", "ssh://h", "unix://relative", "tcp://", "tcp://h/path"] {
            let why = of(host, false).expect_err("must be refused");
            assert!(why.contains("`host` below [runners.docker]") && why.contains("unix:///path"), "{why}");
        }
    }
}
