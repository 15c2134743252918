//! The directory that packing and unpacking never leave.
//!
//! Every name is resolved with `openat2` from an open descriptor of that directory. So neither `..`, nor an absolute
//! name, nor a link that a job created leads out of it, even if the tree changes meanwhile.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// An open directory; all access to its content goes through this type.
pub struct ArchiveRoot {
    fd: OwnedFd,
    path: PathBuf,
    /// `/proc/self/fd`, if it exists.
    own_descriptors: Option<OwnedFd>,
}

/// How symbolic links within a name are resolved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Never: a link in the path is an error (`ELOOP`).
    Refused,
    /// If they stay below the directory; a link that leads out is an error (`EXDEV`).
    Inside,
}

/// The type of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A socket, a pipe or a device.
    Special,
}

impl ArchiveRoot {
    /// Opens the directory. Links in `path` itself are trusted and followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_PATH;
        Ok(Self {
            fd: open(path, flags, Mode::empty())?,
            path: path.to_owned(),
            own_descriptors: open_own_descriptors(),
        })
    }

    /// Opens a directory below this one, and creates missing parts. No part may be a link, because a job may have
    /// created the link.
    pub fn descend(&self, name: &Path) -> io::Result<Self> {
        let step = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut fd = openat(&self.fd, ".", step, Mode::empty())?;
        for part in name.components() {
            let Component::Normal(part) = part else { return Err(Errno::EXDEV.into()) };
            match mkdirat(&fd, part, Mode::from_bits_truncate(0o777)) {
                Ok(()) | Err(Errno::EEXIST) => fd = openat(&fd, part, step, Mode::empty())?,
                Err(why) => return Err(why.into()),
            }
        }
        Ok(Self { fd, path: self.path.join(name), own_descriptors: open_own_descriptors() })
    }

    /// A path that refers to this directory while it is open, even if the directory is renamed.
    pub fn descriptor_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Sets the path of the directory for patterns and messages.
    pub fn with_known_path(self, path: &Path) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// The path by which the directory was opened, or the path that [`ArchiveRoot::with_known_path`] set.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a relative name.
    pub fn open_beneath(&self, name: &Path, flags: OFlag, links: Links) -> io::Result<OwnedFd> {
        let name = if name.as_os_str().is_empty() { Path::new(".") } else { name };
        let mut resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        if links == Links::Refused {
            resolve |= ResolveFlag::RESOLVE_NO_SYMLINKS;
        }
        let flags = flags | OFlag::O_CLOEXEC;
        loop {
            match openat2(&self.fd, name, OpenHow::new().flags(flags).resolve(resolve)) {
                // A concurrent rename made the resolution ambiguous; the kernel asks for a retry.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(Errno::ENOSYS) => return self.open_by_steps(name, flags),
                result => return Ok(result?),
            }
        }
    }

    /// As [`ArchiveRoot::open_beneath`], but without `openat2` (Linux before 5.6): opens one path segment at a time,
    /// and follows no link.
    fn open_by_steps(&self, name: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let mut names = Vec::new();
        for component in name.components() {
            match component {
                Component::Normal(name) => names.push(name),
                Component::CurDir => {}
                _ => return Err(Errno::EXDEV.into()),
            }
        }
        let last = names.pop().unwrap_or(OsStr::new("."));
        let step = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut directory = openat(&self.fd, ".", step, Mode::empty())?;
        for name in names {
            directory = openat(&directory, name, step, Mode::empty())?;
        }
        Ok(openat(&directory, last, flags | OFlag::O_NOFOLLOW, Mode::empty())?)
    }

    /// Opens a regular file for reading, through no link. Checks the type first: opening a pipe may block, and opening
    /// a device may have side effects.
    pub fn open_file(&self, name: &Path) -> io::Result<(File, FileStat)> {
        let is_file = |stat: FileStat| match kind_of(&stat) {
            FileKind::File => Ok(stat),
            _ => Err(io::Error::other("it is no longer a regular file")),
        };
        let found = self.open_beneath(name, OFlag::O_PATH | OFlag::O_NOFOLLOW, Links::Refused)?;
        let stat = is_file(fstat(&found)?)?;
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        // Without /proc the file must be opened by name, which may refer to another file by now.
        let Some(own_descriptors) = &self.own_descriptors else {
            let file = self.open_beneath(name, flags | OFlag::O_NOFOLLOW, Links::Refused)?;
            let stat = is_file(fstat(&file)?)?;
            return Ok((File::from(file), stat));
        };
        let file = openat(own_descriptors, found.as_raw_fd().to_string().as_str(), flags, Mode::empty())?;
        Ok((File::from(file), stat))
    }

    /// Removes a file, a link, or an empty directory; follows no link.
    pub fn remove(&self, name: &Path, kind: FileKind) -> io::Result<()> {
        let last = name.file_name().ok_or(Errno::EINVAL)?;
        let above = name.parent().unwrap_or(Path::new(""));
        let directory = self.open_beneath(above, OFlag::O_PATH | OFlag::O_DIRECTORY, Links::Refused)?;
        let how = if kind == FileKind::Directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        Ok(unlinkat(&directory, last, how)?)
    }

    /// Writes a file directly in the directory; replaces an existing entry.
    pub fn replace_file(&self, name: &Path, content: &[u8]) -> io::Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(why) => return Err(why.into()),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.fd, name, flags, Mode::from_bits_truncate(0o644))?);
        file.write_all(content)
    }

    /// The metadata of a name; does not follow a link.
    pub fn stat(&self, name: &Path) -> io::Result<FileStat> {
        Ok(fstat(self.open_beneath(name, OFlag::O_PATH | OFlag::O_NOFOLLOW, Links::Refused)?)?)
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, name: &Path) -> io::Result<OsString> {
        let link = self.open_beneath(name, OFlag::O_PATH | OFlag::O_NOFOLLOW, Links::Refused)?;
        Ok(readlinkat(&link, "")?)
    }

    /// The entries of a directory, sorted by name.
    pub fn list(&self, name: &Path) -> io::Result<Vec<(OsString, FileKind)>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let mut directory = Dir::from_fd(self.open_beneath(name, flags, Links::Refused)?)?;
        let mut found: Vec<(CString, Option<FileKind>)> = Vec::new();
        for entry in directory.iter() {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                found.push((entry.file_name().to_owned(), entry.file_type().map(kind_of_type)));
            }
        }
        let mut entries = Vec::with_capacity(found.len());
        for (name, kind) in found {
            let kind = match kind {
                Some(kind) => kind,
                None => match fstatat(&directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                    Ok(stat) => kind_of(&stat),
                    Err(_) => continue,
                },
            };
            entries.push((os_string(&name), kind));
        }
        entries.sort_unstable();
        Ok(entries)
    }

    /// Whether a name refers to a directory after links are followed, even outside of this directory. For messages
    /// only.
    pub fn leads_to_directory(&self, name: &Path) -> bool {
        fstatat(AT_FDCWD, &self.path.join(name), AtFlags::empty())
            .is_ok_and(|stat| kind_of(&stat) == FileKind::Directory)
    }

    /// The descriptor of the directory.
    pub fn fd(&self) -> impl AsFd + '_ {
        &self.fd
    }
}

