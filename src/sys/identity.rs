//! Acting on files with the rights of another user, in one thread of the agent.
#![allow(unsafe_code)]

use std::io;

use nix::libc;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

/// Does something on files with the rights of a user and of that user's groups, if this process is root; then the thread
/// has its own rights again. Errors: the thread cannot take these rights; nothing was done.
///
/// The calls of the C library would change all threads: those of the kernel, which this uses, change only the one that
/// calls (setfsuid(2), setgroups(2) on "C library/kernel differences").
pub fn as_user<T>(uid: u32, gid: u32, groups: &[u32], act: impl FnOnce() -> T) -> io::Result<T> {
    if !Uid::effective().is_root() {
        return Ok(act());
    }
    let before: Vec<u32> = nix::unistd::getgroups()?.into_iter().map(Gid::as_raw).collect();
    // Dropped last, whatever happens.
    let _own = Restore(before);
    set_groups(groups)?;
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    // The calls tell the rights before, and a value that no user has changes nothing.
    let (now_user, now_group) = (setfsuid(Uid::from_raw(u32::MAX)), setfsgid(Gid::from_raw(u32::MAX)));
    if (now_user.as_raw(), now_group.as_raw()) != (uid, gid) {
        return Err(io::Error::other("the rights of the job's user cannot be taken"));
    }
    Ok(act())
}

/// The groups that a thread had.
struct Restore(Vec<u32>);

impl Drop for Restore {
    fn drop(&mut self) {
        setfsuid(Uid::effective());
        setfsgid(Gid::effective());
        let restored = set_groups(&self.0);
        debug_assert!(restored.is_ok(), "root may set its groups");
    }
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of the slice, which lives for the call; the kernel only reads it.
    let set = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn files_are_made_and_read_as_the_user() {
        if !Uid::effective().is_root() {
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("opened");
        let (own, theirs) = (directory.path().join("own"), directory.path().join("theirs"));
        fs::write(&own, "secret").expect("written");
        fs::set_permissions(&own, fs::Permissions::from_mode(0o640)).expect("closed");
        let (read, written) = as_user(65534, 65534, &[], || (fs::read(&own), fs::write(&theirs, "x"))).expect("taken");
        assert_eq!(read.expect_err("not readable").kind(), io::ErrorKind::PermissionDenied);
        written.expect("written");
        let made = fs::metadata(&theirs).expect("there");
        assert_eq!((made.uid(), made.gid()), (65534, 65534));
        assert_eq!(fs::read_to_string(&own).expect("readable again"), "secret");
    }
}
