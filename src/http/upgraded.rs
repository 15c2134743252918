//! A connection upgraded from HTTP: bytes in both directions in one thread, with a wait that another descriptor can
//! end.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use rustls::ClientConnection;

use super::address::{Address, ConnectionError};
use super::socket::{self, Stream};
use super::tls;
use crate::sys;

/// The largest response head.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// The event that ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadEvent {
    /// This many bytes were read.
    Bytes(usize),
    /// The other side has closed its direction.
    End,
    /// The other descriptor became readable.
    Woken,
    /// No event occurred within the timeout.
    TimedOut,
}

/// The connection.
pub struct UpgradedConnection {
    stream: Stream,
    tls: Option<Box<ClientConnection>>,
    /// Bytes that arrived together with the response head.
    early: Vec<u8>,
    /// The unsent input, and how much of it was sent.
    input: Vec<u8>,
    sent: usize,
    /// The state of the sending direction after the input.
    send_state: SendState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SendState {
    Open,
    Due,
    Closed,
}

/// Sends a request head on a new connection, and upgrades the connection if the response accepts that. Outer error: no
/// response. Inner error: another response, with its status and body.
pub(super) fn open(
    address: &Address,
    head: &str,
    connect_timeout: Duration,
    response_timeout: Duration,
) -> Result<Result<UpgradedConnection, (u16, String)>, ConnectionError> {
    let (stream, tls) = connected(address, connect_timeout)?;
    stream.set_nonblocking(true).map_err(ConnectionError::Io)?;
    let input = head.as_bytes().to_vec();
    let mut connection =
        UpgradedConnection { stream, tls, early: Vec::new(), input, sent: 0, send_state: SendState::Open };
    let mut text = Vec::new();
    let head_end = loop {
        if !connection.read_more(&mut text, response_timeout)? {
            return Err(ConnectionError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        if let Some(at) = text.windows(4).position(|end| end == b"\r\n\r\n") {
            break at + 4;
        }
        if text.len() > MAX_HEAD_BYTES {
            return Err(ConnectionError::InvalidResponse("the response head is incomplete".to_owned()));
        }
    };
    let (status, length) =
        read_head(&text[..head_end]).ok_or_else(|| ConnectionError::InvalidResponse("no HTTP".to_owned()))?;
    let mut body = text.split_off(head_end);
    if matches!(status, 101 | 200) {
        connection.early = body;
        return Ok(Ok(connection));
    }
    // If the rest of the body does not arrive, its beginning is better than no error message.
    while body.len() < length.min(MAX_HEAD_BYTES) && connection.read_more(&mut body, response_timeout).unwrap_or(false)
    {
    }
    Ok(Err((status, String::from_utf8_lossy(&body).into_owned())))
}

/// The status and the body length in a response head.
fn read_head(head: &[u8]) -> Option<(u16, usize)> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    Some((status, length.unwrap_or(0)))
}

fn connected(address: &Address, timeout: Duration) -> Result<(Stream, Option<Box<ClientConnection>>), ConnectionError> {
    match address {
        Address::Unix(path) => Ok((Stream::Unix(UnixStream::connect(path).map_err(ConnectionError::Io)?), None)),
        Address::Tcp(authority, files) => {
            let mut failure = io::Error::new(io::ErrorKind::NotFound, "no such host");
            for address in authority.to_socket_addrs().map_err(ConnectionError::Io)? {
                match TcpStream::connect_timeout(&address, timeout).and_then(socket::set_options) {
                    Ok(stream) => {
                        let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
                        let tls = files.as_ref().map(|files| tls::connection(tls::config(files)?, host));
                        let tls = tls.transpose().map_err(ConnectionError::Configuration)?;
                        return Ok((Stream::Tcp(stream), tls.map(Box::new)));
                    }
                    Err(error) => failure = error,
                }
            }
            Err(ConnectionError::Io(failure))
        }
    }
}

impl UpgradedConnection {
    /// Queues input; it is sent while the other side is read.
    pub fn write(&mut self, text: &[u8]) {
        self.input.extend_from_slice(text);
    }

    /// Closes the sending direction after the queued input.
    pub fn finish(&mut self) {
        self.send_state = SendState::Due;
    }

    /// Waits for the other side, and sends queued input meanwhile. Fails if the connection breaks.
    pub fn read_event(
        &mut self,
        buffer: &mut [u8],
        wake: Option<BorrowedFd<'_>>,
        timeout: Option<Duration>,
    ) -> io::Result<ReadEvent> {
        if !self.early.is_empty() {
            let length = self.early.len().min(buffer.len());
            buffer[..length].copy_from_slice(&self.early[..length]);
            self.early.drain(..length);
            return Ok(ReadEvent::Bytes(length));
        }
        loop {
            self.send_input();
            match self.read(buffer) {
                Ok(0) => return Ok(ReadEvent::End),
                Ok(length) => return Ok(ReadEvent::Bytes(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if let Some(event) = self.wait(wake, timeout)? {
                return Ok(event);
            }
        }
    }

    /// Waits until the connection is readable or writable; returns the event that occurred instead, if any.
    fn wait(&self, wake: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<Option<ReadEvent>> {
        let mut events = PollFlags::POLLIN;
        if self.has_unsent_input() {
            events |= PollFlags::POLLOUT;
        }
        let mut polled = vec![PollFd::new(self.stream.as_fd(), events)];
        polled.extend(wake.map(|wake| PollFd::new(wake, PollFlags::POLLIN)));
        match poll(&mut polled, sys::poll_timeout(timeout)) {
            Ok(0) => Ok(Some(ReadEvent::TimedOut)),
            Ok(_) if polled.get(1).is_some_and(|wake| wake.any() == Some(true)) => Ok(Some(ReadEvent::Woken)),
            Ok(_) | Err(Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn has_unsent_input(&self) -> bool {
        let pending = self.sent < self.input.len() || self.send_state == SendState::Due;
        self.tls.as_ref().map_or(pending, |tls| pending || tls.wants_write())
    }

    /// Sends as much input as the connection accepts. It is not an error if the other side no longer reads: the other
    /// side may still send.
    fn send_input(&mut self) {
        while self.sent < self.input.len() {
            let rest = &self.input[self.sent..];
            let (written, sent) = match &mut self.tls {
                None => ((&self.stream).write(rest), Ok(())),
                Some(tls) => (tls.writer().write(rest), flush(tls, &self.stream)),
            };
            self.sent += *written.as_ref().unwrap_or(&0);
            match written.and_then(|length| sent.map(|()| length)) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    self.sent = self.input.len();
                    self.send_state = SendState::Closed;
                }
                Ok(0) | Err(_) => return,
            }
        }
        if let Some(tls) = &mut self.tls {
            if self.send_state == SendState::Due {
                tls.send_close_notify();
                self.send_state = SendState::Closed;
            }
            // The next read returns an error of this write.
            let _ = flush(tls, &self.stream);
        } else if self.send_state == SendState::Due {
            let _ = self.stream.shutdown(Shutdown::Write);
            self.send_state = SendState::Closed;
        }
        if self.sent > 0 && self.sent == self.input.len() {
            // A script contains secrets: release it as soon as it is sent.
            self.input = Vec::new();
            self.sent = 0;
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return (&self.stream).read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                // The other side closed the connection without a TLS close message.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            tls.read_tls(&mut &self.stream)?;
            tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            match flush(tls, &self.stream) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }

    /// Appends received bytes to `text`; false at the end.
    fn read_more(&mut self, text: &mut Vec<u8>, timeout: Duration) -> Result<bool, ConnectionError> {
        let mut block = [0; 4096];
        match self.read_event(&mut block, None, Some(timeout)) {
            Ok(ReadEvent::Bytes(length)) => {
                text.extend_from_slice(&block[..length]);
                Ok(true)
            }
            Ok(ReadEvent::End) => Ok(false),
            Ok(ReadEvent::Woken | ReadEvent::TimedOut) => Err(ConnectionError::TimedOut),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(ConnectionError::InvalidResponse(error.to_string()))
            }
            Err(error) => Err(ConnectionError::Io(error)),
        }
    }
}

/// Sends the pending TLS records.
fn flush(tls: &mut ClientConnection, mut stream: &Stream) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut stream)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    fn serve(response: &'static [u8]) -> (tempfile::TempDir, Address, thread::JoinHandle<Vec<u8>>) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).expect("bind the address");
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut seen = vec![0; 5];
            stream.read_exact(&mut seen).expect("read the head of the request");
            stream.write_all(response).expect("write all bytes");
            stream.read_to_end(&mut seen).expect("read the file");
            seen
        });
        (directory, Address::Unix(path), served)
    }

    fn opened(address: &Address) -> Result<Result<UpgradedConnection, (u16, String)>, ConnectionError> {
        open(address, "HEAD\n", Duration::from_secs(5), Duration::from_secs(30))
    }

    #[test]
    fn transfers_in_both_directions_and_closes_one() {
        let (_directory, address, served) = serve(b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\nearly words");
        let mut connection = opened(&address).expect("a response").expect("the server must take over the connection");
        connection.write(&b"input".repeat(50_000));
        connection.write(&b"input".repeat(50_000));
        connection.finish();
        let (mut event, mut block) = (Vec::new(), [0; 4]);
        while let ReadEvent::Bytes(length) =
            connection.read_event(&mut block, None, None).expect("the connection must deliver bytes")
        {
            event.extend_from_slice(&block[..length]);
        }
        assert_eq!(event, b"early words");
        assert_eq!(served.join().expect("the thread must not panic").len(), 5 + 500_000);
    }

    #[test]
    fn returns_another_response() {
        let response = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone";
        let (_directory, address, _served) = serve(response);
        let told = opened(&address).expect("a response").err();
        assert_eq!(told, Some((404, "gone".to_owned())));
    }

    #[test]
    fn distinguishes_an_invalid_response_from_none() {
        let (_directory, address, _served) = serve(b"SSH-2.0-x\r\n\r\n");
        assert!(matches!(opened(&address), Err(ConnectionError::InvalidResponse(_))));
        let (_directory, address, _served) = serve(b"");
        let silent = open(&address, "HEAD\n", Duration::from_secs(5), Duration::from_millis(20));
        assert!(matches!(silent, Err(ConnectionError::TimedOut)));
    }
}
