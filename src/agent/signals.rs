//! Signals as words. SIGQUIT drains; SIGTERM and SIGINT drain for `shutdown_timeout`, a second one ends at once;
//! SIGHUP reloads; SIGUSR2 hands over to the program file on disk.

use std::io;
use std::sync::mpsc::Sender;
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use signal_hook::iterator::Signals;

use super::Event;
use crate::sys;

const HANDLED: [Signal; 5] = [Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2];

/// What a signal asks the agent to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalRequest {
    /// Take no more jobs, finish those that run, leave.
    Drain,
    /// The same, but stop the jobs when `shutdown_timeout` is over; asked twice: at once.
    Stop,
    /// Read the configuration again.
    Reload,
    /// Replace the process by the program file on disk; jobs run on.
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

/// The signals that mean something to the agent.
pub fn handled() -> SigSet {
    HANDLED.into_iter().collect()
}

/// Starts the thread that turns signals into events, and lets those through that were held back while one program
/// became another. Errors: a handler could not be installed.
pub fn listen(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new(HANDLED.map(|signal| signal as i32))?;
    thread::Builder::new().name("signals".to_owned()).stack_size(super::STACK).spawn(move || {
        for signal in signals.forever() {
            let Some(request) = SignalRequest::from_signal(signal) else { continue };
            if events.send(Event::Signal(request)).is_err() {
                return;
            }
        }
    })?;
    sys::let_through(handled());
    Ok(())
}
