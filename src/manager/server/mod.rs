//! The HTTP server for agents. A thousand agents may wait for jobs, each for up to 50 s. So a waiting connection is
//! only an entry in a table and a descriptor in an epoll set, and a few threads serve the connections with data to
//! read.
//!
//! The server implements HTTP and TLS. The [`Handler`] interprets the requests.

pub mod certificate;
mod connection;
pub mod request;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustls::ServerConfig;

use crate::sync;
use connection::{Connection, NoRequest};
use request::{ServerRequest, ServerResponse};
use workers::{ConnectionTask, Workers};

/// The timeout for sending a response.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The time that a client has for the rest of a request. It occupies no thread meanwhile.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The time that a client has for its first request: agents send it at once.
const FIRST_REQUEST: Duration = Duration::from_secs(60);
/// The time after which an unused connection is closed: longer than agents keep unused connections.
const IDLE: Duration = Duration::from_secs(20 * 60);
/// The interval of checks for unused and slow connections.
const SWEEP: Duration = Duration::from_secs(10);
/// The maximum number of connections.
const CONNECTIONS: usize = 8192;
/// Keys in the epoll set that do not belong to connections.
const LISTENER: u64 = 0;
const BELL: u64 = 1;
/// The key of the first connection.
const FIRST: u64 = 2;
const STACK: usize = 128 * 1024;

/// Identifies a request that waits for its response: the number of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

#[cfg(test)]
impl Ticket {
    /// A ticket without a server.
    pub fn of_test(number: u64) -> Self {
        Self(number)
    }
}

/// Answers requests.
pub trait Handler: Send + Sync {
    /// Responds to a request, immediately or later.
    fn handle(&self, request: ServerRequest, exchange: Exchange);

    /// Called when the client of a waiting request has disconnected or did not receive its response.
    fn gone(&self, ticket: Ticket);
}

/// The server; it runs until it is dropped. The drop waits for the responses that are being sent.
pub struct HttpServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    handler: Weak<dyn Handler>,
    tls: RwLock<Option<Arc<ServerConfig>>>,
    listener: RwLock<Arc<TcpListener>>,
    epoll: Epoll,
    bell: EventFd,
    next: AtomicU64,
    table: Mutex<HashMap<u64, Entry>>,
    workers: Workers,
}

struct Entry {
    connection: Connection,
    /// Whether a request of the connection waits for its response.
    waits: bool,
}

/// Sends the responses of waiting requests.
pub trait Responder: Send + Sync {
    /// Sends the response of a waiting request. Returns false if the client has disconnected.
    fn respond(&self, ticket: Ticket, response: ServerResponse) -> bool;
}

/// The means to respond to one request.
pub struct Exchange {
    shared: Arc<Shared>,
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
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        let shared = Arc::new(Shared {
            handler,
            tls: RwLock::new(tls),
            listener: RwLock::new(Arc::new(listener)),
            epoll,
            bell,
            next: AtomicU64::new(FIRST),
            table: Mutex::default(),
            workers: Workers::default(),
        });
        let inner = Arc::clone(&shared);
        let thread = sync::spawn("agents", STACK, move || inner.listen())?;
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

    /// Accepts connections on another listening socket; open connections stay. Errors: no descriptors are left.
    pub fn set_listener(&self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let mut current = self.shared.listener.write().unwrap_or_else(PoisonError::into_inner);
        self.shared.epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        self.shared.epoll.delete(&**current)?;
        *current = Arc::new(listener);
        Ok(())
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
struct WaitingRequests(Arc<Shared>);

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
        self.0.workers.put(ConnectionTask::Respond { shared, ticket, connection: entry.connection, response });
        true
    }
}

impl Exchange {
    /// Sends the response.
    pub fn respond(mut self, response: &ServerResponse) {
        if self.connection.write(response, Instant::now() + TIMEOUT).is_ok() {
            self.shared.keep(self.number, self.connection);
        }
    }

    /// Lets the request wait for its response. The client may disconnect before the ticket is used: the server then
    /// calls [`Handler::gone`].
    pub fn wait(self) -> Ticket {
        let ticket = Ticket(self.number);
        self.shared.insert(self.number, Entry { connection: self.connection, waits: true });
        ticket
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        sync::lock(&self.table)
    }

    fn handler(&self) -> Option<Arc<dyn Handler>> {
        self.handler.upgrade()
    }

