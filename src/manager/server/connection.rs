//! The connection of one agent, with or without TLS. The thread that reads or writes the connection owns it; a waiting
//! connection has no thread.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection};

use super::request::{Parsed, ServerRequest, ServerResponse, parse};

/// Why no request was read.
#[derive(Debug)]
pub enum NoRequest {
    /// The client closed the connection, was too slow, or the network failed.
    Gone(io::Error),
    /// The bytes are not a request; the status and the reason of the response.
    Refused(u16, &'static str),
}

/// A connection.
pub struct Connection {
    stream: TcpStream,
    tls: Option<Box<ServerConnection>>,
    /// Received bytes of the next request.
    early: Vec<u8>,
    /// Whether the client keeps the connection after the response.
    keep: bool,
    /// The time of the last use.
    pub used: Instant,
}

impl Connection {
    /// Prepares an accepted connection. Errors: the socket or TLS cannot be set up.
    pub fn new(stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        let tls = tls.map(ServerConnection::new).transpose().map_err(io::Error::other)?.map(Box::new);
        Ok(Self { stream, tls, early: Vec::new(), keep: true, used: Instant::now() })
    }

    /// Whether the connection may serve another request.
    pub fn is_kept(&self) -> bool {
        self.keep
    }

    /// Whether bytes of another request are already buffered; for them the socket does not become readable.
    pub fn has_more(&mut self) -> bool {
        let buffered =
            |tls: &mut ServerConnection| tls.process_new_packets().is_ok_and(|io| io.plaintext_bytes_to_read() > 0);
        !self.early.is_empty() || self.tls.as_deref_mut().is_some_and(buffered)
    }

    /// Reads the next request.
    pub fn read(&mut self, until: Instant) -> Result<ServerRequest, NoRequest> {
        let mut bytes = std::mem::take(&mut self.early);
        let mut buffer = [0; 4096];
        loop {
            match parse(&bytes) {
                Parsed::Request(request, length) => {
                    self.early = bytes.split_off(length);
                    self.keep = request.keep;
                    self.used = Instant::now();
                    return Ok(request);
                }
                Parsed::Refused(status, why) => return Err(NoRequest::Refused(status, why)),
                Parsed::Incomplete => {}
            }
            match self.read_some(&mut buffer, until).map_err(NoRequest::Gone)? {
                0 => return Err(NoRequest::Gone(io::ErrorKind::UnexpectedEof.into())),
                length => bytes.extend_from_slice(&buffer[..length]),
            }
        }
    }

    fn read_some(&mut self, buffer: &mut [u8], until: Instant) -> io::Result<usize> {
        loop {
            self.stream.set_read_timeout(Some(left(until)?))?;
            self.stream.set_write_timeout(Some(left(until)?))?;
            let read = match self.tls.as_deref_mut() {
                Some(tls) => rustls::Stream::new(tls, &mut self.stream).read(buffer),
                None => self.stream.read(buffer),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    /// Writes a response. Errors: the client has disconnected or is too slow; the connection must be closed.
    pub fn write(&mut self, response: &ServerResponse, until: Instant) -> io::Result<()> {
        let bytes = response.encode(self.keep);
        self.used = Instant::now();
        self.stream.set_write_timeout(Some(left(until)?))?;
        match self.tls.as_deref_mut() {
            Some(tls) => {
                let mut stream = rustls::Stream::new(tls, &mut self.stream);
                stream.write_all(&bytes)?;
                stream.flush()
            }
            None => self.stream.write_all(&bytes),
        }
    }

    /// Closes the connection, with TLS's close notification.
    pub fn close(mut self) {
        if let Some(tls) = self.tls.as_deref_mut() {
            tls.send_close_notify();
            let _ = self.stream.set_write_timeout(Some(Duration::from_millis(100)));
            let _ = tls.write_tls(&mut self.stream);
        }
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
