//! Ports on loopback for servers that start later, or more than once.

use std::net::{TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Ports that Linux gives neither to clients nor to servers that ask for any port: they are below
/// `net.ipv4.ip_local_port_range`, which begins at 32768. So nothing takes such a port before its server starts, or
/// while its server restarts.
const PORTS: Range<u16> = 20_200..32_000;

/// The ports of this process. A UDP socket reserves each one among concurrent test runs until the process ends.
static RESERVED: Mutex<Vec<(u16, UdpSocket)>> = Mutex::new(Vec::new());

/// A port of `127.0.0.1` that no other test gets.
pub fn free_port() -> u16 {
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    // Each process begins elsewhere, so that it rarely finds the ports of another one.
    let next = reserved.last().map_or(std::process::id() as usize * 97, |(port, _)| usize::from(*port) + 1);
    let count = PORTS.len();
    for step in 0..count {
        let port = PORTS.start + ((next + step + count - usize::from(PORTS.start) % count) % count) as u16;
        let Ok(reservation) = UdpSocket::bind(("127.0.0.1", port)) else { continue };
        // A server of another program may use the port.
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            reserved.push((port, reservation));
            return port;
        }
    }
    panic!("all ports from {} to {} are in use", PORTS.start, PORTS.end);
}

/// An address with such a port.
pub fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}