    /// Accepts connections, and passes those with data to the workers.
    fn listen(self: Arc<Self>) {
        let mut events = [EpollEvent::empty(); 64];
        let mut swept = Instant::now();
        loop {
            let timeout = EpollTimeout::try_from(SWEEP).unwrap_or(EpollTimeout::NONE);
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => {
                    log::error!("cannot wait for connections of agents error={error}");
                    return;
                }
            };
            for event in &events[..count] {
                match event.data() {
                    BELL => return,
                    LISTENER => self.accept(),
                    number => self.wake(number),
                }
            }
            if swept.elapsed() >= SWEEP {
                swept = Instant::now();
                self.sweep();
            }
        }
    }

    fn listener(&self) -> Arc<TcpListener> {
        Arc::clone(&self.listener.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn accept(self: &Arc<Self>) {
        let listener = self.listener();
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_passing(&error) => continue,
                Err(error) => {
                    log::warn!("cannot accept an agent's connection error={error}");
                    // No descriptors may be left. Meanwhile connections wait in the kernel's queue.
                    thread::sleep(Duration::from_millis(100));
                    return;
                }
            };
            if self.lock().len() >= CONNECTIONS {
                log::warn!("connection refused: too many agents connections={CONNECTIONS}");
                continue;
            }
            let tls = self.tls.read().unwrap_or_else(PoisonError::into_inner).clone();
            match Connection::new(stream, tls) {
                Ok(connection) => {
                    let number = self.next.fetch_add(1, Ordering::Relaxed);
                    self.insert(number, Entry { connection, waits: false });
                }
                Err(error) => log::debug!("connection refused error={error}"),
            }
        }
    }

    /// Waits until the connection has data. Under the table's lock, so that the entry exists when the event arrives.
    fn insert(&self, number: u64, entry: Entry) {
        let mut table = self.lock();
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLONESHOT;
        let mut event = EpollEvent::new(flags, number);
        let armed = match self.epoll.modify(&entry.connection, &mut event) {
            Err(nix::errno::Errno::ENOENT) => self.epoll.add(&entry.connection, event),
            armed => armed,
        };
        match armed {
            Ok(()) => drop(table.insert(number, entry)),
            Err(error) => log::warn!("cannot watch the connection of an agent error={error}"),
        }
    }

    /// Handles a connection that has become readable.
    fn wake(self: &Arc<Self>, number: u64) {
        let Some(entry) = self.lock().remove(&number) else { return };
        match entry.waits {
            // A client that waits for a response sends nothing, so it has closed the connection.
            true => {
                drop(entry);
                if let Some(handler) = self.handler() {
                    handler.gone(Ticket(number));
                }
            }
            false => {
                let (shared, connection) = (Arc::clone(self), entry.connection);
                self.workers.put(ConnectionTask::Serve { shared, number, connection });
            }
        }
    }

    fn sweep(&self) {
        let now = Instant::now();
        let mut unused = Vec::new();
        let mut table = self.lock();
        let numbers: Vec<u64> = table
            .iter()
            .filter(|(_, entry)| !entry.waits && entry.connection.is_overdue(now))
            .map(|(number, _)| *number)
            .collect();
        unused.extend(numbers.iter().filter_map(|number| table.remove(number)));
        drop(table);
        unused.into_iter().for_each(|entry| entry.connection.close());
    }

    /// Closes the connections without a request in progress, and waits for the other responses: an agent must learn that it
    /// has a job before this process ends.
    fn stop(&self) {
        let entries: Vec<Entry> = self.lock().drain().map(|(_, entry)| entry).collect();
        entries.into_iter().for_each(|entry| entry.connection.close());
        self.workers.stop(TIMEOUT);
    }

    /// Reads one request and passes it to the handler. If it is incomplete, the connection waits for the rest.
    fn serve(self: Arc<Self>, number: u64, mut connection: Connection) {
        match connection.read() {
            Err(NoRequest::Incomplete) => self.insert(number, Entry { connection, waits: false }),
            Ok(request) => {
                let Some(handler) = self.handler() else { return connection.close() };
                handler.handle(request, Exchange { shared: self, number, connection });
            }
            Err(NoRequest::Refused(status, why)) => {
                let _ = connection.write(&ServerResponse::message(status, why), Instant::now() + TIMEOUT);
                connection.close();
            }
            Err(NoRequest::Gone(error)) => log::debug!("connection closed error={error}"),
        }
    }

    /// Sends the response of a request that waited.
    fn send(self: Arc<Self>, ticket: Ticket, mut connection: Connection, response: &ServerResponse) {
        match connection.write(response, Instant::now() + TIMEOUT) {
            Ok(()) => self.keep(ticket.0, connection),
            Err(error) => {
                log::debug!("cannot send a response error={error}");
                if let Some(handler) = self.handler() {
                    handler.gone(ticket);
                }
            }
        }
    }

    /// Waits for the next request of a connection.
    fn keep(self: &Arc<Self>, number: u64, mut connection: Connection) {
        if !connection.is_kept() {
            return connection.close();
        }
        if connection.has_more() {
            let shared = Arc::clone(self);
            return self.workers.put(ConnectionTask::Serve { shared, number, connection });
        }
        // A number identifies one request: a late response to the last request must not be sent to the next.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.insert(number, Entry { connection, waits: false });
    }
}

/// Whether the error is temporary: the client has disconnected already, or a signal interrupted the call.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
