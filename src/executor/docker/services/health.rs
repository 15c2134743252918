//! Health of services: the agent itself connects to their ports, at the container's address.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::super::engine::DockerEngine;
use super::super::engine::containers::Container;
use super::{MAX_OUTPUT, RunningService, ServiceStarter, log};
use crate::backoff::Backoff;
use crate::failure::JobError;
use crate::sync::{self, StopSignal};
use crate::trace::colours::{RESET, YELLOW};

/// The number of ports of a service that are tried.
const MAX_PORTS: usize = 20;
/// The timeout of one connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The delay between two checks: the first and the longest.
const CHECK_INTERVAL: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
/// The variable that names the port to check.
const PORT_VARIABLE: &str = "HEALTHCHECK_TCP_PORT=";

/// The health of a service.
#[derive(Debug, PartialEq, Eq)]
enum ServiceHealth {
    /// It accepts connections, or its image's health check succeeds.
    Up,
    /// It cannot be checked, for this reason.
    Unknown(&'static str),
    /// It is not up, for this reason.
    Down(String),
}

/// Threads that check services, and their stop signal.
struct HealthWaiter {
    stop: StopSignal,
    /// Signalled after each result.
    checked: EventFd,
    until: Instant,
}

impl ServiceStarter<'_> {
    /// Waits until services are up. A service that does not come up is reported with its output, and the job continues.
    /// Fails if the job must stop.
    pub fn wait(&self, services: &[RunningService]) -> Result<(), JobError> {
        let Some(timeout) = self.docker.services_timeout().filter(|_| !services.is_empty()) else {
            return Ok(());
        };
        let seconds = timeout.as_secs();
        self.console.line(&format!("Waiting for services to be up and running (timeout {seconds} seconds)..."));
        let waiter = HealthWaiter::new(timeout).map_err(|error| JobError::system(format!("cannot wait: {error}")))?;
        let results = thread::scope(|scope| {
            let start_check = |service| {
                let (waiter, engine) = (&waiter, &**self.engine);
                let body = move || {
                    let health = waiter.wait_until_decided(engine, service);
                    let _ = waiter.checked.write(1);
                    health
                };
                sync::spawn_scoped(scope, "service-wait", 256 * 1024, body)
            };
            let threads: Vec<_> = services.iter().map(start_check).collect();
            let are_done = || threads.iter().all(|thread| thread.as_ref().is_ok_and(|thread| thread.is_finished()));
            let waited = loop {
                let left = waiter.until.saturating_duration_since(Instant::now());
                if are_done() || left.is_zero() {
                    break Ok(());
                }
                match self.console.wait(Some(waiter.checked.as_fd()), left) {
                    Ok(_) => drop(waiter.checked.read()),
                    Err(error) => break Err(error),
                }
            };
            waiter.stop.stop();
            let joined = threads.into_iter().map(|thread| match thread.map(thread::ScopedJoinHandle::join) {
                Ok(Ok(health)) => health,
                _ => ServiceHealth::Down("cannot start a thread to check it".to_owned()),
            });
            let results: Vec<ServiceHealth> = joined.collect();
            waited.map(|()| results)
        })?;
        services.iter().zip(&results).for_each(|(service, health)| self.report(service, health));
        Ok(())
    }

    fn report(&self, service: &RunningService, health: &ServiceHealth) {
        match health {
            ServiceHealth::Up => {}
            ServiceHealth::Unknown(why) => {
                self.console.line(&format!("Not waiting for service {}: {why}", service.name));
            }
            ServiceHealth::Down(why) => {
                let name = &service.name;
                self.console
                    .line(&format!("{YELLOW}*** WARNING: Service {name} probably didn't start properly.{RESET}"));
                self.console.line(&format!("Health check error: {why}"));
                self.show_output(service);
                self.console.line("*********");
            }
        }
    }

