//! TCP connections that detect when the other end has silently disappeared, and Unix sockets.
//!
//! GitLab holds a poll for most of a minute. If a router drops the connection in that time, no data ever arrives. So
//! the kernel sends keepalive probes; the library's own sockets do not.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use rustls::ClientConfig;
use ureq::config::{Config, ConfigBuilder};
use ureq::http::Uri;
use ureq::typestate::AgentScope;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, ShutdownHandle,
    Transport,
};
use ureq::{Agent, Error};

use super::forward::ForwardProxy;
use super::handshake::TlsConnector;
use super::proxy::Route;

/// The idle time before keepalive probes, and the time between two probes (as in gitlab-runner).
const PROBE_EVERY_SECONDS: u32 = 30;
/// The number of unanswered probes after which the connection is closed.
const MAX_PROBES: u32 = 3;
/// The timeout for a relay to open a connection.
const RELAY_TIMEOUT: Duration = Duration::from_secs(65);

/// The configuration of all agents (ureq). An error status is not an `Err`, and the library follows no redirect: the
/// caller decides, because only the caller knows which token may be sent to which host.
pub fn plain_config() -> ConfigBuilder<AgentScope> {
    Agent::config_builder().http_status_as_error(false).max_redirects(0).max_redirects_will_error(false)
}

/// The relay that opens connections for this process, if the process has no network access.
static RELAY: OnceLock<SocketAddr> = OnceLock::new();

/// Makes a relay (SOCKS 5) open all connections of this process; permanent.
pub fn connect_through(relay: SocketAddr) {
    let _ = RELAY.set(relay);
}

/// The relay of this process, if it has one.
pub fn relay_of_process() -> Option<SocketAddr> {
    RELAY.get().copied()
}

/// An agent for one route. `tls` is needed for `https` URLs and proxies. Fails if the proxy has no usable address.
pub fn agent(
    config: ConfigBuilder<AgentScope>,
    route: &Route,
    tls: Option<Arc<ClientConfig>>,
) -> Result<Agent, String> {
    let (tunnel, forward) = match route {
        Route::Direct => (None, None),
        Route::Tunnel(proxy) => (Some(proxy.to_library()), None),
        Route::Forward(proxy) => (None, Some(proxy)),
    };
    let connector =
        ().chain(ForwardProxy::new(forward)?)
            .chain(ConnectProxyConnector::default())
            .chain(KeepaliveConnector)
            .chain(TlsConnector(tls));
    Ok(Agent::with_parts(config.proxy(tunnel).build(), connector, ResolveOnConnect))
}

/// Resolves no addresses. The library resolves names before each request; here a name is resolved when a connection is
/// opened, so a request on a kept connection needs neither DNS nor a thread for it.
#[derive(Debug)]
struct ResolveOnConnect;

impl Resolver for ResolveOnConnect {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        Ok(self.empty())
    }
}

/// An agent that connects to the Unix socket at `path` for every URL.
pub fn local_agent(config: Config, path: &Path) -> Agent {
    Agent::with_parts(config, UnixConnector(path.to_owned()), NoResolution)
}

/// Opens connections to a Unix socket.
#[derive(Debug)]
struct UnixConnector(PathBuf);

impl Connector for UnixConnector {
    type Out = Socket;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Socket>, Error> {
        let stream = Stream::Unix(UnixStream::connect(&self.0)?);
        Socket::open(stream, details).map(Some)
    }
}

/// Resolves no names: all connections lead to one socket.
#[derive(Debug)]
struct NoResolution;

impl Resolver for NoResolution {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        addresses.push(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        Ok(addresses)
    }
}

/// Opens TCP connections with keepalive, unless a proxy connector has opened one already.
#[derive(Debug)]
struct KeepaliveConnector;

impl<In: Transport> Connector<In> for KeepaliveConnector {
    type Out = Either<In, Socket>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        if let Some(proxied) = chained {
            return Ok(Some(Either::A(proxied)));
        }
        Socket::open(Stream::Tcp(connect(details)?), details).map(|socket| Some(Either::B(socket)))
    }
}

/// Resolves the host and tries its addresses in order; each but the last gets half of the remaining time.
fn connect(details: &ConnectionDetails<'_>) -> Result<TcpStream, Error> {
    let (total, reason) = (*details.timeout.after, details.timeout.reason);
    if let Some(relay) = relay_of_process() {
        return connect_by_relay(relay, details.uri, total.min(RELAY_TIMEOUT)).map_err(Error::Io);
    }
    let began = Instant::now();
    let addresses = DefaultResolver::default().resolve(details.uri, details.config, details.timeout)?;
    let mut failure = Error::HostNotFound;
    for (index, address) in addresses.iter().enumerate() {
        let left = total.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(Error::Timeout(reason));
        }
        let is_last = index + 1 == addresses.len();
        match TcpStream::connect_timeout(address, if is_last { left } else { left / 2 }) {
            Ok(stream) => return Ok(set_options(stream)?),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => failure = Error::Timeout(reason),
            Err(error) => failure = Error::Io(error),
        }
    }
    Err(failure)
}

