//! File access with the permissions of another user, in one thread of the agent.
#![allow(unsafe_code)]

use std::io;

use nix::libc;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

/// Accesses files with the permissions of a user and its groups, if this process is root; then restores the thread's
/// own. Fails, without calling `act`, if the permissions cannot be changed.
///
/// The C library's functions would change all threads. The system calls used here change only the calling thread
/// (setfsuid(2) and setgroups(2), "C library/kernel differences").
pub fn as_user<T>(uid: u32, gid: u32, groups: &[u32], act: impl FnOnce() -> T) -> io::Result<T> {
    if !Uid::effective().is_root() {
        return Ok(act());
    }
    let before: Vec<u32> = nix::unistd::getgroups()?.into_iter().map(Gid::as_raw).collect();
    // The drop restores the ids and the groups on every return.
    let _own = Restore(before);
    set_groups(groups)?;
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    // The calls return the previous ids; an invalid id changes nothing.
    let (now_user, now_group) = (setfsuid(Uid::from_raw(u32::MAX)), setfsgid(Gid::from_raw(u32::MAX)));
    if (now_user.as_raw(), now_group.as_raw()) != (uid, gid) {
        return Err(io::Error::other("cannot switch to the permissions of the job's user"));
    }
    Ok(act())
}

/// The previous groups of a thread; the drop restores them and the file system ids.
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
    fn creates_and_reads_files_as_the_user() {
        if !Uid::effective().is_root() {
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("set the permissions");
        let (own, theirs) = (directory.path().join("own"), directory.path().join("theirs"));
        fs::write(&own, "secret").expect("write the file");
        fs::set_permissions(&own, fs::Permissions::from_mode(0o640)).expect("set the permissions");
        let (read, written) =
            as_user(65534, 65534, &[], || (fs::read(&own), fs::write(&theirs, "x"))).expect("act as the user");
        assert_eq!(read.expect_err("must be refused").kind(), io::ErrorKind::PermissionDenied);
        written.expect("write the file");
        let made = fs::metadata(&theirs).expect("the file must exist");
        assert_eq!((made.uid(), made.gid()), (65534, 65534));
        assert_eq!(fs::read_to_string(&own).expect("read the file"), "secret");
    }
}
