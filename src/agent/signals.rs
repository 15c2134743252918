//! The signals of the agent. SIGQUIT drains. SIGTERM and SIGINT drain for `shutdown_timeout`; a second one exits at
//! once. SIGHUP reloads. SIGUSR2 hands over to the program file on disk.

use std::io;
use std::sync::{Arc, Mutex};

use nix::sys::signal::{SigSet, Signal};
use signal_hook::iterator::Signals;

use crate::sync;
use crate::sys;

const HANDLED: [Signal; 5] = [Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2];

/// The action that a signal requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalRequest {
    /// Stop polling, complete the running jobs, exit.
    Drain,
    /// Drain, but stop the jobs after `shutdown_timeout`. The second request exits at once.
    Stop,
    /// Reload the configuration.
    Reload,
    /// Replace the process by the program file on disk; jobs keep running.
    HandOver,
}

impl SignalRequest {
    fn from_signal(signal: i32) -> Option<Self> {
        match Signal::try_from(signal).ok()? {
            Signal::SIGQUIT => Some(Self::Drain),
            Signal::SIGTERM | Signal::SIGINT => Some(Self::Stop),
            Signal::SIGHUP => Some(Self::Reload),
            Signal::SIGUSR2 => Some(Self::HandOver),
            _ => None,
        }
    }
}

/// The phase from the start of the process to its main loop. A stop signal in this phase ends the process at once,
/// because the start may wait minutes for AWS and the process has no job yet. A process that resumes jobs must call
/// [`StartPhase::end`] before [`listen`].
#[derive(Clone)]
pub struct StartPhase {
    is_over: Arc<Mutex<bool>>,
    notify_exit: Arc<dyn Fn() + Send + Sync>,
}

impl StartPhase {
    /// Begins the start. `notify_exit` tells the service manager that the process exits by request.
    pub fn begin(notify_exit: impl Fn() + Send + Sync + 'static) -> Self {
        Self { is_over: Arc::default(), notify_exit: Arc::new(notify_exit) }
    }

    /// Ends the start: the main loop handles further stop signals.
    pub fn end(&self) {
        *sync::lock(&self.is_over) = true;
    }

    /// Exits if the request stops the process and the start phase has not ended. The lock prevents the phase from
    /// ending during the check.
    fn exit_if_stopped(&self, request: SignalRequest) {
        let is_over = sync::lock(&self.is_over);
        if !*is_over && matches!(request, SignalRequest::Stop | SignalRequest::Drain) {
            log::info!("stop signal received during the start; exiting now");
            (self.notify_exit)();
            std::process::exit(0);
        }
    }
}

/// The signals that the agent handles.
pub fn handled() -> SigSet {
    HANDLED.into_iter().collect()
}

/// Starts the thread that passes signals to `deliver`, until it returns false. Unblocks the signals, which were blocked
/// during a hand-over. Errors: a handler cannot be installed.
pub fn listen(start: &StartPhase, deliver: impl Fn(SignalRequest) -> bool + Send + 'static) -> io::Result<()> {
    let start = start.clone();
    let mut signals = Signals::new(HANDLED.map(|signal| signal as i32))?;
    sync::spawn("signals", super::STACK, move || {
        for signal in signals.forever() {
            let Some(request) = SignalRequest::from_signal(signal) else { continue };
            start.exit_if_stopped(request);
            if !deliver(request) {
                return;
            }
        }
    })?;
    sys::unblock(handled());
    Ok(())
}