/// Requests a connection from a relay (RFC 1928).
fn connect_by_relay(relay: SocketAddr, url: &Uri, timeout: Duration) -> io::Result<TcpStream> {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let default_port = if url.scheme_str() == Some("https") { 443 } else { 80 };
    let length = u8::try_from(host.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut stream = TcpStream::connect_timeout(&relay, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(&[5, 1, 0])?;
    stream.read_exact(&mut [0; 2])?;
    let port = url.port_u16().unwrap_or(default_port).to_be_bytes();
    stream.write_all(&[&[5, 1, 0, 3, length], host.as_bytes(), &port].concat())?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply)?;
    match reply[1] {
        0 => {}
        2 => {
            let why = format!("{host} is a loopback or link-local address, which the sandbox blocks");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        _ => return Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("{host} cannot be reached"))),
    }
    stream.set_read_timeout(None)?;
    set_options(stream)
}

/// Makes the kernel send small writes at once and probe an idle connection.
pub(super) fn set_options(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    setsockopt(&stream, sockopt::KeepAlive, &true)?;
    setsockopt(&stream, sockopt::TcpKeepIdle, &PROBE_EVERY_SECONDS)?;
    setsockopt(&stream, sockopt::TcpKeepInterval, &PROBE_EVERY_SECONDS)?;
    setsockopt(&stream, sockopt::TcpKeepCount, &MAX_PROBES)?;
    Ok(stream)
}

/// A connected socket of either kind.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
            Self::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(timeout),
            Self::Unix(stream) => stream.set_write_timeout(timeout),
        }
    }

    pub(super) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nonblocking(nonblocking),
            Self::Unix(stream) => stream.set_nonblocking(nonblocking),
        }
    }

    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).read(buffer),
            Stream::Unix(stream) => (&mut &*stream).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).write(bytes),
            Stream::Unix(stream) => (&mut &*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Ends a connection from another thread.
struct StreamShutdown(Weak<Stream>);

impl ShutdownHandle for StreamShutdown {
    fn shutdown(&self) {
        if let Some(stream) = self.0.upgrade() {
            // An error means that the connection has ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A buffered connection.
struct Socket {
    stream: Arc<Stream>,
    buffers: LazyBuffers,
    /// The agent holds a weak reference: the handle lives as long as the connection.
    _handle: Arc<dyn ShutdownHandle>,
}

impl Socket {
    fn open(stream: Stream, details: &ConnectionDetails<'_>) -> Result<Self, Error> {
        let stream = Arc::new(stream);
        let handle: Arc<dyn ShutdownHandle> = Arc::new(StreamShutdown(Arc::downgrade(&stream)));
        (details.register_shutdown)(Arc::downgrade(&handle))?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Self { stream, buffers, _handle: handle })
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Socket").field(&self.stream).finish()
    }
}

/// The time left until `deadline`; `None` if there is no limit.
fn time_left(timeout: NextTimeout, deadline: Option<Instant>) -> Result<Option<Duration>, Error> {
    match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
        Some(left) if left.is_zero() => Err(Error::Timeout(timeout.reason)),
        left => Ok(left),
    }
}

/// A timeout beyond the range of the clock counts as no timeout.
fn deadline(timeout: NextTimeout) -> Option<Instant> {
    Instant::now().checked_add(*timeout.after)
}

fn timed_out(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

impl Transport for Socket {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        self.stream.set_write_timeout(time_left(timeout, deadline(timeout))?)?;
        (&*self.stream).write_all(&self.buffers.output()[..amount]).map_err(|error| timed_out(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let deadline = deadline(timeout);
        let amount = loop {
            self.stream.set_read_timeout(time_left(timeout, deadline)?)?;
            match (&*self.stream).read(self.buffers.input_append_buf()) {
                // Reads with a timeout are not restarted after a signal, even with SA_RESTART.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome.map_err(|error| timed_out(error, timeout))?,
            }
        };
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// Unexpected bytes on an idle connection make it as unusable as an end of file.
    fn is_open(&mut self) -> bool {
        let read_without_waiting = || -> io::Result<bool> {
            self.stream.set_nonblocking(true)?;
            let outcome = recv(self.stream.as_fd().as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK);
            self.stream.set_nonblocking(false)?;
            outcome.map(|_| false).map_err(io::Error::from)
        };
        read_without_waiting().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;
    use std::net::TcpListener;

    #[test]
    fn the_kernel_probes_an_idle_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect to the server");
        let stream = set_options(stream).expect("prepare the socket");
        assert!(getsockopt(&stream, sockopt::KeepAlive).expect("an option"));
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepIdle).expect("an option"), 30);
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepCount).expect("an option"), 3);
    }
}