    /// Shows the output of a service, to explain why it does not work.
    pub(super) fn show_output(&self, service: &RunningService) {
        match self.engine.logs(&service.id, MAX_OUTPUT) {
            Ok(frames) => {
                self.console.line("Service container logs:");
                log::text(&frames).lines().for_each(|line| self.console.line(line));
            }
            Err(error) => self.console.line(&format!("Cannot read the service container logs: {error}")),
        }
    }
}

impl HealthWaiter {
    fn new(timeout: Duration) -> io::Result<Self> {
        let checked = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { stop: StopSignal::default(), checked, until: Instant::now() + timeout })
    }

    /// Checks a service until its health is known.
    fn wait_until_decided(&self, engine: &DockerEngine, service: &RunningService) -> ServiceHealth {
        let mut checks = 0;
        loop {
            let container = match engine.container(&service.id) {
                Ok(container) => container,
                Err(error) => return ServiceHealth::Down(error.to_string()),
            };
            let why = match check(&container, &service.address, &|| self.is_over()) {
                HealthCheck::Decided(health) => return health,
                HealthCheck::Undecided(why) => why,
            };
            let left = self.until.saturating_duration_since(Instant::now());
            self.stop.wait(CHECK_INTERVAL.delay(checks).min(left));
            if self.is_over() {
                return ServiceHealth::Down(why);
            }
            checks += 1;
        }
    }

    /// Whether the deadline has passed or the checks were stopped.
    fn is_over(&self) -> bool {
        self.stop.is_set() || Instant::now() >= self.until
    }
}

/// The result of one check.
enum HealthCheck {
    Decided(ServiceHealth),
    Undecided(String),
}

/// Checks a service once. `is_over` ends the check of further ports, each of which may take [`CONNECT_TIMEOUT`].
fn check(container: &Container, address: &str, is_over: &dyn Fn() -> bool) -> HealthCheck {
    let state = &container.state;
    if !state.running {
        return HealthCheck::Decided(ServiceHealth::Down(format!(
            "the container exited with code {}",
            state.exit_code
        )));
    }
    // Without a health check Docker has no status or `none`, and Podman an empty one.
    let health = state.health.as_ref().map(|health| health.status.as_str());
    let health = health.filter(|status| !matches!(*status, "" | "none"));
    if health == Some("healthy") {
        return HealthCheck::Decided(ServiceHealth::Up);
    }
    let ports = ports(container);
    let address: Option<IpAddr> = address.parse().ok();
    match (address, ports.is_empty(), health) {
        (Some(address), false, _) => try_ports(address, &ports, is_over),
        (_, _, Some(status)) => HealthCheck::Undecided(format!("its health check reports `{status}`")),
        (_, true, _) => {
            HealthCheck::Decided(ServiceHealth::Unknown("its image exposes no port and has no health check"))
        }
        (None, ..) => HealthCheck::Decided(ServiceHealth::Unknown("it has no IP address")),
    }
}

fn try_ports(address: IpAddr, ports: &[u16], is_over: &dyn Fn() -> bool) -> HealthCheck {
    let mut last = String::new();
    for port in ports {
        match TcpStream::connect_timeout(&SocketAddr::new(address, *port), CONNECT_TIMEOUT) {
            Ok(_) => return HealthCheck::Decided(ServiceHealth::Up),
            Err(error) => last = format!("no connection to port {port} of {address}: {error}"),
        }
        if is_over() {
            break;
        }
    }
    HealthCheck::Undecided(last)
}

