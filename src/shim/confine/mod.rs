//! The sandbox for file tasks beside a container. The sandbox must hold even if the job controls a program in it: git
//! is large, and services of the job may change the job's files while git runs.
//!
//! The task runs as a separate unprivileged user with only the capabilities for files, in separate namespaces. It sees
//! the programs of the machine and the job's directories, is limited to the system calls of file tasks, and is in a
//! control group with the job's limits. No protection depends on another one.

mod calls;
mod filter;
mod identity;
mod network;
pub mod probe;
pub mod relay;
mod root;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Pid, Uid};

use super::spec::Sandbox;

use identity::FileCapabilities;

/// The parts of the sandbox that the shim prepares before it forks.
pub struct PreparedSandbox {
    /// The user namespace for id-mapped mounts; `None` if the kernel does not support them.
    owners: Option<OwnedFd>,
    /// The network namespace of a task that may reach servers. A task without network creates its namespace itself.
    network: Option<OwnedFd>,
    /// The relay process through which the task reaches servers.
    pub relay: Option<Pid>,
}

/// The protections that this machine lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MissingProtections(pub Vec<String>);

/// Prepares the sandbox. The shim calls this before it forks: its child becomes the first process of a new PID
/// namespace, so every process that the child starts ends with the child. Returns `None` if the agent is not root; then
/// the task runs with the rights of the agent's user. Errors, only for root: which part of the sandbox is missing.
pub fn prepare(sandbox: &Sandbox) -> Result<Option<PreparedSandbox>, String> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let owners = identity::owner_mapping(sandbox.uid).ok();
    let (network, relay) = match &sandbox.network {
        Some(access) => {
            network::with_relay(access, sandbox.uid).map(|(network, relay)| (Some(network), Some(relay)))?
        }
        None => (None, None),
    };
    unshare(CloneFlags::CLONE_NEWPID).map_err(|error| refused("a process namespace", error.into()))?;
    Ok(Some(PreparedSandbox { owners, network, relay }))
}

/// Enters the sandbox with this process. Returns the missing protections. Errors: what could not be set up.
pub fn confine(sandbox: &Sandbox, prepared: Option<&PreparedSandbox>) -> Result<MissingProtections, String> {
    let mut missing = MissingProtections::default();
    if let Some(prepared) = prepared {
        let mut namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        match &prepared.network {
            Some(network) => setns(network.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|error| refused("the network namespace", error.into()))?,
            None => namespaces |= CloneFlags::CLONE_NEWNET,
        }
        unshare(namespaces)
            .map_err(|error| refused("namespaces for the network, mounts, IPC and the host name", error.into()))?;
        let built =
            root::build(sandbox, prepared.owners.as_ref()).map_err(|error| refused("a root directory", error))?;
        if !built.has_process_table {
            missing.0.push("no /proc: the kernel cannot mount it with subset=pid (Linux 5.8)".to_owned());
        }
        let uid = built.owners_are_mapped.then_some(sandbox.uid);
        if uid.is_none() {
            let why = "uid 0 with few capabilities instead of a separate user: the kernel (before Linux 5.12) or \
                       the file system of the builds does not support ID-mapped mounts";
            missing.0.push(why.to_owned());
        }
        let rights = if sandbox.ambient_capabilities { FileCapabilities::PassedOn } else { FileCapabilities::Kept };
        identity::become_confined(uid, Some(rights)).map_err(|error| refused("capabilities", error))?;
    }
    set_no_new_privs().map_err(|error| refused("no_new_privs", error.into()))?;
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if let Err(why) = calls::restrict() {
        missing.0.push(format!("no seccomp filter: {why}"));
    }
    Ok(missing)
}

fn refused(what: &str, error: io::Error) -> String {
    let missing = match error.raw_os_error() {
        Some(nix::libc::EPERM) => "; the agent needs the capability CAP_SYS_ADMIN",
        _ => "",
    };
    format!("the sandbox for file tasks cannot be set up: {what}: {error}{missing}")
}
