//! Creates the directories for builds and caches, and the state directory, so that no job can make the agent create
//! other directories or change their owner.
//!
//! In a directory that belongs to root and that only root can write, every entry, including links, was created by an
//! administrator. Below a directory that other users can write, the rest of the path is created and opened with the
//! permissions of the job's user: anything that a job plants there gives it only access that it already has. If there
//! is no such user, root creates the rest and follows no link.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat, stat};
use nix::unistd::{Gid, Uid, fchown};

use super::user::as_job;
use crate::shim::spec::User;

/// The number of links that are followed, as in the kernel.
const MAX_LINKS: usize = 40;

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Owner and mode of a directory to create.
#[derive(Clone, Copy)]
struct Ownership {
    uid: u32,
    gid: u32,
    mode: u32,
}

const OWNED_BY_ROOT: Ownership = Ownership { uid: 0, gid: 0, mode: 0o755 };

/// Creates a directory with this mode, for the job's user if that is not the agent's user. An existing directory of
/// that user loses the permissions of other users that `mode` does not contain. Fails if a file has this name.
pub fn create(path: &Path, user: Option<&User>, mode: u32) -> io::Result<()> {
    match user {
        Some(user) => create_for(path, user, Ownership { uid: user.uid, gid: user.gid, mode }),
        None if Uid::effective().is_root() => create_as_root(path, mode).map(drop),
        None => create_as_caller(path, mode),
    }
}

/// Creates a directory of root that every user may write; sets the mode of an existing one. Fails as [`create`] does.
pub fn create_world_writable(path: &Path) -> io::Result<()> {
    if !Uid::effective().is_root() {
        create_as_caller(path, 0o777)?;
        return std::fs::set_permissions(path, PermissionsExt::from_mode(0o777));
    }
    Ok(fchmod(readable(&create_as_root(path, 0o777)?)?, Mode::from_bits_truncate(0o777))?)
}

/// Creates a directory in which several users, including `user`, have their own directories.
pub fn create_common_parent(path: &Path, user: &User) -> io::Result<()> {
    create_for(path, user, Ownership { mode: 0o711, ..OWNED_BY_ROOT })
}

/// Creates a directory that all users of the user's group share.
pub fn create_group_shared(path: &Path, user: &User) -> io::Result<()> {
    create_for(path, user, Ownership { uid: 0, gid: user.gid, mode: 0o2770 })
}

fn create_for(path: &Path, user: &User, wanted: Ownership) -> io::Result<()> {
    match walk(path, Some(user), wanted)? {
        WalkEnd::Directory(directory) => {
            let mode = fstat(&directory)?.st_mode;
            let is_theirs = fstat(&directory)?.st_uid == user.uid && wanted.uid == user.uid;
            if is_theirs && mode & 0o077 & !wanted.mode != 0 {
                fchmod(readable(&directory)?, Mode::from_bits_truncate(mode & (wanted.mode | 0o7700)))?;
            }
            Ok(())
        }
        WalkEnd::Writable(directory, rest) => {
            let path = own_path(&directory).join(rest);
            as_job(Some(user), || create_as_caller(&path, wanted.mode & 0o777))?
        }
    }
}

/// Creates a directory with the rights of this process, and follows links.
fn create_as_caller(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(above) = path.parent() {
        std::fs::create_dir_all(above)?;
    }
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            let found = path.metadata()?;
            let (own, has) = (Uid::effective().as_raw(), found.mode() & 0o7777);
            if own != 0 && found.uid() == own && has & 0o077 & !mode != 0 {
                std::fs::set_permissions(path, PermissionsExt::from_mode(has & (mode | 0o7700)))?;
            }
            Ok(())
        }
        made => made,
    }
}

/// Creates and returns a directory of root. Below a directory that other users can write, it follows no link.
fn create_as_root(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let wanted = Ownership { mode, ..OWNED_BY_ROOT };
    let (mut directory, rest) = match walk(path, None, wanted)? {
        WalkEnd::Directory(directory) => return Ok(directory),
        WalkEnd::Writable(directory, rest) => (directory, rest),
    };
    let mut left = components(&rest);
    while let Some(name) = left.pop() {
        directory = match openat(&directory, name.as_os_str(), DIRECTORY, Mode::empty()) {
            Err(Errno::ENOENT) => {
                match create_in(&directory, &name, if left.is_empty() { wanted } else { OWNED_BY_ROOT }) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        left.push(name);
                        directory
                    }
                    made => made?,
                }
            }
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                return Err(io::Error::other(format!(
                    "`{}` in this path is a link that a user other than root can change, or not a directory; write the \
                     real path, or choose one below a directory of root",
                    name.display()
                )));
            }
            opened => opened?,
        };
    }
    Ok(directory)
}

