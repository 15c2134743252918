//! The user of the sandbox, which owns root's files in the job's directories.
//!
//! Containers expect the sources to belong to root. An id-mapped mount (its user namespace has no process) swaps root
//! and the sandbox user in these directories: files that the sandbox user creates belong to root on the disk, and
//! root's files belong to the sandbox user inside. Outside of these mounts the user owns nothing.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl::set_keepcaps;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use crate::sys;

/// The kernel reserves this id as invalid.
const UNMAPPED_UID: u32 = u32::MAX;

/// The capabilities to read, write and change the owner of files of other users.
const FILE_CAPABILITIES: [Capability; 3] =
    [Capability::CAP_CHOWN, Capability::CAP_DAC_OVERRIDE, Capability::CAP_FOWNER];

/// The scope of the capabilities for files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FileCapabilities {
    /// This process, but no program that it starts.
    Kept,
    /// This process and the programs that it starts.
    PassedOn,
}

/// A user namespace for id-mapped mounts that swaps root and `uid`. Errors: it cannot be created, or the agent itself
/// runs in a user namespace that does not map all ids.
pub fn owner_mapping(uid: u32) -> io::Result<OwnedFd> {
    let keeper = sys::NamespaceKeeper::start()?;
    let map = swap_root_with(uid);
    let path = |name: &str| format!("/proc/{}/{name}", keeper.pid());
    fs::write(path("uid_map"), &map)?;
    fs::write(path("gid_map"), &map)?;
    Ok(File::open(path("ns/user"))?.into())
}

/// Lines of `uid_map`: id on the disk, id in the sandbox, count.
fn swap_root_with(uid: u32) -> String {
    let rest = uid + 1;
    format!("0 {uid} 1\n1 1 {}\n{uid} 0 1\n{rest} {rest} {}\n", uid - 1, UNMAPPED_UID - rest)
}

/// Becomes the sandbox user (`None`: stays root) and drops all capabilities, or all but those for files.
pub fn become_confined(uid: Option<u32>, rights: Option<FileCapabilities>) -> io::Result<()> {
    let kept: CapsHashSet = FILE_CAPABILITIES.into_iter().filter(|_| rights.is_some()).collect();
    let passed_on = if rights == Some(FileCapabilities::PassedOn) { kept.clone() } else { HashSet::new() };
    // A program of root gains all capabilities in the bounding set, so this process reduces the set.
    for capability in caps::runtime::thread_all_supported().difference(&passed_on) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(io::Error::other)?;
    }
    if let Some(uid) = uid {
        set_keepcaps(true)?;
        setgroups(&[])?;
        setgid(Gid::from_raw(uid))?;
        setuid(Uid::from_raw(uid))?;
    }
    // Clearing the inheritable set clears the ambient set.
    for (set, value) in [(CapSet::Effective, &kept), (CapSet::Permitted, &kept), (CapSet::Inheritable, &passed_on)] {
        caps::set(None, set, value).map_err(io::Error::other)?;
    }
    for capability in passed_on {
        caps::raise(None, CapSet::Ambient, capability).map_err(io::Error::other)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CONFINED_UID;

    #[test]
    fn all_ids_are_mapped_and_only_two_are_swapped() {
        let lines: Vec<Vec<u64>> = swap_root_with(CONFINED_UID)
            .lines()
            .map(|line| line.split(' ').map(|number| number.parse().expect("a number")).collect())
            .collect();
        let behind = |on_disk: u64| {
            lines
                .iter()
                .find(|line| (line[0]..line[0] + line[2]).contains(&on_disk))
                .map(|line| line[1] + on_disk - line[0])
        };
        let uid = u64::from(CONFINED_UID);
        for (on_disk, expected) in
            [(0, uid), (1, 1), (1000, 1000), (uid - 1, uid - 1), (uid, 0), (4_294_967_294, 4_294_967_294)]
        {
            assert_eq!(behind(on_disk), Some(expected), "{on_disk}");
        }
    }
}
