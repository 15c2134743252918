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
const LINKS_MAX: usize = 40;

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Owner and mode of a directory to create.
#[derive(Clone, Copy)]
struct Ownership {
    uid: u32,
    gid: u32,
    mode: u32,
}

const OF_ROOT: Ownership = Ownership { uid: 0, gid: 0, mode: 0o755 };

/// Creates a directory with this mode, for the job's user if that is not the agent's user. An existing directory of
/// that user loses the permissions of other users that `mode` does not contain. Fails if a file has this name.
pub fn make(path: &Path, user: Option<&User>, mode: u32) -> io::Result<()> {
    match user {
        Some(user) => make_for(path, user, Ownership { uid: user.uid, gid: user.gid, mode }),
        None if Uid::effective().is_root() => make_as_root(path, mode).map(drop),
        None => make_as_caller(path, mode),
    }
}

/// Creates a directory of root that every user may write; sets the mode of an existing one. Fails as [`make`] does.
pub fn make_open(path: &Path) -> io::Result<()> {
    if !Uid::effective().is_root() {
        make_as_caller(path, 0o777)?;
        return std::fs::set_permissions(path, PermissionsExt::from_mode(0o777));
    }
    Ok(fchmod(readable(&make_as_root(path, 0o777)?)?, Mode::from_bits_truncate(0o777))?)
}

/// Creates a directory in which several users, including `user`, have their own directories.
pub fn make_common(path: &Path, user: &User) -> io::Result<()> {
    make_for(path, user, Ownership { mode: 0o711, ..OF_ROOT })
}

/// Creates a directory that all users of the user's group share.
pub fn make_shared(path: &Path, user: &User) -> io::Result<()> {
    make_for(path, user, Ownership { uid: 0, gid: user.gid, mode: 0o2770 })
}

fn make_for(path: &Path, user: &User, wanted: Ownership) -> io::Result<()> {
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
            let place = own_path(&directory).join(rest);
            as_job(Some(user), || make_as_caller(&place, wanted.mode & 0o777))?
        }
    }
}

