//! Creates the directories for builds and caches so that no job can make the agent create or give away other
//! directories.
//!
//! In a directory that belongs to root and that only root can write, every entry, including links, was created by an
//! administrator. Below a directory that other users can write, the rest of the path is created and opened with the
//! permissions of the job's user: anything that a job plants there gives it only access that it already has.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
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

/// Creates a directory with this mode, for the job's user if it is not the agent's; an existing one is not changed.
/// Fails if a file has its name.
pub fn make(path: &Path, user: Option<&User>, mode: u32) -> io::Result<()> {
    match user {
        Some(user) => make_for(path, user, user, mode),
        None => make_as_caller(path, mode),
    }
}

/// Creates a directory in which several users, including this one, have their own directories.
pub fn make_common(path: &Path, user: &User) -> io::Result<()> {
    make_for(path, user, &User { uid: 0, gid: 0, ..user.clone() }, 0o711)
}

/// Creates a directory that all users of the user's group share.
pub fn make_shared(path: &Path, user: &User) -> io::Result<()> {
    make_for(path, user, &User { uid: 0, ..user.clone() }, 0o2770)
}

fn make_for(path: &Path, user: &User, owner: &User, mode: u32) -> io::Result<()> {
    match walk(path, user, (owner, mode))? {
        WalkEnd::Directory => Ok(()),
        WalkEnd::Writable(directory, rest) => {
            let place = own_path(&directory).join(rest);
            as_job(Some(user), || make_as_caller(&place, mode & 0o777))?
        }
    }
}

fn make_as_caller(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(above) = path.parent() {
        std::fs::create_dir_all(above)?;
    }
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// The first directory on the way to `path` in which a user can replace entries.
pub fn writable_above(path: &Path, user: &User) -> Option<PathBuf> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    let is_held = |directory: &&Path| stat(*directory).is_ok_and(|stat| write_access(&stat, user) == WriteAccess::All);
    above.into_iter().find(is_held).map(Path::to_owned)
}

/// The warning about a directory that jobs of the user can replace.
pub fn warning(path: &Path, user: &User) -> Option<String> {
    let above = writable_above(path, user)?;
    let (path, above, name) = (path.display(), above.display(), &user.name);
    Some(format!(
        "{path} is below {above}, which jobs (user {name}) can write: a job can replace the directory for later jobs; \
         move it below a directory of root, such as /var/lib/mayfly, with `builds_dir` and `cache_dir`"
    ))
}

/// The end of a walk along a path.
enum WalkEnd {
    /// The directory; all its parents belong to root.
    Directory,
    /// A directory that other users can write, and the remaining path.
    Writable(OwnedFd, PathBuf),
}

