//! The address of the server for metrics and health: `host:port`, `:port` for every interface, or a host alone.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::AsRawFd;

use nix::sys::socket::{self, Backlog, Shutdown};

/// The port that Prometheus' list of default ports assigns to gitlab-runner.
pub const DEFAULT_PORT: u16 = 9252;

/// The maximum number of connections that wait to be accepted, as for [`TcpListener::bind`].
const BACKLOG: i32 = 128;

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
    bind_first(&resolve(address)?)
}

/// Listens at `address` in place of `current`, and passes the new socket to `adopt`. If `current` occupies the address,
/// for example on another interface with the same port, it first stops listening. Fails if the address is malformed or
/// cannot be bound, or if `adopt` fails: then `current` still listens.
pub fn listen_instead_of<T>(
    current: &TcpListener,
    address: &str,
    adopt: impl FnOnce(TcpListener) -> io::Result<T>,
) -> io::Result<T> {
    let candidates = resolve(address)?;
    let bound = match bind_first(&candidates) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && occupies(current, &candidates) => {
            // The socket stays bound, so another program cannot take its port before it listens again.
            socket::shutdown(current.as_raw_fd(), Shutdown::Read)?;
            bind_first(&candidates)
        }
        bound => bound,
    };
    bound.and_then(adopt).inspect_err(|_| {
        // `listen` has no effect on a socket that still listens.
        let resumed = Backlog::new(BACKLOG).and_then(|backlog| socket::listen(current, backlog));
        if let Err(error) = resumed {
            log::error!("cannot listen on the current address any more error={error}");
        }
    })
}

/// Whether a listening socket prevents another one on some of the candidates.
fn occupies(current: &TcpListener, candidates: &[SocketAddr]) -> bool {
    let Ok(current) = current.local_addr() else { return false };
    let overlaps = |other: IpAddr| current.ip() == other || current.ip().is_unspecified() || other.is_unspecified();
    candidates.iter().any(|other| other.port() == current.port() && overlaps(other.ip()))
}

/// The socket addresses of an address, in the order in which they are tried. Fails if the address is malformed or its
/// host is unknown.
fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    let (host, port) = split_address(address).map_err(io::Error::other)?;
    if host.is_empty() {
        // IPv4 and IPv6, or only IPv4 if the machine does not support IPv6.
        return Ok(vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]);
    }
    Ok((host, port).to_socket_addrs()?.collect())
}

/// Listens at the first candidate that can be bound.
fn bind_first(candidates: &[SocketAddr]) -> io::Result<TcpListener> {
    let mut last_error = io::Error::other("the host has no address");
    for candidate in candidates {
        match TcpListener::bind(candidate) {
            Ok(listener) => return Ok(listener),
            Err(error) => last_error = error,
        }
        // An unspecified address means every interface. If its port is in use, the next candidate (IPv4 only) would
        // hide that.
        let is_refused = matches!(last_error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied);
        if is_refused && candidate.ip().is_unspecified() {
            break;
        }
    }
    Err(last_error)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;

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

    /// A listener with a port that it was asked for: a socket with a port of the kernel's choice loses it when it stops
    /// listening.
    fn listener() -> (TcpListener, SocketAddr) {
        for _ in 0..100 {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
            if let Ok(listener) = TcpListener::bind(free) {
                return (listener, free);
            }
        }
        panic!("no port is free");
    }

    fn at(host: &str, address: SocketAddr) -> String {
        format!("{host}:{}", address.port())
    }

    #[test]
    fn a_listener_stays_open_when_another_address_cannot_be_used() {
        let ((current, address), (_other, taken)) = (listener(), listener());
        // Closing the listener would reset this connection.
        let mut client = TcpStream::connect(address).expect("connect to the listener");
        listen_instead_of(&current, &taken.to_string(), Ok).expect_err("the address is in use");
        let refusal = listen_instead_of(&current, "127.0.0.1:0", |_| Err::<(), _>(io::ErrorKind::Unsupported.into()));
        assert_eq!(refusal.expect_err("must fail").kind(), io::ErrorKind::Unsupported);
        drop(current.accept().expect("the connection from before"));
        assert_eq!(client.read(&mut [0]).expect("the end of the connection"), 0);
    }

    #[test]
    fn a_listener_moves_to_every_interface_on_its_port() {
        for host in ["0.0.0.0", ""] {
            let (current, address) = listener();
            let next = listen_instead_of(&current, &at(host, address), Ok).expect("the address of its own listener");
            let _client = TcpStream::connect(("127.0.0.2", address.port())).expect("connect to another interface");
            next.accept().expect("a connection");
            drop(current);
            let _client = TcpStream::connect(address).expect("connect to the first address");
            next.accept().expect("a connection");
        }
    }

    #[test]
    fn a_listener_that_stopped_listening_listens_again_when_the_new_address_cannot_be_used() {
        let (current, address) = listener();
        let other = TcpListener::bind(("127.0.0.2", address.port())).expect("another interface");
        let refusal = listen_instead_of(&current, &at("0.0.0.0", address), Ok).expect_err("the port is in use");
        assert_eq!(refusal.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(current.local_addr().expect("an address"), address);
        let _client = TcpStream::connect(address).expect("connect to the listener");
        current.accept().expect("a connection");
        drop(other);
    }
}