/// Creates a directory with the rights of this process, and follows links.
fn make_as_caller(path: &Path, mode: u32) -> io::Result<()> {
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
fn make_as_root(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let wanted = Ownership { mode, ..OF_ROOT };
    let (mut directory, rest) = match walk(path, None, wanted)? {
        WalkEnd::Directory(directory) => return Ok(directory),
        WalkEnd::Writable(directory, rest) => (directory, rest),
    };
    let mut left = components(&rest);
    while let Some(name) = left.pop() {
        directory = match openat(&directory, name.as_os_str(), DIRECTORY, Mode::empty()) {
            Err(Errno::ENOENT) => match make_in(&directory, &name, if left.is_empty() { wanted } else { OF_ROOT }) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    left.push(name);
                    directory
                }
                made => made?,
            },
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
    let is_held = |directory: &&Path| stat(*directory).is_ok_and(|stat| write_access(&stat, user) == WriteAccess::All);
    above.into_iter().find(is_held).map(Path::to_owned)
}

/// The warning about a directory that the job's user can replace, or without one any user but root. An agent that does
/// not run as root gets no warning: all its directories belong to its user.
pub fn warning(path: &Path, user: Option<&User>) -> Option<String> {
    if user.is_none() && !Uid::effective().is_root() {
        return None;
    }
    let above = writable_above(path, user)?;
    let (path, above) = (path.display(), above.display());
    let (who, whose) = match user {
        Some(user) => (format!("jobs (user {})", user.name), "a job"),
        None => ("another user than root".to_owned(), "that user"),
    };
    Some(format!(
        "{path} is below {above}, which {who} can write: {whose} can replace the directory for later jobs; move it below a \
         directory of root, such as /var/lib/mayfly, with `builds_dir` and `cache_dir`"
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
                if links > LINKS_MAX {
                    return Err(Errno::ELOOP.into());
                }
                let target = PathBuf::from(readlinkat(&directory, name.as_os_str())?);
                if target.is_absolute() {
                    directory = root()?;
                }
                left.extend(components(&target));
            }
            Ok(_) => directory = openat(&directory, name.as_os_str(), DIRECTORY, Mode::empty())?,
            Err(Errno::ENOENT) => match make_in(&directory, &name, if left.is_empty() { wanted } else { OF_ROOT }) {
                // A concurrent job created the directory.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => left.push(name),
                made => directory = made?,
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(WalkEnd::Directory(directory))
}

/// Creates a directory in an open directory.
fn make_in(directory: &OwnedFd, name: &OsString, wanted: Ownership) -> io::Result<OwnedFd> {
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
mod tests {
    use super::*;
    use nix::fcntl::{RenameFlags, renameat2};
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    fn nobody() -> User {
        User {
            name: "nobody".to_owned(),
            uid: 65534,
            gid: 65534,
            groups: Vec::new(),
            home: "/".into(),
            shell: "/bin/sh".into(),
        }
    }

    /// A directory of the user inside one of root.
    fn home() -> Option<(tempfile::TempDir, PathBuf)> {
        if !Uid::effective().is_root() {
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("set the permissions");
        let home = directory.path().join("home");
        fs::create_dir(&home).expect("create the directory");
        chown(&home, Some(65534), Some(65534)).expect("change the owner");
        Some((directory, home))
    }

    #[test]
    fn creates_directories_for_the_user_through_links_of_root() {
        let Some((directory, _)) = home() else { return };
        symlink("real", directory.path().join("link")).expect("create the link");
        fs::create_dir(directory.path().join("real")).expect("create the directory");
        let builds = directory.path().join("link/new/builds");
        make(&builds, Some(&nobody()), 0o700).expect("create the directory");
        let made = fs::metadata(directory.path().join("real/new/builds")).expect("the file must exist");
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (65534, 65534, 0o700));
        let above = fs::metadata(directory.path().join("real/new")).expect("the file must exist");
        assert_eq!((above.uid(), above.mode() & 0o7777), (0, 0o755));
        make(&builds, Some(&nobody()), 0o777).expect("an existing directory must be accepted");
        assert_eq!(fs::metadata(&builds).expect("the file must exist").mode() & 0o7777, 0o700);
        fs::set_permissions(&builds, fs::Permissions::from_mode(0o2755)).expect("set the permissions");
        make(&builds, Some(&nobody()), 0o700).expect("an existing directory must be accepted");
        assert_eq!(fs::metadata(&builds).expect("the file must exist").mode() & 0o7777, 0o2700);
        assert_eq!(writable_above(&builds, Some(&nobody())), None);
    }

    #[test]
    fn a_link_of_the_user_gains_nothing() {
        let Some((directory, home)) = home() else { return };
        let closed = directory.path().join("closed");
        fs::create_dir(&closed).expect("create the directory");
        symlink(closed.join("victim"), home.join("builds")).expect("create the link");
        assert!(make(&home.join("builds"), Some(&nobody()), 0o700).is_err());
        assert_eq!(fs::read_dir(&closed).expect("list the directory").count(), 0);
        fs::create_dir(closed.join("victim")).expect("create the directory");
        make(&home.join("builds"), Some(&nobody()), 0o700).expect("an existing directory must be accepted");
        assert_eq!(fs::metadata(closed.join("victim")).expect("the file must exist").uid(), 0);
        make(&home.join("other/builds"), Some(&nobody()), 0o700).expect("create the directory");
        assert_eq!(fs::metadata(home.join("other/builds")).expect("the file must exist").uid(), 65534);
        assert_eq!(writable_above(&home.join("other/builds"), Some(&nobody())), Some(home.clone()));
        assert_eq!(writable_above(&home.join("other/builds"), None), Some(home));
    }

    /// If jobs have no separate user, root follows only links of root.
    #[test]
    fn root_follows_links_of_root_only() {
        let Some((directory, home)) = home() else { return };
        let closed = directory.path().join("closed");
        fs::create_dir(&closed).expect("create the directory");
        symlink(&closed, home.join("link")).expect("create the link");
        symlink(&closed, directory.path().join("link")).expect("create the link");
        for path in ["link", "link/caches", "link/../link/caches"] {
            let why = make(&home.join(path), None, 0o700).expect_err("must be refused").to_string();
            assert!(why.contains("`link` in this path is a link"), "{why}");
            assert!(make_open(&home.join(path)).is_err());
        }
        assert_eq!(fs::read_dir(&closed).expect("list the directory").count(), 0);
        assert_eq!(fs::metadata(&closed).expect("the file must exist").mode() & 0o777, 0o755);
        make(&directory.path().join("link/of/root"), None, 0o700).expect("create the directory");
        make_open(&home.join("new/caches")).expect("create the directory");
        let mode = |path: &Path| fs::symlink_metadata(path).expect("the file must exist").mode() & 0o7777;
        assert_eq!((mode(&closed.join("of")), mode(&closed.join("of/root"))), (0o755, 0o700));
        assert_eq!((mode(&home.join("new")), mode(&home.join("new/caches"))), (0o755, 0o777));
        // In a directory that every user can write, any user can create a link.
        let shared = directory.path().join("shared");
        fs::create_dir(&shared).expect("create the directory");
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("set the permissions");
        symlink(&closed, shared.join("planted")).expect("create the link");
        nix::unistd::fchownat(
            nix::fcntl::AT_FDCWD,
            &shared.join("planted"),
            Some(Uid::from_raw(65533)),
            None,
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .expect("change the owner");
        assert!(make(&shared.join("planted/caches"), None, 0o700).is_err());
        assert!(make(&shared.join("planted/builds"), Some(&nobody()), 0o700).is_err());
        assert_eq!(fs::read_dir(&closed).expect("list the directory").count(), 1);
    }

    /// The user swaps a directory with a link to one of root while the agent creates the last part of the path.
    #[test]
    fn a_race_of_renames_gains_nothing() {
        let Some((directory, home)) = home() else { return };
        let victim = directory.path().join("victim");
        fs::create_dir(&victim).expect("create the directory");
        fs::create_dir(home.join("a")).expect("create the directory");
        chown(home.join("a"), Some(65534), Some(65534)).expect("change the owner");
        symlink(&victim, home.join("b")).expect("create the link");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let (here, flags) = (nix::fcntl::AT_FDCWD, RenameFlags::RENAME_EXCHANGE);
                    renameat2(here, &home.join("a"), here, &home.join("b"), flags).expect("rename the file");
                }
            });
            for number in 0..2000 {
                let _ = make(&home.join(format!("a/{number}/builds")), Some(&nobody()), 0o700);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let found = fs::metadata(&victim).expect("the file must exist");
        assert_eq!((found.uid(), fs::read_dir(&victim).expect("list the directory").count()), (0, 0));
    }
}