/// Follows a path while only root can change it; creates missing parts; the last part gets an owner and a mode.
fn walk(path: &Path, user: &User, last: (&User, u32)) -> io::Result<WalkEnd> {
    let mut left = components(path);
    let mut directory = root()?;
    let mut links = 0;
    while let Some(name) = left.pop() {
        let access = write_access(&fstat(&directory)?, user);
        let found = fstatat(&directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        let is_own = found.is_ok_and(|stat| stat.st_uid == user.uid);
        if access == WriteAccess::All || (access == WriteAccess::Own && is_own) {
            left.push(name);
            return Ok(WalkEnd::Writable(directory, left.iter().rev().collect()));
        }
        match found {
            Ok(stat) if kind(&stat) == SFlag::S_IFLNK => {
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
            Err(Errno::ENOENT) => match make_in(&directory, &name, left.is_empty().then_some(last)) {
                // A concurrent job created it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => left.push(name),
                made => directory = made?,
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(WalkEnd::Directory)
}

/// Creates a directory in one that only root can write.
fn make_in(directory: &OwnedFd, name: &OsString, last: Option<(&User, u32)>) -> io::Result<OwnedFd> {
    let mode = Mode::from_bits_truncate(last.map_or(0o755, |(_, mode)| mode));
    mkdirat(directory, name.as_os_str(), Mode::S_IRWXU)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made = openat(directory, name.as_os_str(), flags, Mode::empty())?;
    if let Some((owner, _)) = last {
        fchown(&made, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    }
    fchmod(&made, mode)?;
    Ok(made)
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
    /// Create new ones, and change the user's own (sticky directory).
    Own,
    /// Replace any.
    All,
}

fn write_access(stat: &FileStat, user: &User) -> WriteAccess {
    let in_group = user.gid == stat.st_gid || user.groups.contains(&stat.st_gid);
    let may_write = stat.st_mode & 0o002 != 0 || (in_group && stat.st_mode & 0o020 != 0);
    match () {
        () if user.uid == 0 => WriteAccess::None,
        () if stat.st_uid == user.uid => WriteAccess::All,
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
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("opened");
        let home = directory.path().join("home");
        fs::create_dir(&home).expect("made");
        chown(&home, Some(65534), Some(65534)).expect("given");
        Some((directory, home))
    }

    #[test]
    fn creates_directories_for_the_user_through_links_of_root() {
        let Some((directory, _)) = home() else { return };
        symlink("real", directory.path().join("link")).expect("linked");
        fs::create_dir(directory.path().join("real")).expect("made");
        let builds = directory.path().join("link/new/builds");
        make(&builds, Some(&nobody()), 0o700).expect("made");
        let made = fs::metadata(directory.path().join("real/new/builds")).expect("there");
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (65534, 65534, 0o700));
        let above = fs::metadata(directory.path().join("real/new")).expect("there");
        assert_eq!((above.uid(), above.mode() & 0o7777), (0, 0o755));
        make(&builds, Some(&nobody()), 0o777).expect("there is one");
        assert_eq!(fs::metadata(&builds).expect("there").mode() & 0o7777, 0o700);
        assert_eq!(writable_above(&builds, &nobody()), None);
    }

    #[test]
    fn a_link_of_the_user_gains_nothing() {
        let Some((directory, home)) = home() else { return };
        let closed = directory.path().join("closed");
        fs::create_dir(&closed).expect("made");
        symlink(closed.join("victim"), home.join("builds")).expect("planted");
        assert!(make(&home.join("builds"), Some(&nobody()), 0o700).is_err());
        assert_eq!(fs::read_dir(&closed).expect("there").count(), 0);
        fs::create_dir(closed.join("victim")).expect("made");
        make(&home.join("builds"), Some(&nobody()), 0o700).expect("there is one");
        assert_eq!(fs::metadata(closed.join("victim")).expect("there").uid(), 0);
        make(&home.join("other/builds"), Some(&nobody()), 0o700).expect("made");
        assert_eq!(fs::metadata(home.join("other/builds")).expect("there").uid(), 65534);
        assert_eq!(writable_above(&home.join("other/builds"), &nobody()), Some(home));
    }

    /// The user swaps a directory with a link to one of root while the agent creates the last part of the path.
    #[test]
    fn a_race_of_renames_gains_nothing() {
        let Some((directory, home)) = home() else { return };
        let victim = directory.path().join("victim");
        fs::create_dir(&victim).expect("made");
        fs::create_dir(home.join("a")).expect("made");
        chown(home.join("a"), Some(65534), Some(65534)).expect("given");
        symlink(&victim, home.join("b")).expect("planted");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let (here, flags) = (nix::fcntl::AT_FDCWD, RenameFlags::RENAME_EXCHANGE);
                    renameat2(here, &home.join("a"), here, &home.join("b"), flags).expect("swapped");
                }
            });
            for number in 0..2000 {
                let _ = make(&home.join(format!("a/{number}/builds")), Some(&nobody()), 0o700);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let found = fs::metadata(&victim).expect("there");
        assert_eq!((found.uid(), fs::read_dir(&victim).expect("there").count()), (0, 0));
    }
}
