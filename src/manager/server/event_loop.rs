//! Waits for the connections of agents: accepts new ones, passes those with data to the workers, and closes those whose
//! client is too slow.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustls::ServerConfig;

use super::connection::{Connection, NoRequest};
use super::request::ServerResponse;
use super::workers::Workers;
use super::{Exchange, Handler, RESPONSE_TIMEOUT, Ticket};
use crate::monitor::address::listen_instead_of;
use crate::sync;

/// The pause after a connection could not be accepted, usually because no descriptors are left. Meanwhile connections
/// wait in the kernel's queue, and the open ones are served.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The interval of checks for unused and slow connections.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// The maximum number of connections.
const MAX_CONNECTIONS: usize = 8192;
/// Keys in the epoll set that do not belong to connections.
const LISTENER_KEY: u64 = 0;
const BELL_KEY: u64 = 1;
/// The key of the first connection.
const FIRST_CONNECTION_KEY: u64 = 2;

/// The connections of the server: those with data go to the workers, the others wait here.
pub(super) struct Connections {
    handler: Weak<dyn Handler>,
    pub(super) tls: RwLock<Option<Arc<ServerConfig>>>,
    listener: RwLock<Arc<TcpListener>>,
    epoll: Epoll,
    pub(super) bell: EventFd,
    next_number: AtomicU64,
    table: Mutex<HashMap<u64, Entry>>,
    pub(super) workers: Workers,
}

/// Whether the server accepts connections.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Accepting {
    Yes,
    /// The last connection could not be accepted.
    PausedSince(Instant),
}

pub(super) struct Entry {
    pub(super) connection: Connection,
    /// Whether a request of the connection waits for its response.
    pub(super) waits: bool,
}

