//! Whom confined work runs as: a user of its own, to whom the files of root in the job's directories belong.
//!
//! Containers expect the files of their sources to be root's. A user namespace that is given to the mounts (and to no
//! process) swaps root and the confined user there: what that user makes is root's on the disk, and what is root's on
//! the disk is that user's behind the walls. Outside of these mounts it is nobody.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl::set_keepcaps;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use crate::sys;

/// In no range that systemd's table of users gives away (UIDS-GIDS.md).
pub const DEFAULT_UID: u32 = 1_900_000_000;

/// The kernel has no user of this number.
const UNMAPPED_UID: u32 = u32::MAX;

/// What it takes to read, write and give away the files of others.
const FILE_CAPABILITIES: [Capability; 3] =
    [Capability::CAP_CHOWN, Capability::CAP_DAC_OVERRIDE, Capability::CAP_FOWNER];

/// What becomes of the capabilities for files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FileCapabilities {
    /// This process has them, and no program that it starts.
    Kept,
    /// Those programs have them, too.
    PassedOn,
}

/// A user namespace for mounts in which root and `uid` are swapped. Errors: also where not all users are mapped to the
/// agent itself.
pub fn owner_mapping(uid: u32) -> io::Result<OwnedFd> {
    let Some(keeper) = sys::fork_into_user_namespace()? else {
        nix::unistd::pause();
        sys::exit_now(0)
    };
    let map = swap_root_with(uid);
    let write = |name: &str| fs::write(format!("/proc/{keeper}/{name}"), &map);
    let opened =
        write("uid_map").and_then(|()| write("gid_map")).and_then(|()| File::open(format!("/proc/{keeper}/ns/user")));
    let _ = kill(keeper, Signal::SIGKILL);
    let _ = waitpid(keeper, None);
    opened.map(OwnedFd::from)
}

/// Lines of `uid_map`: number on the disk, number behind the walls, how many.
fn swap_root_with(uid: u32) -> String {
    let rest = uid + 1;
    format!("0 {uid} 1\n1 1 {}\n{uid} 0 1\n{rest} {rest} {}\n", uid - 1, UNMAPPED_UID - rest)
}

/// Becomes the confined user (`None`: stays root) and gives up all capabilities for good, or all but those for files.
pub fn become_confined(uid: Option<u32>, rights: Option<FileCapabilities>) -> io::Result<()> {
    let kept: CapsHashSet = FILE_CAPABILITIES.into_iter().filter(|_| rights.is_some()).collect();
    let passed_on = if rights == Some(FileCapabilities::PassedOn) { kept.clone() } else { HashSet::new() };
    // A program of root's has what this set holds, whatever it was given.
    for capability in caps::runtime::thread_all_supported().difference(&passed_on) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(io::Error::other)?;
    }
    if let Some(uid) = uid {
        set_keepcaps(true)?;
        setgroups(&[])?;
        setgid(Gid::from_raw(uid))?;
        setuid(Uid::from_raw(uid))?;
    }
    // The ambient set ends with the inheritable one.
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

    #[test]
    fn everybody_is_somebody_and_only_two_are_swapped() {
        let lines: Vec<Vec<u64>> = swap_root_with(DEFAULT_UID)
            .lines()
            .map(|line| line.split(' ').map(|number| number.parse().expect("a number")).collect())
            .collect();
        let behind = |on_disk: u64| {
            lines
                .iter()
                .find(|line| (line[0]..line[0] + line[2]).contains(&on_disk))
                .map(|line| line[1] + on_disk - line[0])
        };
        let uid = u64::from(DEFAULT_UID);
        for (on_disk, expected) in
            [(0, uid), (1, 1), (1000, 1000), (uid - 1, uid - 1), (uid, 0), (4_294_967_294, 4_294_967_294)]
        {
            assert_eq!(behind(on_disk), Some(expected), "{on_disk}");
        }
    }
}