/// The port that the environment names, else the lowest exposed ports.
fn ports(container: &Container) -> Vec<u16> {
    let named = container.config.env.iter().find_map(|variable| variable.strip_prefix(PORT_VARIABLE)?.parse().ok());
    if let Some(port) = named {
        return vec![port];
    }
    let exposed = container.config.exposed_ports.keys().filter_map(|text| match text.split_once('/') {
        Some((port, "tcp")) => port.parse().ok(),
        None => text.parse().ok(),
        Some(_) => None,
    });
    let mut ports: Vec<u16> = exposed.collect();
    ports.sort_unstable();
    ports.truncate(MAX_PORTS);
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn container(text: &str) -> Container {
        serde_json::from_str(text).expect("a container")
    }

    #[test]
    fn selects_the_named_port_or_the_lowest_exposed_ones() {
        let exposed =
            container(r#"{"Config": {"ExposedPorts": {"443/tcp": {}, "80/tcp": {}, "53/udp": {}, "9": {}}}}"#);
        assert_eq!(ports(&exposed), [9, 80, 443]);
        let named = r#"{"Config": {"Env": ["A=1", "HEALTHCHECK_TCP_PORT=8080"], "ExposedPorts": {"80/tcp": {}}}}"#;
        assert_eq!(ports(&container(named)), [8080]);
        let nonsense = r#"{"Config": {"Env": ["HEALTHCHECK_TCP_PORT=x"], "ExposedPorts": null}}"#;
        assert!(ports(&container(nonsense)).is_empty());
        let many: Vec<String> = (1..100).map(|port| format!("\"{port}/tcp\": {{}}")).collect();
        let many = container(&format!("{{\"Config\": {{\"ExposedPorts\": {{{}}}}}}}", many.join(",")));
        assert_eq!(ports(&many).len(), MAX_PORTS);
    }

    #[test]
    fn one_check_gives_the_health_if_it_is_known() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let open = listener.local_addr().expect("an address").port();
        let running = |config: &str, health: &str| {
            container(&format!("{{\"State\": {{\"Running\": true {health}}}, \"Config\": {{{config}}}}}"))
        };
        let exposing = |port: u16| format!("\"ExposedPorts\": {{\"{port}/tcp\": {{}}}}");
        let decided = |container: Container, address: &str| match check(&container, address, &|| false) {
            HealthCheck::Decided(health) => Some(health),
            HealthCheck::Undecided(_) => None,
        };
        assert_eq!(decided(running(&exposing(open), ""), "127.0.0.1"), Some(ServiceHealth::Up));
        assert_eq!(decided(running(&exposing(1), ""), "127.0.0.1"), None);
        let (starting, healthy) = (",\"Health\": {\"Status\": \"starting\"}", ",\"Health\": {\"Status\": \"healthy\"}");
        assert_eq!(decided(running("", starting), "127.0.0.1"), None);
        assert_eq!(decided(running(&exposing(1), healthy), "127.0.0.1"), Some(ServiceHealth::Up));
        for none in ["", ",\"Health\": {\"Status\": \"\"}", ",\"Health\": {\"Status\": \"none\"}"] {
            assert!(matches!(decided(running("", none), "127.0.0.1"), Some(ServiceHealth::Unknown(_))), "{none}");
        }
        assert!(matches!(decided(running(&exposing(open), ""), ""), Some(ServiceHealth::Unknown(_))));
        let ended = container(r#"{"State": {"Running": false, "ExitCode": 3}}"#);
        assert!(matches!(decided(ended, "127.0.0.1"), Some(ServiceHealth::Down(why)) if why.contains("code 3")));
    }

    #[test]
    fn a_stop_ends_the_check_after_the_current_port() {
        let running = container(
            r#"{"State": {"Running": true}, "Config": {"ExposedPorts": {"1/tcp": {}, "2/tcp": {}, "3/tcp": {}}}}"#,
        );
        let reason = |is_over: bool| match check(&running, "127.0.0.1", &|| is_over) {
            HealthCheck::Undecided(why) => why,
            HealthCheck::Decided(health) => panic!("the health must be unknown: {health:?}"),
        };
        assert!(reason(true).starts_with("no connection to port 1 "), "{}", reason(true));
        assert!(reason(false).starts_with("no connection to port 3 "), "{}", reason(false));
    }
}
