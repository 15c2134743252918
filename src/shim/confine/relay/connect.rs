//! Connects to a server for the task: checks its addresses, and uses the job's proxy if one applies.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};

use super::IDLE_TIMEOUT;
use super::addresses::is_of_the_machine;
use super::socks::{Reply, read};
use crate::http::proxy;
use crate::shim::spec::NetworkAccess;

/// Maximum size of a proxy's response, in bytes.
const MAX_RESPONSE: usize = 8 * 1024;

/// Connects to the host, through the job's proxy if one applies. Errors: the reply to the task.
pub fn through_proxy(host: &str, port: u16, network: &NetworkAccess) -> Result<TcpStream, Reply> {
    let scheme = if port == 80 { "http" } else { "https" };
    let variable = |name: &str| network.proxies.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let Some(upstream) = proxy::select_proxy(scheme, host, variable) else { return directly(host, port, network) };
    let address = upstream.strip_prefix("http://").unwrap_or(&upstream).trim_end_matches('/');
    let (login, address) = address.rsplit_once('@').map_or((None, address), |(login, rest)| (Some(login), rest));
    let (proxy, proxy_port) = address.rsplit_once(':').unwrap_or((address, "80"));
    let proxy_port = proxy_port.parse().map_err(|_| Reply::Unreachable)?;
    // A proxy on this machine could connect to addresses that the relay refuses, so the relay checks hosts that need no
    // lookup. The proxy resolves other names, because this machine may have no DNS.
    let needs_no_lookup =
        host == "localhost" || host.contains(':') || host.starts_with(|first: char| first.is_ascii_digit());
    if needs_no_lookup
        && !is_configured(host, port, network)
        && resolve(host, port).is_some_and(|mut all| all.any(is_of_the_machine))
    {
        return Err(Reply::NotAllowed);
    }
    let stream = directly(&proxy.trim_matches(['[', ']']).to_ascii_lowercase(), proxy_port, network)?;
    tunnel(&stream, host, port, login).map_err(|_| Reply::Unreachable)?;
    Ok(stream)
}

/// Opens a tunnel through a proxy (RFC 9110, CONNECT).
fn tunnel(mut stream: &TcpStream, host: &str, port: u16, login: Option<&str>) -> io::Result<()> {
    use base64::Engine;
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
    if let Some(login) = login {
        let login = base64::engine::general_purpose::STANDARD.encode(login);
        request.push_str(&format!("Proxy-Authorization: Basic {login}\r\n"));
    }
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.write_all(format!("{request}\r\n").as_bytes())?;
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        // The response is read byte by byte, because the bytes after it belong to the server.
        let [byte] = read(&mut stream)?;
        response.push(byte);
        if response.len() > MAX_RESPONSE {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let is_open = response.starts_with(b"HTTP/1.") && response.get(9..12) == Some(b"200");
    if is_open { Ok(()) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}

/// Connects to the host at one of its addresses. Errors: as [`through_proxy`].
pub fn directly(host: &str, port: u16, network: &NetworkAccess) -> Result<TcpStream, Reply> {
    let is_configured = is_configured(host, port, network);
    let mut reply = Reply::Unreachable;
    for address in resolve(host, port).ok_or(Reply::Unreachable)? {
        if !is_configured && is_of_the_machine(address) {
            reply = Reply::NotAllowed;
            continue;
        }
        if let Ok(stream) = TcpStream::connect_timeout(&SocketAddr::new(address, port), IDLE_TIMEOUT) {
            let _ = stream.set_nodelay(true);
            return Ok(stream);
        }
    }
    Err(reply)
}

/// The addresses of a host; `None` if its name cannot be resolved here.
fn resolve(host: &str, port: u16) -> Option<impl Iterator<Item = IpAddr>> {
    Some((host, port).to_socket_addrs().ok()?.map(|address| address.ip()))
}

fn is_configured(host: &str, port: u16, network: &NetworkAccess) -> bool {
    network.allowed.iter().any(|(allowed_host, allowed_port)| allowed_host == host && *allowed_port == port)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn only_the_configured_port_of_the_loopback_is_open() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let other = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let network = NetworkAccess { allowed: vec![("127.0.0.1".to_owned(), port)], proxies: Vec::new() };
        assert!(directly("127.0.0.1", port, &network).is_ok());
        assert_eq!(directly("127.0.0.1", other, &network).err(), Some(Reply::NotAllowed));
        assert_eq!(directly("localhost", port, &network).err(), Some(Reply::NotAllowed), "the name is another host");
        assert_eq!(directly("::ffff:127.0.0.1", port, &network).err(), Some(Reply::NotAllowed));
        assert_eq!(directly("0", port, &network).err(), Some(Reply::NotAllowed), "an old form of 0.0.0.0");
    }

    #[test]
    fn a_proxy_of_the_machine_is_not_asked_for_the_machine() {
        let proxy = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = proxy.local_addr().expect("an address").port();
        let network = NetworkAccess {
            allowed: vec![("127.0.0.1".to_owned(), port)],
            proxies: vec![("https_proxy".to_owned(), format!("http://127.0.0.1:{port}"))],
        };
        for host in ["169.254.169.254", "127.0.0.1", "localhost", "::ffff:169.254.169.254", "fd00:ec2::254", "0"] {
            assert_eq!(through_proxy(host, 443, &network).err(), Some(Reply::NotAllowed), "{host}");
        }
        proxy.set_nonblocking(true).expect("set the socket option");
        assert!(proxy.accept().is_err(), "it was asked");
    }
}