/// `/proc/self/fd`, through which only files that this process has open can be reopened.
fn open_own_descriptors() -> Option<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(AT_FDCWD, "/proc/self/fd", flags, Mode::empty()).ok()
}

fn os_string(name: &CStr) -> OsString {
    OsStr::from_bytes(name.to_bytes()).to_owned()
}

/// The type of a file from its metadata.
pub fn kind_of(stat: &FileStat) -> FileKind {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => FileKind::File,
        SFlag::S_IFDIR => FileKind::Directory,
        SFlag::S_IFLNK => FileKind::Link,
        _ => FileKind::Special,
    }
}

fn kind_of_type(kind: nix::dir::Type) -> FileKind {
    match kind {
        nix::dir::Type::File => FileKind::File,
        nix::dir::Type::Directory => FileKind::Directory,
        nix::dir::Type::Symlink => FileKind::Link,
        _ => FileKind::Special,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> (tempfile::TempDir, ArchiveRoot) {
        let temp = tempfile::tempdir().unwrap();
        let project = temp.path().join("project");
        std::fs::create_dir_all(project.join("a/b")).unwrap();
        std::fs::write(project.join("a/b/file"), "inside").unwrap();
        std::fs::write(temp.path().join("secret"), "outside").unwrap();
        symlink("../secret", project.join("up")).unwrap();
        symlink(temp.path(), project.join("out")).unwrap();
        symlink("a", project.join("in")).unwrap();
        let root = ArchiveRoot::open(&project).unwrap();
        (temp, root)
    }

    #[test]
    fn cannot_reach_files_outside() {
        let (temp, root) = tree();
        let absolute = temp.path().join("secret");
        for name in ["../secret", "up", "out/secret", "a/../../secret", absolute.to_str().unwrap()] {
            assert!(root.open_file(Path::new(name)).is_err(), "{name}");
            assert!(root.open_beneath(Path::new(name), OFlag::O_RDONLY, Links::Inside).is_err(), "{name}");
            assert!(root.open_by_steps(Path::new(name), OFlag::O_RDONLY).is_err(), "{name}");
        }
    }

    #[test]
    fn follows_links_inside_only_on_request() {
        let (_temp, root) = tree();
        let through = Path::new("in/b/file");
        assert!(root.open_beneath(through, OFlag::O_RDONLY, Links::Inside).is_ok());
        assert!(root.open_beneath(through, OFlag::O_RDONLY, Links::Refused).is_err());
        assert!(root.open_file(Path::new("a/b/file")).is_ok());
        assert!(root.open_by_steps(Path::new("a/b/file"), OFlag::O_RDONLY).is_ok());
        assert_eq!(root.read_link(Path::new("in")).unwrap(), "a");
    }

    #[test]
    fn does_not_open_special_files() {
        let (_temp, root) = tree();
        nix::unistd::mkfifo(&root.path().join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        assert!(root.open_file(Path::new("pipe")).is_err());
        assert!(root.open_file(Path::new("a")).is_err());
    }

    #[test]
    fn does_not_follow_a_link_that_replaces_a_directory() {
        let (temp, root) = tree();
        for name in ["out", "out/project", "in", "in/b", "../secret"] {
            assert!(root.descend(Path::new(name)).is_err(), "{name}");
        }
        let below = root.descend(Path::new("a/b")).unwrap();
        assert!(below.open_file(Path::new("file")).is_ok());
        assert_eq!(below.path(), temp.path().join("project/a/b"));
        root.descend(Path::new("new/and/deep")).unwrap();
        assert!(temp.path().join("project/new/and/deep").is_dir());
    }

    #[test]
    fn removes_the_link_and_not_its_target() {
        let (temp, root) = tree();
        assert!(root.remove(Path::new("out/secret"), FileKind::File).is_err());
        root.remove(Path::new("up"), FileKind::Link).unwrap();
        assert!(temp.path().join("secret").exists() && root.stat(Path::new("up")).is_err());
        assert!(root.remove(Path::new("a"), FileKind::Directory).is_err(), "it is not empty");
        assert!(root.remove(Path::new(""), FileKind::Directory).is_err());
    }
}
