//! System calls, most of which `nix` lacks, each behind a small safe function. This module uses no other module.
#![allow(unsafe_code)]

mod clock;
#[cfg(test)]
pub mod counted;
mod files;
pub mod identity;
mod memory;
pub mod mounts;
mod network;
mod process;
mod signals;
mod wait;

pub use clock::{BootTime, monotonic, suspended_time, thread_cpu_time, unix_now, unix_seconds};
pub use files::{open_beneath, open_regular, reopen, replace_file, replace_file_synced};
pub use network::{bring_up_loopback, inherited_listener};
pub use process::{
    NamespaceKeeper, exit_now, fork_into, fork_single_threaded, pidfd_open, pidfd_signal, start_time, take_variable,
    users_of,
};
pub use signals::{default_action, exec_with_blocked, exit_on_term, ignore, is_ignored, unblock};
pub use wait::{poll_timeout, wait};
