//! Notifies the service manager (sd_notify(3)): ready, reloading, stopping, status and watchdog. Does nothing without a
//! service manager.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::sys;

/// The variable with the address of the notification socket.
const SOCKET: &str = "NOTIFY_SOCKET";
/// The variable with the timeout of the watchdog in microseconds.
const WATCHDOG: &str = "WATCHDOG_USEC";
/// The variable with the id of the process whose pings the watchdog expects.
const WATCHDOG_PROCESS: &str = "WATCHDOG_PID";

/// Timeout of a notification.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The service manager, if one started the agent.
pub struct ServiceManager {
    /// The variables of the service manager, for the new program after a hand-over.
    given: Vec<(&'static str, OsString)>,
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// Interval of the watchdog pings.
    watchdog_interval: Option<Duration>,
    last_ping: Option<Instant>,
    status: String,
}

impl ServiceManager {
    /// Takes the variables of the service manager out of the environment, so that no child process can notify in the
    /// agent's name. Call it before the first thread starts.
    pub fn from_environment() -> Self {
        let take = |name: &'static str| sys::take_variable(name).map(|value| (name, value));
        Self::new([SOCKET, WATCHDOG, WATCHDOG_PROCESS].into_iter().filter_map(take).collect())
    }

    fn new(given: Vec<(&'static str, OsString)>) -> Self {
        let value = |wanted: &str| given.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value);
        let number = |name: &str| value(name).and_then(|value| value.to_str()?.parse::<u64>().ok());
        let socket = value(SOCKET).and_then(|address| {
            let opened = open(address.as_bytes());
            let unusable = |error: &_| {
                log::warn!("cannot notify the service manager {SOCKET}={address:?} error={error}");
            };
            opened.inspect_err(unusable).ok()
        });
        let ours = number(WATCHDOG_PROCESS).is_none_or(|process| process == u64::from(process::id()));
        let interval = number(WATCHDOG).filter(|limit| *limit > 0 && ours && socket.is_some());
        let interval = interval.map(|limit| Duration::from_micros(limit) / 2);
        Self { given, socket, watchdog_interval: interval, last_ping: None, status: String::new() }
    }

    /// The variables that the program needs after a hand-over.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, &OsString)> {
        self.given.iter().map(|(name, value)| (*name, value))
    }

    /// Notifies that the agent is ready.
    pub fn ready(&mut self) {
        // The message contains the process id, because a wrapper may have started the agent.
        self.send(&format!("READY=1\nMAINPID={}", process::id()));
    }

    /// Notifies that the agent reloads. The caller calls [`ServiceManager::ready`] afterwards.
    pub fn reloading(&mut self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap_or_else(|_| Duration::ZERO.into());
        let microseconds = Duration::from(now).as_micros();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// Notifies that the agent exits. The agent does not send this while it waits for its last jobs, because
    /// `TimeoutStopSec` counts from this notification.
    pub fn stopping(&mut self) {
        self.send("STOPPING=1");
    }

    /// Returns a function for a process that a stop signal ends during its start. It sends `READY=1` and `STOPPING=1`,
    /// because systemd counts an exit before `READY=1` as a failure and would start the process again.
    pub fn exit_notifier(&self) -> impl Fn() + Send + Sync + 'static {
        let socket =
            self.socket.as_ref().and_then(|(socket, address)| Some((socket.try_clone().ok()?, address.clone())));
        move || send(socket.as_ref(), "READY=1\nSTOPPING=1")
    }

    /// Sets the status text; sent if it changed.
    pub fn status(&mut self, status: &str) {
        if self.socket.is_some() && self.status != status {
            status.clone_into(&mut self.status);
            self.send(&format!("STATUS={status}"));
        }
    }

    /// Pings the watchdog if half of its timeout has passed. Returns the time until the next ping; `None` without a
    /// watchdog.
    pub fn ping_watchdog(&mut self) -> Option<Duration> {
        let interval = self.watchdog_interval?;
        let since = self.last_ping.map(|last| last.elapsed());
        if let Some(left) = since.and_then(|since| interval.checked_sub(since)).filter(|left| !left.is_zero()) {
            return Some(left);
        }
        self.last_ping = Some(Instant::now());
        self.send("WATCHDOG=1");
        Some(interval)
    }

    fn send(&self, notice: &str) {
        send(self.socket.as_ref(), notice);
    }
}

fn send(socket: Option<&(UnixDatagram, SocketAddr)>, notice: &str) {
    let Some((socket, address)) = socket else { return };
    if let Err(error) = socket.send_to_addr(notice.as_bytes(), address) {
        log::warn!("cannot notify the service manager notification={notice:?} error={error}");
    }
}

/// Opens a socket to a path or to an abstract address (`@`). It stays unconnected, because the service manager may
/// recreate its socket.
fn open(address: &[u8]) -> std::io::Result<(UnixDatagram, SocketAddr)> {
    let address = match address {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(address))?,
        _ => return Err(std::io::Error::other("neither a path nor an abstract address")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(address: &SocketAddr) -> UnixDatagram {
        let socket = UnixDatagram::bind_addr(address).expect("bind the address");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set the timeout");
        socket
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).expect("a notice");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    fn service_manager(socket: &str, limit: &str, process: &str) -> ServiceManager {
        ServiceManager::new(vec![(SOCKET, socket.into()), (WATCHDOG, limit.into()), (WATCHDOG_PROCESS, process.into())])
    }

    #[test]
    fn notifies_a_socket_by_path_or_abstract_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let name = format!("mayfly-test-{}", process::id());
        for (given, address) in [
            (path.display().to_string(), SocketAddr::from_pathname(&path).expect("an address")),
            (format!("@{name}"), SocketAddr::from_abstract_name(name).expect("an address")),
        ] {
            let socket = listen(&address);
            let mut service_manager = service_manager(&given, "0", "0");
            service_manager.ready();
            assert_eq!(received(&socket), format!("READY=1\nMAINPID={}", process::id()));
            service_manager.status("idle");
            service_manager.status("idle");
            service_manager.reloading();
            assert_eq!(received(&socket), "STATUS=idle");
            assert!(received(&socket).starts_with("RELOADING=1\nMONOTONIC_USEC="));
            service_manager.stopping();
            assert_eq!(received(&socket), "STOPPING=1");
            assert_eq!(service_manager.ping_watchdog(), None, "there is no watchdog");
            assert_eq!(service_manager.variables().count(), 3);
        }
    }

    #[test]
    fn the_watchdog_is_pinged_at_half_its_timeout_and_only_by_its_process() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let socket = listen(&SocketAddr::from_pathname(&path).expect("an address"));
        let path = path.display().to_string();
        let ours = process::id().to_string();
        let mut watched = service_manager(&path, "60000000", &ours);
        assert_eq!(watched.ping_watchdog(), Some(Duration::from_secs(30)));
        assert!(
            watched.ping_watchdog().expect("ping the watchdog") <= Duration::from_secs(30),
            "the last ping is recent"
        );
        watched.stopping();
        assert_eq!([received(&socket), received(&socket)], ["WATCHDOG=1", "STOPPING=1"]);
        assert_eq!(service_manager(&path, "60000000", "1").ping_watchdog(), None);
        assert_eq!(service_manager("nonsense", "60000000", &ours).ping_watchdog(), None);
        let unused = format!("{path}-unused");
        service_manager(&unused, "60000000", &ours).stopping();
    }
}
