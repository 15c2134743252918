//! The connection of one agent, with or without TLS. The thread that reads or writes the connection owns it; a waiting
//! connection has no thread, and neither has one whose request has arrived in part.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};
use rustls::{ServerConfig, ServerConnection};

use super::request::{AfterResponse, Parsed, ServerRequest, ServerResponse, parse};
use super::{FIRST_REQUEST_TIMEOUT, IDLE_TIMEOUT, REQUEST_TIMEOUT, RESPONSE_TIMEOUT};

/// Why no request was read.
#[derive(Debug)]
pub enum NoRequest {
    /// The request has not arrived completely.
    Incomplete,
    /// The client closed the connection, or the network failed.
    Gone(io::Error),
    /// The bytes are not a request; the status and the reason of the response.
    Refused(u16, &'static str),
}

/// A connection.
pub struct Connection {
    stream: TcpStream,
    tls: Option<Box<ServerConnection>>,
    /// Received bytes of the next request.
    received: Vec<u8>,
    after_response: AfterResponse,
    last_used: Instant,
    /// The time at which the first part of an incomplete request arrived.
    request_began: Option<Instant>,
    has_sent_request: bool,
}

impl Connection {
    /// Prepares an accepted connection. Errors: the socket or TLS cannot be set up.
    pub fn new(stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(RESPONSE_TIMEOUT))?;
        let tls = tls.map(ServerConnection::new).transpose().map_err(io::Error::other)?.map(Box::new);
        Ok(Self {
            stream,
            tls,
            received: Vec::new(),
            after_response: AfterResponse::KeepOpen,
            last_used: Instant::now(),
            request_began: None,
            has_sent_request: false,
        })
    }

    /// Whether the connection may serve another request.
    pub fn is_kept(&self) -> bool {
        self.after_response == AfterResponse::KeepOpen
    }

    /// Whether bytes of another request are already buffered; for them the socket does not become readable.
    pub fn has_more(&mut self) -> bool {
        let buffered =
            |tls: &mut ServerConnection| tls.process_new_packets().is_ok_and(|io| io.plaintext_bytes_to_read() > 0);
        !self.received.is_empty() || self.tls.as_deref_mut().is_some_and(buffered)
    }

    /// Whether the client has used up its time: for the rest of a request, for its first one, or between two.
    pub fn is_overdue(&self, now: Instant) -> bool {
        let (since, timeout) = match self.request_began {
            Some(began) => (began, REQUEST_TIMEOUT),
            None if self.has_sent_request => (self.last_used, IDLE_TIMEOUT),
            None => (self.last_used, FIRST_REQUEST_TIMEOUT),
        };
        now.saturating_duration_since(since) > timeout
    }

    /// Reads the next request, as far as it has arrived.
    pub fn read(&mut self) -> Result<ServerRequest, NoRequest> {
        self.request_began.get_or_insert_with(Instant::now);
        let mut buffer = [0; 4096];
        loop {
            match parse(&self.received) {
                Parsed::Request(request, length) => {
                    // Not `drain`, which keeps the memory of a large request while the connection is idle.
                    self.received = self.received.split_off(length);
                    self.after_response = request.after_response;
                    (self.last_used, self.request_began, self.has_sent_request) = (Instant::now(), None, true);
                    return Ok(request);
                }
                Parsed::Refused(status, why) => return Err(NoRequest::Refused(status, why)),
                Parsed::Incomplete => {}
            }
            match self.read_some(&mut buffer) {
                Ok(0) => return Err(NoRequest::Gone(io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(NoRequest::Incomplete),
                Err(error) => return Err(NoRequest::Gone(error)),
            }
        }
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut arrived = ArrivedBytes(&self.stream);
        loop {
            let read = match self.tls.as_deref_mut() {
                Some(tls) => rustls::Stream::new(tls, &mut arrived).read(buffer),
                None => arrived.read(buffer),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    /// Writes a response. Errors: the client has disconnected or is too slow; the connection must be closed.
    pub fn write(&mut self, response: &ServerResponse, until: Instant) -> io::Result<()> {
        let bytes = response.encode(self.after_response);
        self.last_used = Instant::now();
        self.stream.set_write_timeout(Some(time_until(until)?))?;
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

/// A socket that reads only what has arrived. Writing blocks: the messages of a handshake fit into the kernel's buffer.
struct ArrivedBytes<'a>(&'a TcpStream);

impl Read for ArrivedBytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
    }
}

impl Write for ArrivedBytes<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The time that is left. Errors: none is left.
fn time_until(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
