//! Removes files that a job left: directories deeper than the longest path, without permissions, full of links.
//!
//! The code follows no links, has at most two directories open and does not recurse: it moves each subdirectory up to
//! the top level first, so that the depth is always one.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::NixPath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

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
    let mut waiting = clear(&top, &top, &mut moved)?;
    while let Some(name) = waiting.pop() {
        let directory = enter(&top, Path::new(&name))?;
        waiting.extend(clear(&directory, &top, &mut moved)?);
        drop(directory);
        unlinkat(&top, name.as_str(), UnlinkatFlags::RemoveDir)?;
    }
    Ok(())
}

/// Removes everything in the directory at `path` except one entry. Errors: as [`remove`].
pub fn empty_but(path: &Path, kept: &str) -> io::Result<()> {
    open_up(&nix::fcntl::AT_FDCWD, path)?;
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
    let _ = open_up(above, name);
    Ok(openat(above, name, flags, Mode::empty())?)
}

/// Gives the owner all permissions on a directory. Follows no links: it changes the directory that it opened.
fn open_up<P: NixPath + ?Sized>(above: &impl AsFd, name: &P) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = openat(above, name, flags, Mode::empty())?;
    let mode = fstat(&directory)?.st_mode;
    if mode & 0o700 != 0o700 {
        let own_path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        fs::set_permissions(own_path, PermissionsExt::from_mode((mode | 0o700) & 0o7777))?;
    }
    Ok(())
}

/// Removes the files of `directory` and moves its subdirectories into `top`; returns their names there.
fn clear(directory: &impl AsFd, top: &impl AsFd, moved: &mut u64) -> io::Result<Vec<String>> {
    let mut directories = Vec::new();
    // Read the whole listing before any change: a listing of a directory that changes may skip entries.
    let listing = Dir::from_fd(directory.as_fd().try_clone_to_owned()?)?;
    let names: Vec<_> =
        listing.into_iter().map(|entry| Ok(entry?.file_name().to_owned())).collect::<nix::Result<_>>()?;
    for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
        let stat = fstatat(directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFDIR {
            unlinkat(directory, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
            continue;
        }
        match unlinkat(directory, name.as_c_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) => continue,
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::EACCES) => {}
            Err(error) => return Err(error.into()),
        }
        // Moving a directory requires write permission on it.
        let _ = open_up(directory, name.as_c_str());
        let place = loop {
            *moved += 1;
            let place = format!(".mayfly-removed-{moved}");
            if fstatat(top, place.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) == Err(Errno::ENOENT) {
                break place;
            }
        };
        renameat(directory, name.as_c_str(), top, place.as_str())?;
        directories.push(place);
    }
    Ok(directories)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::mkdirat;

    /// Makes nested directories, far deeper than PATH_MAX.
    fn dig(tree: &Path, levels: usize) {
        let mut here = std::os::fd::OwnedFd::from(fs::File::open(tree).expect("opened"));
        for _ in 0..levels {
            mkdirat(&here, "deep-directory", Mode::S_IRWXU).expect("made");
            here = openat(&here, "deep-directory", OFlag::O_DIRECTORY, Mode::empty()).expect("opened");
        }
    }

    #[test]
    fn removes_very_deep_directories_links_and_directories_without_permissions() {
        let directory = tempfile::tempdir().expect("a directory");
        let outside = directory.path().join("outside");
        fs::write(&outside, "stays").expect("written");
        let tree = directory.path().join("tree");
        fs::create_dir_all(tree.join("closed/inner")).expect("made");
        fs::write(tree.join("closed/inner/file"), "x").expect("written");
        fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o000)).expect("closed");
        symlink(&outside, tree.join("link")).expect("linked");
        symlink(directory.path(), tree.join("loop")).expect("linked");
        dig(&tree, 1500);
        remove(&tree).expect("removed");
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(&outside).expect("still there"), "stays");
    }

    #[test]
    fn a_missing_path_is_no_error() {
        let directory = tempfile::tempdir().expect("a directory");
        remove(&directory.path().join("none")).expect("nothing to do");
        symlink("nowhere", directory.path().join("dangling")).expect("linked");
        remove(&directory.path().join("dangling")).expect("removed");
    }
}
