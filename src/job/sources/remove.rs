//! Removes files that a job left: directories deeper than the longest path, without permissions, full of links.
//!
//! The code follows no links, has at most three directories open, lists few names at a time and does not recurse: it
//! moves each subdirectory up to the top level first, so that the depth is always one.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::NixPath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::sys;

/// Names that are listed at a time.
const MAX_NAMES: usize = 4096;

/// Removes the file or directory at `path`, if there is one. Errors: this user cannot remove a file.
pub fn remove(path: &Path) -> io::Result<()> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.is_dir() {
        return std::fs::remove_file(path);
    }
    empty(path)?;
    std::fs::remove_dir(path)
}

/// Removes everything in the directory at `path`. Errors: as [`remove`].
pub fn empty(path: &Path) -> io::Result<()> {
    let top = enter(&nix::fcntl::AT_FDCWD, path)?;
    let mut moved = 0_u64;
    loop {
        let names = list(&top)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            if remove_entry(&top, &name)? {
                continue;
            }
            let directory = enter(&top, name.as_c_str())?;
            clear(&directory, &top, &mut moved)?;
            drop(directory);
            unlinkat(&top, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
        }
    }
}

/// Removes the directory at `below` in `root`, and the temporary files of its jobs beside it. Follows no link below
/// `root`. Errors: as [`remove`], or a part of the path below `root` is a link.
pub fn remove_below(root: &Path, below: &Path) -> io::Result<()> {
    let (above, name) = open_above(root, below)?;
    let at = |name: &OsStr| PathBuf::from(format!("/proc/self/fd/{}", above.as_raw_fd())).join(name);
    let mut beside = name.to_owned();
    beside.push(".tmp");
    remove(&at(name)).and(remove(&at(&beside)))
}

/// The directory above `below` in `root`, opened without following a link that a job may have made, and the name there.
pub fn open_above<'a>(root: &Path, below: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
    let root = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let (Some(above), Some(name)) = (below.parent(), below.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match above.as_os_str().is_empty() {
        true => Ok((root, name)),
        false => Ok((sys::open_beneath(root.as_fd(), above, OFlag::O_PATH | OFlag::O_DIRECTORY)?, name)),
    }
}

/// Removes everything in the directory at `path` except one entry. Errors: as [`remove`].
pub fn empty_but(path: &Path, kept: &str) -> io::Result<()> {
    make_accessible(&nix::fcntl::AT_FDCWD, path)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() != kept {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Opens a directory, even if its owner may not read it.
fn enter<P: NixPath + ?Sized>(above: &impl AsFd, name: &P) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let _ = make_accessible(above, name);
    Ok(openat(above, name, flags, Mode::empty())?)
}

/// Gives the owner all permissions on a directory. Follows no links: the function changes the directory that it opened.
fn make_accessible<P: NixPath + ?Sized>(above: &impl AsFd, name: &P) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = openat(above, name, flags, Mode::empty())?;
    let mode = fstat(&directory)?.st_mode;
    if mode & 0o700 != 0o700 {
        let own_path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        fs::set_permissions(own_path, PermissionsExt::from_mode((mode | 0o700) & 0o7777))?;
    }
    Ok(())
}

/// Removes the files of `directory` and moves its other subdirectories into `top`.
fn clear(directory: &impl AsFd, top: &impl AsFd, moved: &mut u64) -> io::Result<()> {
    loop {
        let names = list(directory)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            if remove_entry(directory, &name)? {
                continue;
            }
            // Moving a directory requires write permission on it.
            let _ = make_accessible(directory, name.as_c_str());
            let free_name = loop {
                *moved += 1;
                let name = format!(".mayfly-removed-{moved}");
                if fstatat(top, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) == Err(Errno::ENOENT) {
                    break name;
                }
            };
            renameat(directory, name.as_c_str(), top, free_name.as_str())?;
        }
    }
}

/// The first names in a directory: a job may have created millions of files, and a listing of a directory that changes
/// may skip entries.
fn list(directory: &impl AsFd) -> io::Result<Vec<CString>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = Dir::openat(directory, ".", flags, Mode::empty())?;
    let names = listing.iter().map(|entry| Ok(entry?.file_name().to_owned()));
    let names = names.filter(|name| !matches!(name.as_ref().map(|name| name.to_bytes()), Ok(b"." | b"..")));
    names.take(MAX_NAMES).collect()
}

