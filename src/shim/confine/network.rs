//! The network namespace of the sandbox: it has only a loopback interface, so that no service of the machine or its
//! network can be reached. A task that needs servers gets a [`relay`].

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;

use super::{refused, relay};
use crate::shim::spec::Sandbox;
use crate::sys;

/// Creates the network namespace and its relay. Errors: what the kernel refused.
pub fn isolate(sandbox: &Sandbox) -> Result<(OwnedFd, Option<Pid>), String> {
    let ours = current().map_err(|error| refused("a network namespace", error))?;
    let made = create_namespace(sandbox.network.is_some());
    // The shim returns to its own namespace in any case.
    setns(ours.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|error| refused("the network namespace", error.into()))?;
    let (namespace, listener) = made.map_err(|error| refused("a network namespace", error))?;
    let relay = match sandbox.network.as_ref().zip(listener) {
        Some((network, listener)) => {
            let relay = relay::start(listener, network, sandbox);
            Some(relay.map_err(|error| refused("the way to servers", error))?)
        }
        None => None,
    };
    Ok((namespace, relay))
}

fn create_namespace(has_way_out: bool) -> io::Result<(OwnedFd, Option<TcpListener>)> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let namespace = current()?;
    if !has_way_out {
        return Ok((namespace, None));
    }
    sys::bring_up_loopback()?;
    Ok((namespace, Some(TcpListener::bind(relay::ADDRESS)?)))
}

fn current() -> io::Result<OwnedFd> {
    File::open("/proc/self/ns/net").map(OwnedFd::from)
}
