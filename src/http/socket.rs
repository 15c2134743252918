//! TCP connections that notice when the other end is gone without a word.
//!
//! A request for a job is held by the server for most of a minute. When a router forgets the connection in that time
//! nothing ever comes back, so the kernel is told to probe; the library's own sockets do not. A connector for other
//! kinds of socket would stand beside this one.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use ureq::config::Config;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, RustlsConnector,
    ShutdownHandle, Transport,
};
use ureq::{Agent, Error};

/// Silence after which the other end is probed, and the time between two probes (GitLab Runner: 30 s).
const PROBE_EVERY_SECONDS: u32 = 30;
/// Probes without an answer after which the connection is given up.
const PROBES: u32 = 3;

/// An agent whose connections are probed.
pub fn agent(config: Config) -> Agent {
    let connector = ().chain(ConnectProxyConnector::default()).chain(Probed).chain(RustlsConnector::default());
    Agent::with_parts(config, connector, DefaultResolver::default())
}

/// Opens probed TCP connections, unless a proxy has opened one already.
#[derive(Debug)]
struct Probed;

impl<In: Transport> Connector<In> for Probed {
    type Out = Either<In, Socket>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        if let Some(proxied) = chained {
            return Ok(Some(Either::A(proxied)));
        }
        let stream = Arc::new(connect(details)?);
        let handle: Arc<dyn ShutdownHandle> = Arc::new(Handle(Arc::downgrade(&stream)));
        (details.register_shutdown)(Arc::downgrade(&handle))?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(Socket { stream, buffers, _handle: handle })))
    }
}

/// Tries the addresses in turn; each but the last gets half of the time that is left.
fn connect(details: &ConnectionDetails<'_>) -> Result<TcpStream, Error> {
    let (total, reason) = (*details.timeout.after, details.timeout.reason);
    let began = Instant::now();
    let mut failure = Error::HostNotFound;
    for (index, address) in details.addrs.iter().enumerate() {
        let left = total.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(Error::Timeout(reason));
        }
        let is_last = index + 1 == details.addrs.len();
        match TcpStream::connect_timeout(address, if is_last { left } else { left / 2 }) {
            Ok(stream) => return Ok(prepare(stream)?),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => failure = Error::Timeout(reason),
            Err(error) => failure = Error::Io(error),
        }
    }
    Err(failure)
}

fn prepare(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    setsockopt(&stream, sockopt::KeepAlive, &true)?;
    setsockopt(&stream, sockopt::TcpKeepIdle, &PROBE_EVERY_SECONDS)?;
    setsockopt(&stream, sockopt::TcpKeepInterval, &PROBE_EVERY_SECONDS)?;
    setsockopt(&stream, sockopt::TcpKeepCount, &PROBES)?;
    Ok(stream)
}

/// Ends a connection from another thread.
struct Handle(Weak<TcpStream>);

impl ShutdownHandle for Handle {
    fn shutdown(&self) {
        if let Some(stream) = self.0.upgrade() {
            // An error means that it has ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A connection with its buffers.
struct Socket {
    stream: Arc<TcpStream>,
    buffers: LazyBuffers,
    /// The agent holds it weakly: it lives as long as the connection.
    _handle: Arc<dyn ShutdownHandle>,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("peer", &self.stream.peer_addr().ok()).finish_non_exhaustive()
    }
}

/// What is left until `deadline`; `None` for a wait without an end.
fn left(timeout: NextTimeout, deadline: Option<Instant>) -> Result<Option<Duration>, Error> {
    match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
        Some(left) if left.is_zero() => Err(Error::Timeout(timeout.reason)),
        left => Ok(left),
    }
}

/// A time-out too long for the clock is none.
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
        self.stream.set_write_timeout(left(timeout, deadline(timeout))?)?;
        (&*self.stream).write_all(&self.buffers.output()[..amount]).map_err(|error| timed_out(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let deadline = deadline(timeout);
        let amount = loop {
            self.stream.set_read_timeout(left(timeout, deadline)?)?;
            match (&*self.stream).read(self.buffers.input_append_buf()) {
                // Reads with a time-out are not taken up again after a signal, whatever its handler asked for.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome.map_err(|error| timed_out(error, timeout))?,
            }
        };
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// Bytes that nobody asked for are as bad as an end.
    fn is_open(&mut self) -> bool {
        let silent = || {
            self.stream.set_nonblocking(true)?;
            let outcome = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            outcome.map(|_| false)
        };
        silent().is_err_and(|error: io::Error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;
    use std::net::TcpListener;

    #[test]
    fn the_kernel_probes_a_silent_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let stream = prepare(stream).expect("prepared");
        assert!(getsockopt(&stream, sockopt::KeepAlive).expect("an option"));
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepIdle).expect("an option"), 30);
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepCount).expect("an option"), 3);
    }
}
