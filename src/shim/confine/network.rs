//! The network namespace of the sandbox: it has only a loopback interface, so that no service of the machine or its
//! network can be reached. A task that needs servers gets a [`relay`].

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;

use super::refused;
use super::relay::{self, Listeners};
use crate::shim::spec::{NetworkAccess, Sandbox};
use crate::sys;

/// Creates the network namespace and its relay. Errors: what the kernel refused.
pub fn isolate(sandbox: &Sandbox) -> Result<(OwnedFd, Option<Pid>), String> {
    let ours = current().map_err(|error| refused("a network namespace", error))?;
    let made = create_namespace(sandbox.network.as_ref());
    // The shim returns to its own namespace in any case.
    setns(ours.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|error| refused("the network namespace", error.into()))?;
    let (namespace, listeners) = made.map_err(|error| refused("a network namespace", error))?;
    let relay = match sandbox.network.as_ref().zip(listeners) {
        Some((network, listeners)) => {
            let relay = relay::start(listeners, network, sandbox);
            Some(relay.map_err(|error| refused("the way to servers", error))?)
        }
        None => None,
    };
    Ok((namespace, relay))
}

fn create_namespace(network: Option<&NetworkAccess>) -> io::Result<(OwnedFd, Option<Listeners>)> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let namespace = current()?;
    let Some(network) = network else { return Ok((namespace, None)) };
    sys::bring_up_loopback()?;
    Ok((namespace, Some(Listeners::bind(network)?)))
}

fn current() -> io::Result<OwnedFd> {
    File::open("/proc/self/ns/net").map(OwnedFd::from)
}
