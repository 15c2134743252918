//! The network namespace of the sandbox: it has only a loopback interface, so that no service of the machine or its
//! network can be reached. A task that needs servers gets a [`relay`].

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;

use super::refused;
use super::relay::{self, Listeners};
use crate::shim::spec::NetworkAccess;
use crate::sys;

/// Creates the network namespace of a task, and the relay to the servers that it may reach. Errors: what the kernel
/// refused.
pub fn with_relay(access: &NetworkAccess, uid: u32) -> Result<(OwnedFd, Pid), String> {
    let ours = current().map_err(|error| refused("a network namespace", error))?;
    let made = create_namespace(access);
    // The shim returns to its previous network namespace even if `made` is an error.
    setns(ours.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|error| refused("the network namespace", error.into()))?;
    let (namespace, listeners) = made.map_err(|error| refused("a network namespace", error))?;
    let relay = relay::start(listeners, access, uid).map_err(|error| refused("the relay to servers", error))?;
    Ok((namespace, relay))
}

fn create_namespace(access: &NetworkAccess) -> io::Result<(OwnedFd, Listeners)> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let namespace = current()?;
    sys::bring_up_loopback()?;
    Ok((namespace, Listeners::bind(access)?))
}

fn current() -> io::Result<OwnedFd> {
    File::open("/proc/self/ns/net").map(OwnedFd::from)
}