/// The first directory on the way to `path` in which a user can replace entries; without a user, any user but root.
pub fn writable_above(path: &Path, user: Option<&User>) -> Option<PathBuf> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    let is_writable =
        |directory: &&Path| stat(*directory).is_ok_and(|stat| write_access(&stat, user) == WriteAccess::All);
    above.into_iter().find(is_writable).map(Path::to_owned)
}

/// The warning about a directory that the job's user can replace, or without one any user but root. An agent that does
/// not run as root gets no warning: all its directories belong to its user.
pub fn warning(path: &Path, user: Option<&User>) -> Option<String> {
    if user.is_none() && !Uid::effective().is_root() {
        return None;
    }
    let above = writable_above(path, user)?;
    let (path, above) = (path.display(), above.display());
    let (writer, replacer) = match user {
        Some(user) => (format!("jobs (user {})", user.name), "a job"),
        None => ("another user than root".to_owned(), "that user"),
    };
    Some(format!(
        "{path} is below {above}, which {writer} can write: {replacer} can replace the directory for later jobs; move \
         it below a directory of root, such as /var/lib/mayfly, with `builds_dir` and `cache_dir`"
    ))
}

/// The end of a walk along a path.
enum WalkEnd {
    /// The directory; all its parents belong to root.
    Directory(OwnedFd),
    /// A directory that other users can write, and the remaining path.
    Writable(OwnedFd, PathBuf),
}

/// Follows a path while only root can change it. Creates missing directories; the last one gets `wanted`. `user` is the
/// user that might change the path; `None` means any user.
fn walk(path: &Path, user: Option<&User>, wanted: Ownership) -> io::Result<WalkEnd> {
    let mut left = components(&std::path::absolute(path)?);
    let mut directory = root()?;
    let mut links = 0;
    while let Some(name) = left.pop() {
        let access = write_access(&fstat(&directory)?, user);
        let found = fstatat(&directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        let is_link = found.is_ok_and(|stat| kind(&stat) == SFlag::S_IFLNK);
        // Root follows only links of root. The walk ends at a link of another user.
        let is_own = found.is_ok_and(|stat| match user {
            Some(user) if !is_link => stat.st_uid == user.uid,
            _ => stat.st_uid != 0,
        });
        if access == WriteAccess::All || (is_own && (access == WriteAccess::Own || is_link)) {
            left.push(name);
            return Ok(WalkEnd::Writable(directory, left.iter().rev().collect()));
        }
        match found {
            Ok(_) if is_link => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::ELOOP.into());
                }
                let target = PathBuf::from(readlinkat(&directory, name.as_os_str())?);
                if target.is_absolute() {
                    directory = root()?;
                }
                left.extend(components(&target));
            }
            Ok(_) => directory = openat(&directory, name.as_os_str(), DIRECTORY, Mode::empty())?,
            Err(Errno::ENOENT) => {
                match create_in(&directory, &name, if left.is_empty() { wanted } else { OWNED_BY_ROOT }) {
                    // A concurrent job created the directory.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => left.push(name),
                    made => directory = made?,
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(WalkEnd::Directory(directory))
}

/// Creates a directory in an open directory.
fn create_in(directory: &OwnedFd, name: &OsString, wanted: Ownership) -> io::Result<OwnedFd> {
    mkdirat(directory, name.as_os_str(), Mode::S_IRWXU)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made = openat(directory, name.as_os_str(), flags, Mode::empty())?;
    fchown(&made, Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)))?;
    fchmod(&made, Mode::from_bits_truncate(wanted.mode))?;
    Ok(made)
}

/// Opens the same directory again, so that its mode can be changed.
fn readable(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(directory, ".", flags, Mode::empty())?)
}

fn root() -> io::Result<OwnedFd> {
    Ok(open("/", DIRECTORY, Mode::empty())?)
}

/// The parts of a path, the last one first. `..` needs no special case: the parent of a directory of root belongs to
/// root.
fn components(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    });
    let mut parts: Vec<OsString> = parts.collect();
    parts.reverse();
    parts
}

/// A user's access to the entries of a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WriteAccess {
    None,
    /// Create entries, and change the user's own entries (sticky directory).
    Own,
    /// Replace any entry.
    All,
}

fn write_access(stat: &FileStat, user: Option<&User>) -> WriteAccess {
    let (is_owner, in_group) = match user {
        Some(user) => (stat.st_uid == user.uid, user.gid == stat.st_gid || user.groups.contains(&stat.st_gid)),
        None => (stat.st_uid != 0, stat.st_gid != 0),
    };
    let may_write = stat.st_mode & 0o002 != 0 || (in_group && stat.st_mode & 0o020 != 0);
    match () {
        () if user.is_some_and(|user| user.uid == 0) => WriteAccess::None,
        () if is_owner => WriteAccess::All,
        () if !may_write => WriteAccess::None,
        () if stat.st_mode & 0o1000 != 0 => WriteAccess::Own,
        () => WriteAccess::All,
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// A path that refers to this directory while it is open.
fn own_path(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

#[cfg(test)]
mod tests;
