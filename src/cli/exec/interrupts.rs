//! SIGINT, SIGTERM and SIGHUP: a run that has started jobs stops them; at any other time, the process exits, and the
//! guard process cleans up.

use std::sync::Mutex;
use std::sync::mpsc::Sender;
use std::thread;

use nix::sys::signal::Signal;
use signal_hook::iterator::Signals;

use crate::local::results::RunStatus;
use crate::local::runner::RunEvent;
use crate::sync;
use crate::sys;

/// Whether the signal handlers are installed, and which run gets the interrupts.
struct InterruptState {
    is_installed: bool,
    /// The events of the current run.
    run: Option<Sender<RunEvent>>,
}

static STATE: Mutex<InterruptState> = Mutex::new(InterruptState { is_installed: false, run: None });

/// Installs the handlers, once per process.
pub fn install() -> Result<(), String> {
    let mut state = sync::lock(&STATE);
    if state.is_installed {
        return Ok(());
    }
    // `nohup` starts programs with SIGHUP ignored.
    let wanted = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter();
    let wanted = wanted.filter(|signal| *signal != Signal::SIGHUP || !sys::is_ignored(*signal));
    let mut signals = Signals::new(wanted.map(|signal| signal as i32))
        .map_err(|error| format!("cannot install a signal handler: {error}"))?;
    state.is_installed = true;
    thread::spawn(move || signals.forever().for_each(|_| deliver()));
    Ok(())
}

/// Sends interrupts to this run from now on.
pub fn forward(run: Sender<RunEvent>) {
    sync::lock(&STATE).run = Some(run);
}

fn deliver() {
    let run = sync::lock(&STATE).run.clone();
    if run.is_none_or(|run| run.send(RunEvent::Interrupt).is_err()) {
        std::process::exit(i32::from(RunStatus::Interrupted.exit_status()));
    }
}
