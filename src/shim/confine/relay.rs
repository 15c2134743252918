//! The relay between a sandboxed task and servers: a process outside of the sandbox that opens connections for the
//! task.
//!
//! It listens on the loopback interface of the task's network namespace (SOCKS 5, RFC 1928). It resolves names and
//! checks addresses for every connection, also after a redirect, so that neither DNS rebinding nor a program of the job
//! can reach the machine's loopback or link-local addresses, which hand out the instance's credentials.

mod addresses;
mod connect;
mod socks;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use self::socks::Reply;
use super::{calls, identity};
use crate::shim::spec::NetworkAccess;
use crate::sync;
use crate::sys;

/// The address of the relay in the network namespace of the task.
pub const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1080);

/// Maximum number of connections.
const MAX_CONNECTIONS: usize = 256;
/// Timeout of the client's request and of the connection to a server.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes copied at a time.
const COPY_SIZE: usize = 64 * 1024;

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
    let is_unprivileged = identity::become_confined(Some(uid), None).is_ok() && set_no_new_privs().is_ok();
    // A change of the user clears this signal, so it is set again.
    let _ = set_pdeathsig(Signal::SIGKILL);
    // An error is ignored: the sandbox test reports a kernel without seccomp.
    let _ = calls::restrict();
    if is_unprivileged {
        serve(listeners, network.clone());
    }
    sys::exit_now(1)
}

fn serve(listeners: Listeners, network: NetworkAccess) {
    let (network, count) = (Arc::new(network), Arc::new(AtomicUsize::new(0)));
    for (listener, host, port) in listeners.loopback {
        let (network, count) = (Arc::clone(&network), Arc::clone(&count));
        let connect = move |client| serve_loopback(client, &host, port, &network);
        // Without this thread, the task reaches the server only through SOCKS.
        let _ = spawn(move || accept(&listener, &count, connect));
    }
    accept(&listeners.socks, &count, move |client| serve_socks(client, &network));
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
        if count.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
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

fn serve_loopback(client: TcpStream, host: &str, port: u16, network: &NetworkAccess) -> io::Result<()> {
    client.set_nodelay(true)?;
    let server =
        connect::directly(host, port, network).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
    copy_both(client, server)
}

fn serve_socks(mut client: TcpStream, network: &NetworkAccess) -> io::Result<()> {
    client.set_read_timeout(Some(IDLE_TIMEOUT))?;
    client.set_nodelay(true)?;
    let (host, port) = socks::read_request(&mut client)?;
    let server = match connect::through_proxy(&host, port, network) {
        Ok(server) => server,
        Err(reply) => return socks::write_reply(&mut client, reply),
    };
    socks::write_reply(&mut client, Reply::Succeeded)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_hosts_of_the_configuration_get_a_listener() {
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "::1"] {
            assert!(loopback_address(host).is_some(), "{host}");
        }
        for host in ["gitlab.test", "10.0.0.1", "0.0.0.0", "localhost.test", "169.254.169.254", ""] {
            assert!(loopback_address(host).is_none(), "{host}");
        }
    }
}
