//! Confinement of work on files that a container has left. It must hold even when the job controls the program inside:
//! git is a large program, and services of the job may change its files while it works on them.
//!
//! What is inside is an unprivileged user of its own without capabilities but those of files, in namespaces of its own,
//! sees the programs of the machine and the job's directories, makes only the system calls that file work takes, and is
//! counted in a control group with the job's limits. No wall counts on another one.

mod calls;
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

pub use identity::DEFAULT_UID;
use identity::FileCapabilities;

/// What the shim makes before it forks.
pub struct PreparedSandbox {
    /// Gives the files of root to the confined user; `None` where the kernel cannot.
    owners: Option<OwnedFd>,
    /// The network namespace of the work.
    network: OwnedFd,
    /// The process through which the work reaches servers.
    pub relay: Option<Pid>,
}

/// Which walls a machine lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MissingProtections(pub Vec<String>);

/// Called by the shim before it forks: its child is then the first process of a process namespace, and whatever that
/// starts ends with it. `None` without root: then the work has what the agent's user has. Errors: as root, what is
/// missing.
pub fn prepare(sandbox: &Sandbox) -> Result<Option<PreparedSandbox>, String> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let owners = identity::owner_mapping(sandbox.uid).ok();
    let (network, relay) = network::isolate(sandbox)?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(|error| refused("a process namespace", error.into()))?;
    Ok(Some(PreparedSandbox { owners, network, relay }))
}

/// Builds the walls around this process; returns those that are missing. Errors: what could not be built.
pub fn confine(sandbox: &Sandbox, prepared: Option<&PreparedSandbox>) -> Result<MissingProtections, String> {
    let mut missing = MissingProtections::default();
    if let Some(prepared) = prepared {
        setns(prepared.network.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|error| refused("the network namespace", error.into()))?;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
            .map_err(|error| refused("namespaces for mounts, IPC and the host name", error.into()))?;
        let built =
            root::build(sandbox, prepared.owners.as_ref()).map_err(|error| refused("a root directory", error))?;
        if !built.has_process_table {
            missing.0.push("no /proc: the kernel cannot mount it with subset=pid (Linux 5.8)".to_owned());
        }
        let uid = built.owners_are_mapped.then_some(sandbox.uid);
        if uid.is_none() {
            let why = "uid 0 without its rights instead of a user of its own: the kernel (Linux 5.12) or the file \
                       system of the builds cannot map owners";
            missing.0.push(why.to_owned());
        }
        let rights = if sandbox.ambient_capabilities { FileCapabilities::PassedOn } else { FileCapabilities::Kept };
        identity::become_confined(uid, Some(rights)).map_err(|error| refused("capabilities", error))?;
    }
    set_no_new_privs().map_err(|error| refused("no_new_privs", error.into()))?;
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if let Err(why) = calls::restrict() {
        missing.0.push(format!("no filter for system calls: {why}"));
    }
    Ok(missing)
}

fn refused(what: &str, error: io::Error) -> String {
    let missing = match error.raw_os_error() {
        Some(nix::libc::EPERM) => ": the agent lacks the capability CAP_SYS_ADMIN; start it with it",
        _ => "",
    };
    format!("the work on the job's files cannot be confined: {what}: {error}{missing}")
}
