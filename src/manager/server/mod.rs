//! The HTTP server for agents. A thousand agents may wait for jobs, each for up to 50 s. So a waiting connection is
//! only an entry in a table and a descriptor in an epoll set, and a few threads serve the connections with data to
//! read.
//!
//! The server implements HTTP and TLS. The [`Handler`] interprets the requests.

pub mod certificate;
mod connection;
mod event_loop;
pub mod request;
#[cfg(test)]
mod tests;
mod workers;

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::ServerConfig;

use crate::sync;
use connection::Connection;
use event_loop::{Connections, Entry};
use request::{ServerRequest, ServerResponse};
use workers::MAX_THREADS;

/// The timeout for sending a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
const STACK: usize = 128 * 1024;

/// Identifies a request that waits for its response: the number of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

#[cfg(test)]
impl Ticket {
    /// A ticket without a server.
    pub fn for_test(number: u64) -> Self {
        Self(number)
    }
}

/// Answers requests.
pub trait Handler: Send + Sync {
    /// Responds to a request, immediately or later.
    fn handle(&self, request: ServerRequest, exchange: Exchange);

    /// Called when the client of a waiting request has disconnected or did not receive its response.
    fn handle_disconnect(&self, ticket: Ticket);
}

/// The server; it runs until it is dropped. The drop closes the connections of waiting requests at once. For the
/// requests that are being handled it waits, at most for [`RESPONSE_TIMEOUT`].
pub struct HttpServer {
    shared: Arc<Connections>,
    thread: Option<JoinHandle<()>>,
}

/// Sends the responses of waiting requests.
pub trait Responder: Send + Sync {
    /// Sends the response of a waiting request. Returns false if the client has disconnected.
    fn respond(&self, ticket: Ticket, response: ServerResponse) -> bool;
}

/// The means to respond to one request.
pub struct Exchange {
    shared: Arc<Connections>,
    number: u64,
    connection: Connection,
}

impl HttpServer {
    /// Starts the server on a listening socket; without a TLS configuration it serves plain HTTP. Errors: no
    /// descriptors or threads are left.
    pub fn start(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        handler: Weak<dyn Handler>,
    ) -> io::Result<Self> {
        Self::start_with_threads(listener, tls, handler, MAX_THREADS)
    }

    fn start_with_threads(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        handler: Weak<dyn Handler>,
        max_threads: usize,
    ) -> io::Result<Self> {
        let shared = Arc::new(Connections::new(listener, tls, handler, max_threads)?);
        let listening = Arc::clone(&shared);
        let thread = sync::spawn("agents", STACK, move || listening.listen())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sets the certificate for new connections.
    pub fn set_tls(&self, tls: Option<Arc<ServerConfig>>) {
        *self.shared.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    /// The interface that sends the responses of waiting requests.
    pub fn responder(&self) -> Arc<dyn Responder> {
        Arc::new(WaitingRequests(Arc::clone(&self.shared)))
    }

    /// Accepts connections at another address; open connections stay. Errors: the address cannot be used, or no
    /// descriptors are left; the server still accepts connections at the current address.
    pub fn listen_at(&self, address: &str) -> io::Result<()> {
        self.shared.listen_at(address)
    }

    /// The listening socket, for the program that replaces this one.
    pub fn listener(&self) -> Arc<TcpListener> {
        self.shared.listener()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        let _ = self.shared.bell.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.shared.stop();
    }
}

/// Sends the responses of the requests in the table.
struct WaitingRequests(Arc<Connections>);

impl Responder for WaitingRequests {
    fn respond(&self, ticket: Ticket, response: ServerResponse) -> bool {
        let entry = {
            let mut table = self.0.lock();
            match table.remove(&ticket.0) {
                Some(entry) if entry.waits => entry,
                Some(entry) => {
                    table.insert(ticket.0, entry);
                    return false;
                }
                None => return false,
            }
        };
        let shared = Arc::clone(&self.0);
        self.0.workers.put(move || shared.send_response(ticket, entry.connection, &response));
        true
    }
}

impl Exchange {
    /// Sends the response.
    pub fn respond(mut self, response: &ServerResponse) {
        if self.connection.write(response, Instant::now() + RESPONSE_TIMEOUT).is_ok() {
            self.shared.await_next_request(self.number, self.connection);
        }
    }

    /// Lets the request wait for its response. The client may disconnect before the ticket is used: the server then
    /// calls [`Handler::handle_disconnect`].
    pub fn defer(self) -> Ticket {
        let ticket = Ticket(self.number);
        self.shared.watch(self.number, Entry { connection: self.connection, waits: true });
        ticket
    }
}
