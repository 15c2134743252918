//! The address of the server for metrics and health: `host:port`, `:port` for every interface, or a host alone.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};

/// The port that Prometheus' list of default ports assigns to gitlab-runner.
pub const DEFAULT_PORT: u16 = 9252;

/// Fails if the address is malformed.
pub fn check_address(address: &str) -> Result<(), String> {
    split_address(address).map(drop)
}

/// Host and port of an address. An empty host means every interface; the default port is [`DEFAULT_PORT`]. Fails if the
/// address is malformed.
pub fn split_address(address: &str) -> Result<(&str, u16), String> {
    let (host, port) = match address.rsplit_once(':') {
        // The colons belong to an IPv6 address without a port.
        Some((host, _)) if host.contains(':') && !host.ends_with(']') => (address, None),
        Some((host, port)) => (host, Some(port)),
        None => (address, None),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match port {
        None => Ok((host, DEFAULT_PORT)),
        Some(port) => match port.parse() {
            Ok(port) => Ok((host, port)),
            Err(_) => Err(format!("`{port}` is not a port; write for example \"127.0.0.1:{DEFAULT_PORT}\"")),
        },
    }
}

/// Listens at an address. Fails if the address is malformed or cannot be bound.
pub fn bind(address: &str) -> io::Result<TcpListener> {
    let (host, port) = split_address(address).map_err(io::Error::other)?;
    if host.is_empty() {
        // IPv4 and IPv6, if the machine supports both.
        let every = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        return TcpListener::bind(every).or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
            _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
        });
    }
    let found: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    TcpListener::bind(&found[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_addresses_with_a_host_a_port_or_both() {
        for (address, expected) in [
            ("127.0.0.1:80", Ok(("127.0.0.1", 80))),
            (":9252", Ok(("", 9252))),
            ("localhost", Ok(("localhost", 9252))),
            ("[::1]:1", Ok(("::1", 1))),
            ("[::1]", Ok(("::1", 9252))),
            ("::1", Ok(("::1", 9252))),
        ] {
            assert_eq!(split_address(address), expected, "{address}");
        }
        for address in ["h:http", "h:70000", "h:"] {
            assert!(split_address(address).expect_err("must be refused").contains("is not a port"), "{address}");
        }
    }
}
