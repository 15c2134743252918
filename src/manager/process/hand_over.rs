//! Replaces the process by the program file on disk (SIGUSR2). The state is in the store, the socket for agents stays
//! open, and the agents reconnect.
//!
//! The new program first validates the configuration. If that fails, the manager keeps running: otherwise an invalid
//! file would end it at an upgrade.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::{LISTENER_VARIABLE, Manager, POLL_TIMEOUT};
use crate::agent::hand_over::{program, validate};
use crate::agent::service_manager::ServiceManager;
use crate::agent::signals;
use crate::config::{self, Config, Role};
use crate::manager::broker::Broker;
use crate::{sync, sys};

/// The interval between two pings of systemd's watchdog while the main loop waits here.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// The stack size of the thread that validates.
const VALIDATION_STACK: usize = 256 << 10;

/// Lets the new program validate the configuration. This runs in a thread, because it can take longer than systemd's
/// watchdog allows. Errors: why the new program cannot start.
fn validate_in_thread(program: &Path, service_manager: &mut ServiceManager) -> Result<(), String> {
    let (sender, result) = mpsc::channel();
    let path = program.to_owned();
    sync::spawn("validation", VALIDATION_STACK, move || sender.send(validate(&path)))
        .map_err(|error| format!("it cannot be validated: no thread: {error}"))?;
    loop {
        match result.recv_timeout(PING_INTERVAL) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Timeout) => drop(service_manager.ping_watchdog()),
            Err(RecvTimeoutError::Disconnected) => return Err("its validation panicked".to_owned()),
        }
    }
}

impl Manager {
    /// Replaces the process by the program file on disk, unless that cannot start.
    pub(super) fn hand_over(&mut self, service_manager: &mut ServiceManager) {
        let program = program();
        if let Err(why) = validate_in_thread(&program, service_manager).and_then(|()| self.check_state_dir()) {
            log::error!(
                "hand-over refused: the new program cannot start with this configuration; continuing with the old one \
                 path={} error={why}",
                program.display()
            );
            return;
        }
        log::info!("handing over to the new program on disk path={}", program.display());
        let mut brokers: Vec<Arc<Broker>> = self.pools().iter().map(|pool| Arc::clone(&pool.broker)).collect();
        brokers.iter().for_each(|broker| broker.close());
        let current = brokers.len();
        brokers.extend(self.retired.iter().map(|pool| Arc::clone(&pool.broker)));
        let until = Instant::now() + POLL_TIMEOUT;
        for broker in &brokers {
            while !broker.wait_for_polls(until.min(Instant::now() + PING_INTERVAL)) && Instant::now() < until {
                service_manager.ping_watchdog();
            }
        }
        let error = self.exec(&program, service_manager);
        log::error!(
            "cannot start the new program on disk; continuing with this one path={} error={error}",
            program.display()
        );
        brokers[..current].iter().for_each(|broker| broker.open());
    }

    /// Checks that the new program finds the jobs. Errors: `state_dir` has changed since this manager started.
    fn check_state_dir(&self) -> Result<(), String> {
        let loaded = Config::load_as(&self.options.config, Role::Manager).map_err(|error| error.to_string())?;
        let manager = loaded.config.mayfly.manager.as_ref().ok_or("there is no [mayfly.manager]")?;
        let next = config::manager_state_dir(&loaded.config, manager);
        match next == self.state_dir {
            true => Ok(()),
            false => Err(format!(
                "`state_dir` is now {}, but the held jobs are in {}; restart the manager when it holds none",
                next.display(),
                self.state_dir.display()
            )),
        }
    }

    /// Returns only if the new program cannot be started.
    fn exec(&self, program: &Path, service_manager: &ServiceManager) -> std::io::Error {
        let socket = self.server.listener();
        if let Err(error) = fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty())) {
            return error.into();
        }
        let mut next = std::process::Command::new(program);
        next.args(std::env::args_os().skip(1)).envs(service_manager.variables());
        next.env(LISTENER_VARIABLE, socket.as_raw_fd().to_string());
        let error = sys::exec_with_blocked(next, signals::handled());
        let _ = fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        error
    }
}
