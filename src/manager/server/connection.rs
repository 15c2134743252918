//! The connection of one agent, with or without TLS. The thread that reads or writes the connection owns it; a waiting
//! connection has no thread, and neither has one whose request has arrived in part.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};
use rustls::{ServerConfig, ServerConnection};

use super::RESPONSE_TIMEOUT;
use super::request::{AfterResponse, Parsed, ServerRequest, ServerResponse, parse};

/// The time that a client has for the rest of a request. It occupies no thread meanwhile.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The time that a client has for its first request: agents send it at once.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The time after which an unused connection is closed: longer than agents keep unused connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20 * 60);

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
        let mut socket = TimedSocket { stream: &self.stream, until: Instant::now() + RESPONSE_TIMEOUT };
        loop {
            let read = match self.tls.as_deref_mut() {
                Some(tls) => rustls::Stream::new(tls, &mut socket).read(buffer),
                None => socket.read(buffer),
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
        let mut socket = TimedSocket { stream: &self.stream, until };
        match self.tls.as_deref_mut() {
            Some(tls) => {
                let mut stream = rustls::Stream::new(tls, &mut socket);
                stream.write_all(&bytes)?;
                stream.flush()
            }
            None => socket.write_all(&bytes),
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

/// A socket that reads only what has arrived, and writes until a time. A timeout of the socket itself would bound each
/// write alone, so a client that reads byte by byte would occupy the thread for any time.
struct TimedSocket<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Read for TimedSocket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.stream.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
    }
}

impl Write for TimedSocket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(time_until(self.until)?))?;
        let mut stream = self.stream;
        stream.write(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_client_that_reads_slowly_gets_no_more_time() {
        const SIZE: usize = 32 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect to the server");
        let (stream, _) = listener.accept().expect("a connection");
        let mut connection = Connection::new(stream, None).expect("set up the connection");
        // The client reads all the time, but needs more than two seconds for the response.
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; SIZE / 256];
            while client.read_exact(&mut buffer).is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        let response = ServerResponse { status: 200, headers: Vec::new(), body: vec![b'x'; SIZE] };
        let written = connection.write(&response, Instant::now() + Duration::from_millis(300));
        assert_eq!(written.expect_err("the time is over").kind(), io::ErrorKind::TimedOut);
        drop(connection);
        reader.join().expect("no panic");
    }
}