impl Connections {
    /// Prepares the connections of a server with this listening socket. Errors: no descriptors or threads are left.
    pub(super) fn new(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        handler: Weak<dyn Handler>,
        max_threads: usize,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER_KEY))?;
        epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL_KEY))?;
        Ok(Self {
            handler,
            tls: RwLock::new(tls),
            listener: RwLock::new(Arc::new(listener)),
            epoll,
            bell,
            next_number: AtomicU64::new(FIRST_CONNECTION_KEY),
            table: Mutex::default(),
            workers: Workers::start(max_threads)?,
        })
    }

    /// Accepts connections at another address; open connections stay. Errors: the address cannot be used, or no
    /// descriptors are left; the current address stays in use.
    pub(super) fn listen_at(&self, address: &str) -> io::Result<()> {
        let current = self.listener();
        let next = listen_instead_of(&current, address, |listener| {
            listener.set_nonblocking(true)?;
            self.epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER_KEY))?;
            Ok(listener)
        })?;
        *self.listener.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        // The thread that accepts connections may still hold the socket.
        if let Err(error) = self.epoll.delete(&*current) {
            log::error!("cannot close the listening socket error={error}");
        }
        Ok(())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        sync::lock(&self.table)
    }

    fn handler(&self) -> Option<Arc<dyn Handler>> {
        self.handler.upgrade()
    }

    /// Accepts connections, and passes those with data to the workers, until the bell rings.
    pub(super) fn listen(self: Arc<Self>) {
        let mut swept = Instant::now();
        let mut accepting = Accepting::Yes;
        while let Some(ready) = self.wait_for_connections(accepting) {
            if let Accepting::PausedSince(since) = accepting
                && since.elapsed() >= ACCEPT_PAUSE
            {
                self.watch_listener(EpollFlags::EPOLLIN);
                accepting = Accepting::Yes;
            }
            for key in ready {
                match key {
                    BELL_KEY => return,
                    LISTENER_KEY => {
                        accepting = self.accept();
                        if accepting != Accepting::Yes {
                            self.watch_listener(EpollFlags::empty());
                        }
                    }
                    number => self.handle_readable(number),
                }
            }
            if swept.elapsed() >= SWEEP_INTERVAL {
                swept = Instant::now();
                self.sweep();
            }
        }
    }

    /// Waits for connections that are readable. Returns their keys; `None` if waiting is impossible.
    fn wait_for_connections(&self, accepting: Accepting) -> Option<Vec<u64>> {
        let mut events = [EpollEvent::empty(); 64];
        let timeout = if accepting == Accepting::Yes { SWEEP_INTERVAL } else { ACCEPT_PAUSE };
        let timeout = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::NONE);
        match self.epoll.wait(&mut events, timeout) {
            Ok(count) => Some(events[..count].iter().map(EpollEvent::data).collect()),
            Err(nix::errno::Errno::EINTR) => Some(Vec::new()),
            Err(error) => {
                log::error!("cannot wait for connections of agents error={error}");
                None
            }
        }
    }

    pub(super) fn listener(&self) -> Arc<TcpListener> {
        Arc::clone(&self.listener.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets the events of the listening socket that [`Connections::listen`] receives.
    fn watch_listener(&self, flags: EpollFlags) {
        let listener = self.listener.read().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.epoll.modify(&**listener, &mut EpollEvent::new(flags, LISTENER_KEY)) {
            log::error!("cannot wait for connections of agents error={error}");
        }
    }

    /// Accepts the connections in the kernel's queue.
    fn accept(&self) -> Accepting {
        let listener = self.listener();
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Accepting::Yes,
                Err(error) if is_temporary(&error) => continue,
                // The socket does not listen while `listen_at` tries another address.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    return Accepting::PausedSince(Instant::now());
                }
                Err(error) => {
                    log::warn!("cannot accept an agent's connection error={error}");
                    return Accepting::PausedSince(Instant::now());
                }
            };
            if self.lock().len() >= MAX_CONNECTIONS {
                log::warn!("connection refused: too many agents connections={MAX_CONNECTIONS}");
                continue;
            }
            let tls = self.tls.read().unwrap_or_else(PoisonError::into_inner).clone();
            match Connection::new(stream, tls) {
                Ok(connection) => {
                    let number = self.next_number.fetch_add(1, Ordering::Relaxed);
                    self.watch(number, Entry { connection, waits: false });
                }
                Err(error) => log::debug!("connection refused error={error}"),
            }
        }
    }

    /// Waits until the connection has data. This holds the table's lock, so that the entry exists when the event
    /// arrives.
    pub(super) fn watch(&self, number: u64, entry: Entry) {
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
    fn handle_readable(self: &Arc<Self>, number: u64) {
        let Some(entry) = self.lock().remove(&number) else { return };
        match entry.waits {
            // A client that waits for a response sends nothing, so it has closed the connection.
            true => {
                drop(entry);
                if let Some(handler) = self.handler() {
                    handler.handle_disconnect(Ticket(number));
                }
            }
            false => {
                let (shared, connection) = (Arc::clone(self), entry.connection);
                self.workers.put(move || shared.serve(number, connection));
            }
        }
    }

    /// Closes the connections whose client is too slow, or has sent no request for too long.
    fn sweep(&self) {
        let now = Instant::now();
        let mut table = self.lock();
        let overdue: Vec<u64> = table
            .iter()
            .filter(|(_, entry)| !entry.waits && entry.connection.is_overdue(now))
            .map(|(number, _)| *number)
            .collect();
        let overdue: Vec<Entry> = overdue.iter().filter_map(|number| table.remove(number)).collect();
        drop(table);
        overdue.into_iter().for_each(|entry| entry.connection.close());
    }

    /// Closes the connections in the table, and waits for the requests that are being handled: an agent must learn that
    /// it has a job before this process ends.
    pub(super) fn stop(&self) {
        let entries: Vec<Entry> = self.lock().drain().map(|(_, entry)| entry).collect();
        entries.into_iter().for_each(|entry| entry.connection.close());
        self.workers.stop(RESPONSE_TIMEOUT);
    }

    /// Reads one request and passes it to the handler. If it is incomplete, the connection waits for the rest.
    pub(super) fn serve(self: Arc<Self>, number: u64, mut connection: Connection) {
        match connection.read() {
            Err(NoRequest::Incomplete) => self.watch(number, Entry { connection, waits: false }),
            Ok(request) => {
                let Some(handler) = self.handler() else { return connection.close() };
                handler.handle(request, Exchange { shared: self, number, connection });
            }
            Err(NoRequest::Refused(status, why)) => {
                let _ = connection.write(&ServerResponse::message(status, why), Instant::now() + RESPONSE_TIMEOUT);
                connection.close();
            }
            Err(NoRequest::Gone(error)) => log::debug!("connection closed error={error}"),
        }
    }

    /// Sends the response of a request that waited.
    pub(super) fn send_response(
        self: Arc<Self>,
        ticket: Ticket,
        mut connection: Connection,
        response: &ServerResponse,
    ) {
        match connection.write(response, Instant::now() + RESPONSE_TIMEOUT) {
            Ok(()) => self.await_next_request(ticket.0, connection),
            Err(error) => {
                log::debug!("cannot send a response error={error}");
                if let Some(handler) = self.handler() {
                    handler.handle_disconnect(ticket);
                }
            }
        }
    }

    /// Waits for the next request of a connection, or closes it.
    pub(super) fn await_next_request(self: &Arc<Self>, number: u64, mut connection: Connection) {
        if !connection.is_kept() {
            return connection.close();
        }
        if connection.has_more() {
            let shared = Arc::clone(self);
            return self.workers.put(move || shared.serve(number, connection));
        }
        // A number identifies one request: a late response to the last request must not be sent to the next.
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        self.watch(number, Entry { connection, waits: false });
    }
}

/// Whether the error is temporary: the client has disconnected already, or a signal interrupted the call.
fn is_temporary(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