/// Removes a file or an empty directory; returns false for another directory.
fn remove_entry(directory: &impl AsFd, name: &CStr) -> io::Result<bool> {
    let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFDIR {
        unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)?;
        return Ok(true);
    }
    match unlinkat(directory, name, UnlinkatFlags::RemoveDir) {
        Ok(()) => Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::mkdirat;

    /// Makes nested directories, far deeper than PATH_MAX.
    fn dig(tree: &Path, levels: usize) {
        let mut here = std::os::fd::OwnedFd::from(fs::File::open(tree).expect("open the directory"));
        for _ in 0..levels {
            mkdirat(&here, "deep-directory", Mode::S_IRWXU).expect("create the directory");
            here = openat(&here, "deep-directory", OFlag::O_DIRECTORY, Mode::empty()).expect("open the directory");
        }
    }

    #[test]
    fn removes_very_deep_directories_links_and_directories_without_permissions() {
        let directory = tempfile::tempdir().expect("a directory");
        let outside = directory.path().join("outside");
        fs::write(&outside, "stays").expect("write the file");
        let tree = directory.path().join("tree");
        fs::create_dir_all(tree.join("closed/inner")).expect("create the directory");
        fs::write(tree.join("closed/inner/file"), "x").expect("write the file");
        fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o000)).expect("set the permissions");
        symlink(&outside, tree.join("link")).expect("create the link");
        symlink(directory.path(), tree.join("loop")).expect("create the link");
        dig(&tree, 1500);
        remove(&tree).expect("remove the directory");
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(&outside).expect("the file must still exist"), "stays");
    }

    #[test]
    fn removes_more_files_and_directories_than_it_lists_at_a_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let tree = directory.path().join("tree/inner");
        for number in 0..MAX_NAMES + 10 {
            let place = tree.join(format!("directory-{number}"));
            fs::create_dir_all(&place).expect("create the directory");
            fs::write(place.join("file"), "").expect("write the file");
            fs::write(tree.join(format!("file-{number}")), "").expect("write the file");
        }
        remove(&directory.path().join("tree")).expect("remove the directory");
        assert!(!directory.path().join("tree").exists());
    }

    #[test]
    fn what_is_below_a_directory_goes_with_the_files_beside_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        for name in ["a/p/deep", "a/p.tmp/deep", "a/q", "outside"] {
            fs::create_dir_all(root.join(name)).expect("create the directory");
        }
        symlink(root.join("outside"), root.join("a/p/link")).expect("create the link");
        remove_below(root, Path::new("a/p")).expect("remove the directory");
        let exists = ["a/p", "a/p.tmp", "a/q", "outside"].map(|name| root.join(name).exists());
        assert_eq!(exists, [false, false, true, true]);
        remove_below(root, Path::new("..")).expect_err("must be refused");
        symlink("a", root.join("b")).expect("create the link");
        remove_below(root, Path::new("b/q")).expect_err("a link must be refused");
        assert!(root.join("a/q").exists());
    }

    #[test]
    fn a_directory_that_becomes_a_link_meanwhile_leads_nowhere() {
        let directory = tempfile::tempdir().expect("a directory");
        let (tree, outside) = (directory.path().join("tree"), directory.path().join("outside"));
        fs::create_dir_all(outside.join("inner")).expect("create the directory");
        fs::write(outside.join("inner/file"), "stays").expect("write the file");
        let (place, hidden) = (tree.join("a"), directory.path().join("hidden"));
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    // Each call may fail, because the other thread removes files meanwhile.
                    let _ = fs::create_dir_all(place.join("inner"));
                    let _ = fs::rename(&place, &hidden);
                    let _ = symlink(&outside, &place);
                    let _ = fs::remove_file(&place);
                    let _ = fs::rename(&hidden, &place);
                }
            });
            for _ in 0..300 {
                let _ = remove(&tree);
                let _ = remove_below(directory.path(), Path::new("tree/a/inner"));
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(fs::read_to_string(outside.join("inner/file")).expect("the file must still exist"), "stays");
    }

    #[test]
    fn a_missing_path_is_no_error() {
        let directory = tempfile::tempdir().expect("a directory");
        remove(&directory.path().join("none")).expect("a missing directory must be accepted");
        symlink("nowhere", directory.path().join("dangling")).expect("create the link");
        remove(&directory.path().join("dangling")).expect("remove the directory");
    }
}
