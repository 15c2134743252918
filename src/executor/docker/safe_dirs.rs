//! Creates directories below a root in which a job may have planted files. Follows no link, and removes a file or a
//! link that is in the place of a directory.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, unlinkat};

use crate::sys;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Creates all directories from `root`, which must exist, down to `path` below it. New directories and the last one get
/// `mode`. Fails if `path` is not below `root`.
pub fn create(root: &Path, path: &Path, mode: u32) -> io::Result<()> {
    let below = path.strip_prefix(root).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut directory = open(root, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    for part in below.components() {
        let Component::Normal(name) = part else { return Err(io::ErrorKind::InvalidInput.into()) };
        directory = enter(&directory, Path::new(name), mode)?;
    }
    // An earlier job may have removed the permissions.
    fchmod(&directory, Mode::from_bits_truncate(mode))?;
    Ok(())
}

fn enter(directory: &OwnedFd, name: &Path, mode: u32) -> io::Result<OwnedFd> {
    let mode = Mode::from_bits_truncate(mode);
    match openat(directory, name, DIRECTORY, Mode::empty()) {
        Ok(found) => return Ok(found),
        Err(Errno::ENOENT) => {}
        Err(Errno::ENOTDIR | Errno::ELOOP) => unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)?,
        Err(error) => return Err(error.into()),
    }
    mkdirat(directory, name, mode)?;
    let made = openat(directory, name, DIRECTORY, Mode::empty())?;
    // `mkdirat` applies the umask to the mode; `fchmod` does not.
    fchmod(&made, mode)?;
    Ok(made)
}

/// The deepest nesting that [`change_owner`] follows: each level needs two file descriptors.
const MAX_DEPTH: usize = 256;

/// Changes the owner of everything below `path`, which must be below `root`. Changes links themselves, not their
/// targets. Continues after a failure, and returns the first error.
pub fn change_owner(root: &Path, path: &Path, user: u32, group: u32) -> io::Result<()> {
    let below = path.strip_prefix(root).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let root = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let top = sys::open_beneath(root.as_fd(), below, DIRECTORY)?;
    let mut outcome = Ok(());
    change_owner_below(top, (Uid::from_raw(user), Gid::from_raw(group)), MAX_DEPTH, &mut outcome);
    outcome
}

fn change_owner_below(directory: OwnedFd, whom: (Uid, Gid), depth: usize, outcome: &mut io::Result<()>) {
    let (owner, group) = (Some(whom.0), Some(whom.1));
    keep_first_error(fchown(&directory, owner, group), outcome);
    let Some(mut listing) = directory.try_clone().ok().and_then(|copy| Dir::from_fd(copy).ok()) else {
        return keep_first_error(Err(Errno::EMFILE), outcome);
    };
    // Entries are read one at a time: a job may have created millions of files.
    for entry in listing.iter().flatten() {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match openat(&directory, name, DIRECTORY, Mode::empty()) {
            Ok(found) if depth > 0 => change_owner_below(found, whom, depth - 1, outcome),
            Ok(_) => keep_first_error(Err(Errno::ENAMETOOLONG), outcome),
            Err(_) => {
                let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
                keep_first_error(fchownat(&directory, name, owner, group, flags), outcome);
            }
        }
    }
}

fn keep_first_error(done: nix::Result<()>, outcome: &mut io::Result<()>) {
    if let (Err(error), Ok(())) = (done, &*outcome) {
        *outcome = Err(error.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn replaces_obstacles_and_follows_no_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let outside = directory.path().join("outside");
        let root = directory.path().join("root");
        fs::create_dir(&outside).expect("create the directory");
        fs::create_dir(&root).expect("create the directory");
        symlink(&outside, root.join("group")).expect("create the link");
        create(&root, &root.join("group/project"), 0o777).expect("create the directory");
        assert_eq!(fs::read_dir(&outside).expect("list the directory").count(), 0);
        let mode =
            |path: &str| fs::symlink_metadata(root.join(path)).expect("the file must exist").permissions().mode();
        assert_eq!((mode("group") & 0o170_777, mode("group/project") & 0o777), (0o040_777, 0o777));
        fs::remove_dir(root.join("group/project")).expect("remove the directory");
        fs::write(root.join("group/project"), "in the way").expect("write the file");
        create(&root, &root.join("group/project"), 0o700).expect("create the directory");
        assert_eq!(mode("group/project") & 0o777, 0o700);
        for path in ["../outside/x", "/etc/x"] {
            assert!(create(&root, &root.join(path), 0o777).is_err(), "{path}");
        }
    }
}
