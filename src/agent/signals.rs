//! Signals as words. SIGQUIT drains; SIGTERM and SIGINT drain for `shutdown_timeout`, a second one ends at once;
//! SIGHUP reloads; SIGUSR2 hands over to the program file on disk.

use std::io;
use std::sync::mpsc::Sender;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;

use super::Event;

/// What a signal asks the agent to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Take no more jobs, finish those that run, leave.
    Drain,
    /// The same, but stop the jobs when `shutdown_timeout` is over; asked twice: at once.
    Stop,
    /// Read the configuration again.
    Reload,
    /// Replace the process by the program file on disk; jobs run on.
    HandOver,
}

impl Request {
    fn of(signal: i32) -> Option<Self> {
        match signal {
            SIGQUIT => Some(Self::Drain),
            SIGTERM | SIGINT => Some(Self::Stop),
            SIGHUP => Some(Self::Reload),
            SIGUSR2 => Some(Self::HandOver),
            _ => None,
        }
    }
}

/// Starts the thread that turns signals into events. Errors: a handler could not be installed.
pub fn listen(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGQUIT, SIGTERM, SIGINT, SIGHUP, SIGUSR2])?;
    thread::Builder::new().name("signals".to_owned()).stack_size(super::STACK).spawn(move || {
        for signal in signals.forever() {
            let Some(request) = Request::of(signal) else { continue };
            if events.send(Event::Signal(request)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}
