//! Actions of signals, and signals that stay pending across exec.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, Signal};

/// Restores the default action of a signal.
pub fn default_action(number: Signal) -> nix::Result<()> {
    // SAFETY: the default action is not a handler in this program.
    unsafe { nix::sys::signal::signal(number, SigHandler::SigDfl) }.map(drop)
}

/// Ignores a signal.
pub fn ignore(number: Signal) -> nix::Result<()> {
    // SAFETY: ignoring is not a handler in this program.
    unsafe { nix::sys::signal::signal(number, SigHandler::SigIgn) }.map(drop)
}

/// Whether the parent process has started this one with a signal ignored.
pub fn is_ignored(number: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, the call only writes the current one.
    let result = unsafe { libc::sigaction(number as libc::c_int, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all bits zero are a valid value, and the call writes another one.
    result == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Executes another program with these signals blocked. They stay pending until the program unblocks them with
/// [`unblock`]; an unblocked signal would kill the program before it can handle the signal. Returns only if the
/// program cannot be started.
pub fn exec_with_blocked(mut program: Command, signals: SigSet) -> io::Error {
    // SAFETY: there is no fork; before exec, one async-signal-safe call runs.
    unsafe { program.pre_exec(move || Ok(signals.thread_block()?)) };
    let error = program.exec();
    unblock(signals);
    error
}

/// Unblocks signals in this thread; pending ones are delivered at once.
pub fn unblock(signals: SigSet) {
    // Fails only for an invalid operation.
    let _ = signals.thread_unblock();
}

/// Exits on SIGTERM, also in the first process of a PID namespace, where the default action has no effect.
pub fn exit_on_term() -> nix::Result<()> {
    extern "C" fn exit(_: libc::c_int) {
        // SAFETY: async-signal-safe, and never returns.
        unsafe { libc::_exit(128 + libc::SIGTERM) }
    }
    // SAFETY: the handler calls nothing but _exit.
    unsafe { nix::sys::signal::signal(Signal::SIGTERM, SigHandler::Handler(exit)) }.map(drop)
}
