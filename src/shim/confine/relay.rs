//! The relay between a sandboxed task and servers: a process outside of the sandbox that opens connections for the
//! task.
//!
//! It listens on the loopback interface of the task's network namespace (SOCKS 5, RFC 1928). It resolves names and
//! checks addresses for every connection, also after a redirect, so that neither DNS rebinding nor a program of the job
//! can reach the machine's loopback or link-local addresses, which hand out the instance's credentials.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{calls, identity};
use crate::http::proxy;
use crate::shim::spec::NetworkAccess;
use crate::sync;
use crate::sys;

/// The address of the relay in the network namespace of the task.
pub const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1080);

/// Maximum number of connections.
const CONNECTIONS_MAX: usize = 256;
/// Timeout of the client's request and of the connection to a server.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes copied at a time.
const COPY_SIZE: usize = 64 * 1024;
/// Maximum size of a proxy's answer.
const ANSWER_MAX: usize = 8 * 1024;

/// Reply codes of SOCKS 5.
const DONE: u8 = 0;
const NOT_ALLOWED: u8 = 2;
const UNREACHABLE: u8 = 4;

/// The sockets of a relay, in the network namespace of the task.
pub struct Listeners {
    socks: TcpListener,
    /// Listeners for servers on the machine's loopback interface, at the servers' own addresses: Git LFS uses no proxy
    /// for these.
    loopback: Vec<(TcpListener, String, u16)>,
}

impl Listeners {
    /// Binds the sockets in the network namespace of this thread. Errors: [`ADDRESS`] is not free.
    pub fn bind(network: &NetworkAccess) -> io::Result<Self> {
        let socks = TcpListener::bind(ADDRESS)?;
        let loopback = network.allowed.iter().filter_map(|(host, port)| {
            let address = loopback_address(host)?;
            // The relay itself uses its port. The task reaches a server at that port through the relay.
            Some((TcpListener::bind((address, *port)).ok()?, host.clone(), *port))
        });
        Ok(Self { loopback: loopback.collect(), socks })
    }
}

/// The loopback address that a host of the configuration means.
fn loopback_address(host: &str) -> Option<IpAddr> {
    match host {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        host => host.parse().ok().filter(IpAddr::is_loopback),
    }
}

/// Starts the relay, which ends with its parent. Errors: no process can be created.
pub fn start(listeners: Listeners, network: &NetworkAccess, uid: u32) -> io::Result<Pid> {
    if let Some(pid) = sys::fork_single_threaded()? {
        return Ok(pid);
    }
    let _ = set_pdeathsig(Signal::SIGKILL);
    let given_up = identity::become_confined(Some(uid), None).is_ok() && set_no_new_privs().is_ok();
    // A change of the user clears this signal, so it is set again.
    let _ = set_pdeathsig(Signal::SIGKILL);
    // An error is ignored: the sandbox test reports a kernel without seccomp.
    let _ = calls::restrict();
    if given_up {
        serve(listeners, network.clone());
    }
    sys::exit_now(1)
}

fn serve(listeners: Listeners, network: NetworkAccess) {
    let (network, count) = (Arc::new(network), Arc::new(AtomicUsize::new(0)));
    for (listener, host, port) in listeners.loopback {
        let (network, count) = (Arc::clone(&network), Arc::clone(&count));
        let connect = move |client| connect_directly(client, &host, port, &network);
        // Without this thread, the task reaches the server only through SOCKS.
        let _ = spawn(move || accept(&listener, &count, connect));
    }
    accept(&listeners.socks, &count, move |client| connect_through(client, &network));
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    sync::spawn("relay", 256 * 1024, work)
}

/// Serves each connection in its own thread.
fn accept<F>(listener: &TcpListener, count: &Arc<AtomicUsize>, serve: F)
where
    F: Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
{
    for stream in listener.incoming().flatten() {
        let (serve, count) = (serve.clone(), Arc::clone(count));
        if count.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
            count.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let counted = Arc::clone(&count);
        let serve = move || {
            // After an error, the client sees that the connection is closed.
            let _ = serve(stream);
            count.fetch_sub(1, Ordering::SeqCst);
        };
        if spawn(serve).is_err() {
            counted.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn connect_directly(client: TcpStream, host: &str, port: u16, network: &NetworkAccess) -> io::Result<()> {
    client.set_nodelay(true)?;
    let server = open(host, port, network).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
    copy_both(client, server)
}

fn connect_through(mut client: TcpStream, network: &NetworkAccess) -> io::Result<()> {
    client.set_read_timeout(Some(IDLE_TIMEOUT))?;
    client.set_nodelay(true)?;
    let (host, port) = read_request(&mut client)?;
    let server = match connect_or_code(&host, port, network) {
        Ok(server) => server,
        Err(answer) => return client.write_all(&[5, answer, 0, 1, 0, 0, 0, 0, 0, 0]),
    };
    client.write_all(&[5, DONE, 0, 1, 0, 0, 0, 0, 0, 0])?;
    copy_both(client, server)
}

fn copy_both(client: TcpStream, server: TcpStream) -> io::Result<()> {
    client.set_read_timeout(None)?;
    server.set_read_timeout(None)?;
    let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
    let up = spawn(move || copy(from_client, to_server))?;
    copy(server, client);
    let _ = up.join();
    Ok(())
}

/// Copies bytes until the end of the stream, and shuts down the other side.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut block = vec![0; COPY_SIZE];
    while let Ok(length @ 1..) = from.read(&mut block) {
        if to.write_all(&block[..length]).is_err() {
            let _ = from.shutdown(Shutdown::Read);
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Reads the request of a client. Errors: the request is not SOCKS 5, or not CONNECT.
fn read_request(client: &mut (impl Read + Write)) -> io::Result<(String, u16)> {
    let [version, methods] = read(client)?;
    if version != 5 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    io::copy(&mut client.take(u64::from(methods)), &mut io::sink())?;
    client.write_all(&[5, 0])?;
    let [version, command, _, kind] = read(client)?;
    if version != 5 || command != 1 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let host = match kind {
        1 => Ipv4Addr::from(read::<4>(client)?).to_string(),
        4 => Ipv6Addr::from(read::<16>(client)?).to_string(),
        3 => {
            let [length] = read(client)?;
            let mut name = vec![0; usize::from(length)];
            client.read_exact(&mut name)?;
            String::from_utf8(name).map_err(io::Error::other)?
        }
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    Ok((host.trim_matches(['[', ']']).to_ascii_lowercase(), u16::from_be_bytes(read(client)?)))
}

fn read<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Connects to the host, through the job's proxy if one applies. Errors: the SOCKS reply code.
fn connect_or_code(host: &str, port: u16, network: &NetworkAccess) -> Result<TcpStream, u8> {
    let scheme = if port == 80 { "http" } else { "https" };
    let variable = |name: &str| network.proxies.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let Some(upstream) = proxy::for_url(scheme, host, variable) else { return open(host, port, network) };
    let address = upstream.strip_prefix("http://").unwrap_or(&upstream).trim_end_matches('/');
    let (login, address) = address.rsplit_once('@').map_or((None, address), |(login, rest)| (Some(login), rest));
    let (proxy, number) = address.rsplit_once(':').unwrap_or((address, "80"));
    let number = number.parse().map_err(|_| UNREACHABLE)?;
    // A proxy on this machine could connect to addresses that the relay refuses, so the relay checks hosts that need no
    // lookup. The proxy resolves other names, because this machine may have no DNS.
    let needs_no_lookup =
        host == "localhost" || host.contains(':') || host.starts_with(|first: char| first.is_ascii_digit());
    if needs_no_lookup
        && !is_configured(host, port, network)
        && resolve(host, port).is_some_and(|mut all| all.any(is_of_the_machine))
    {
        return Err(NOT_ALLOWED);
    }
    let stream = open(&proxy.trim_matches(['[', ']']).to_ascii_lowercase(), number, network)?;
    tunnel(&stream, host, port, login).map_err(|_| UNREACHABLE)?;
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
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        // The response is read byte by byte, because the bytes after it belong to the server.
        let [byte] = read(&mut stream)?;
        answer.push(byte);
        if answer.len() > ANSWER_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let is_open = answer.starts_with(b"HTTP/1.") && answer.get(9..12) == Some(b"200");
    if is_open { Ok(()) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}

fn open(host: &str, port: u16, network: &NetworkAccess) -> Result<TcpStream, u8> {
    let is_configured = is_configured(host, port, network);
    let mut outcome = UNREACHABLE;
    for address in resolve(host, port).ok_or(UNREACHABLE)? {
        if !is_configured && is_of_the_machine(address) {
            outcome = NOT_ALLOWED;
            continue;
        }
        if let Ok(stream) = TcpStream::connect_timeout(&SocketAddr::new(address, port), IDLE_TIMEOUT) {
            let _ = stream.set_nodelay(true);
            return Ok(stream);
        }
    }
    Err(outcome)
}

/// The addresses of a host; `None` if its name cannot be resolved here.
fn resolve(host: &str, port: u16) -> Option<impl Iterator<Item = IpAddr>> {
    Some((host, port).to_socket_addrs().ok()?.map(|address| address.ip()))
}

fn is_configured(host: &str, port: u16, network: &NetworkAccess) -> bool {
    network.allowed.iter().any(|(allowed, number)| allowed == host && *number == port)
}

/// Whether the address belongs to this machine, its link, or the services of its cloud.
fn is_of_the_machine(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_loopback()
                || address.is_link_local()
                || address.is_broadcast()
                || address.is_multicast()
                || address.octets()[0] == 0
        }
        IpAddr::V6(address) => {
            let segments = address.segments();
            let last = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
            // IPv6 forms of an IPv4 address: mapped, compatible, NAT64, 6to4.
            let inner = match segments {
                [0, 0, 0, 0, 0, 0xffff, high, low] | [0, 0, 0, 0, 0, 0, high, low] => Some(last(high, low)),
                [0, 0, 0, 0, 0xffff, 0, high, low] | [0x64, 0xff9b, .., high, low] => Some(last(high, low)),
                [0x2002, high, low, ..] => Some(last(high, low)),
                _ => None,
            };
            address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || segments[0] & 0xffc0 == 0xfe80
                || segments[..2] == [0xfd00, 0xec2]
                || inner.is_some_and(is_of_the_machine)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_machine_and_its_cloud_are_blocked_in_every_form() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "2002:a9fe:a9fe::1",
            "2002:7f00:1::",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd00:ec2::23",
        ] {
            assert!(is_of_the_machine(address.parse().expect("an address")), "{address}");
        }
        for address in
            ["10.0.0.1", "192.168.1.1", "100.64.0.1", "8.8.8.8", "2001:db8::1", "fd12::1", "64:ff9b::8.8.8.8"]
        {
            assert!(!is_of_the_machine(address.parse().expect("an address")), "{address}");
        }
    }

    #[test]
    fn only_loopback_hosts_of_the_configuration_get_a_listener() {
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "::1"] {
            assert!(loopback_address(host).is_some(), "{host}");
        }
        for host in ["gitlab.test", "10.0.0.1", "0.0.0.0", "localhost.test", "169.254.169.254", ""] {
            assert!(loopback_address(host).is_none(), "{host}");
        }
    }

    #[test]
    fn only_the_configured_port_of_the_loopback_is_open() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let other = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let network = NetworkAccess { allowed: vec![("127.0.0.1".to_owned(), port)], proxies: Vec::new() };
        assert!(open("127.0.0.1", port, &network).is_ok());
        assert_eq!(open("127.0.0.1", other, &network).err(), Some(NOT_ALLOWED));
        assert_eq!(open("localhost", port, &network).err(), Some(NOT_ALLOWED), "the name is another host");
        assert_eq!(open("::ffff:127.0.0.1", port, &network).err(), Some(NOT_ALLOWED));
        assert_eq!(open("0", port, &network).err(), Some(NOT_ALLOWED), "an old form of 0.0.0.0");
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
            assert_eq!(connect_or_code(host, 443, &network).err(), Some(NOT_ALLOWED), "{host}");
        }
        proxy.set_nonblocking(true).expect("set the socket option");
        assert!(proxy.accept().is_err(), "it was asked");
    }

    #[test]
    fn requests_are_parsed_and_invalid_ones_refused() {
        struct FakeStream<'a>(&'a [u8], Vec<u8>);
        impl Read for FakeStream<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.read(buffer)
            }
        }
        impl Write for FakeStream<'_> {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let asked = |bytes: &[u8]| read_request(&mut FakeStream(bytes, Vec::new())).ok();
        assert_eq!(asked(b"\x05\x01\x00\x05\x01\x00\x03\x06GITLAB\x01\xbb"), Some(("gitlab".to_owned(), 443)));
        assert_eq!(
            asked(b"\x05\x02\x00\x02\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50"),
            Some(("10.0.0.1".to_owned(), 80))
        );
        for nonsense in
            [&b""[..], b"GET / HTTP/1.1\r\n", b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\xff"]
        {
            assert_eq!(asked(nonsense), None);
        }
    }
}
