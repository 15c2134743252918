//! Creates unpacked files below the project directory, regardless of existing files.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, fstat, fstatat, futimens, mkdirat, utimensat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, geteuid, linkat, symlinkat, unlinkat};

use super::{UnpackError, Unpacked, unreadable};
use crate::archive::Warnings;
use crate::archive::root::{ArchiveRoot, FileKind, Links, kind_of};
use crate::sync;

/// The disk space that unpacking leaves free, in bytes.
const RESERVED_BYTES: i64 = 16 << 20;
/// The limit for paths and link targets that are kept in memory until all files exist: about a million links and
/// directories.
const MAX_DEFERRED_BYTES: usize = 128 << 20;

/// The project directory during unpacking; shared by threads.
pub struct Destination<'a> {
    root: &'a ArchiveRoot,
    /// The number of bytes that may still be written, as of the last check.
    budget: AtomicI64,
    entries: AtomicU64,
    deferred: Mutex<DeferredMetadata>,
}

/// Work that waits until all files exist: links, so that no file is written through a link of the archive; modes and
/// times of directories, so that files can still be created in them.
#[derive(Default)]
struct DeferredMetadata {
    links: Vec<(PathBuf, OsString, TimeSpec)>,
    directories: BTreeMap<PathBuf, Meta>,
    /// Existing directories that their owner could not write to, with their modes.
    read_only: BTreeMap<PathBuf, u32>,
    warnings: Warnings,
    /// The bytes that paths and targets take.
    size: usize,
}

impl DeferredMetadata {
    /// Adds the memory that a link or directory takes. Fails if the archive contains too many links and directories.
    fn add_size(&mut self, path: &Path, target: &OsStr) -> io::Result<()> {
        /// The approximate overhead of a map and a list entry.
        const OVERHEAD_BYTES: usize = 64;
        self.size += path.as_os_str().len() + target.len() + OVERHEAD_BYTES;
        match self.size > MAX_DEFERRED_BYTES {
            true => Err(unreadable(io::Error::other("the archive contains too many links and directories"))),
            false => Ok(()),
        }
    }
}

/// Mode and modification time of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// The permission bits; other bits are ignored.
    pub mode: u32,
    pub mtime: TimeSpec,
}

impl Meta {
    /// Drops set-user-id, set-group-id and sticky bits: an archive must not grant privileges.
    fn permissions(self) -> Mode {
        Mode::from_bits_truncate(self.mode & 0o777)
    }
}

/// The reusable state of a thread that writes files.
pub struct Writer {
    /// The directory of the previous file. The next file is probably in the same directory.
    parent: Option<(PathBuf, OwnedFd)>,
    /// A buffer size that suits both decompression and disk.
    buffer: Vec<u8>,
}

impl Writer {
    pub fn new() -> Self {
        Self { parent: None, buffer: vec![0; 64 * 1024] }
    }
}

impl<'a> Destination<'a> {
    pub fn new(root: &'a ArchiveRoot) -> io::Result<Self> {
        let budget = AtomicI64::new(free_bytes(root)?);
        Ok(Self { root, budget, entries: AtomicU64::new(0), deferred: Mutex::default() })
    }

    fn deferred(&self) -> MutexGuard<'_, DeferredMetadata> {
        sync::lock(&self.deferred)
    }

    /// Adds a warning about a skipped entry.
    pub fn warn(&self, text: String) {
        self.deferred().warnings.push(text);
    }

    /// Reserves disk space for an entry of this size.
    pub fn reserve(&self, size: u64) -> io::Result<()> {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        if self.budget.fetch_sub(size.min(i64::MAX / 2), Ordering::Relaxed) >= size {
            return Ok(());
        }
        // Unpacked files may have replaced larger ones meanwhile, so check the disk again.
        let free = free_bytes(self.root)?;
        self.budget.store(free.saturating_sub(size), Ordering::Relaxed);
        if free >= size {
            return Ok(());
        }
        let why = format!("{size} bytes, but only {} are free on the disk", free.max(0));
        Err(io::Error::new(io::ErrorKind::StorageFull, why))
    }

    /// Writes a file. An existing entry that is not a directory is replaced, never written through a link.
    pub fn file(&self, writer: &mut Writer, path: &Path, meta: Meta, content: &mut dyn Read) -> io::Result<()> {
        let name = file_name(path)?;
        let Writer { parent, buffer } = writer;
        let directory = self.open_parent(parent, path)?;
        let mut file = create(directory, name, meta.permissions())?;
        let mut written = copy(content, &mut file, buffer);
        if written.is_ok() {
            written = set_mode(&file, meta.permissions())
                .and_then(|()| futimens(&file, &TimeSpec::UTIME_OMIT, &meta.mtime))
                .map_err(io::Error::from);
        }
        if written.is_err() {
            // An incomplete file must not remain.
            let _ = unlinkat(directory, name, UnlinkatFlags::NoRemoveDir);
        }
        self.entries.fetch_add(1, Ordering::Relaxed);
        written
    }

    /// Creates a directory.
    pub fn directory(&self, path: &Path, meta: Meta) -> io::Result<()> {
        if !path.as_os_str().is_empty() {
            self.make_directories(path)?;
            self.deferred().add_size(path, OsStr::new(""))?;
            self.deferred().directories.insert(path.to_owned(), meta);
            self.entries.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Records a symbolic link. Fails if there are too many.
    pub fn link(&self, path: PathBuf, target: OsString, mtime: TimeSpec) -> io::Result<()> {
        let mut deferred = self.deferred();
        deferred.add_size(&path, &target)?;
        deferred.links.push((path, target, mtime));
        self.entries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Creates a hard link to a file that was unpacked.
    pub fn hard_link(&self, writer: &mut Writer, path: &Path, target: &Path) -> io::Result<()> {
        let name = file_name(path)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let from = self.root.open_beneath(target.parent().unwrap_or(Path::new("")), flags, Links::Inside)?;
        let from_name = file_name(target)?;
        if kind_of(&fstatat(&from, from_name, AtFlags::AT_SYMLINK_NOFOLLOW)?) != FileKind::File {
            return Err(io::Error::other("its target is not a file"));
        }
        let directory = self.open_parent(&mut writer.parent, path)?;
        if path != target {
            remove_existing(directory, name)?;
            linkat(&from, from_name, directory, name, AtFlags::empty())?;
        }
        self.entries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Creates links, and sets modes and times of directories.
    pub fn finish(self) -> Result<Unpacked, UnpackError> {
        let mut deferred = std::mem::take(&mut *self.deferred());
        let mut parent = None;
        for (path, target, mtime) in &deferred.links {
            let name = path.as_os_str().as_encoded_bytes();
            self.make_link(&mut parent, path, target, mtime).map_err(|why| UnpackError::of_io(name, &why))?;
        }
        // Creating links may have made further directories writable.
        let read_only =
            std::mem::take(&mut deferred.read_only).into_iter().chain(std::mem::take(&mut self.deferred().read_only));
        for (path, mode) in read_only {
            deferred.directories.entry(path).or_insert(Meta { mode, mtime: TimeSpec::UTIME_OMIT });
        }
        // The deepest directories come first, because a change below a directory alters the time of that directory.
        for (path, meta) in deferred.directories.iter().rev() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            if let Ok(directory) = self.root.open_beneath(path, flags, Links::Refused) {
                let _ = fchmod(&directory, meta.permissions());
                let _ = futimens(&directory, &TimeSpec::UTIME_OMIT, &meta.mtime);
            }
        }
        Ok(Unpacked { entries: self.entries.into_inner(), warnings: deferred.warnings })
    }

    fn make_link(
        &self,
        parent: &mut Option<(PathBuf, OwnedFd)>,
        path: &Path,
        target: &OsStr,
        mtime: &TimeSpec,
    ) -> io::Result<()> {
        let directory = self.open_parent(parent, path)?;
        let name = file_name(path)?;
        remove_existing(directory, name)?;
        symlinkat(target, directory, name)?;
        // Some file systems do not store times of links.
        let _ = utimensat(directory, name, &TimeSpec::UTIME_OMIT, mtime, UtimensatFlags::NoFollowSymlink);
        Ok(())
    }

    fn open_parent<'p>(&self, parent: &'p mut Option<(PathBuf, OwnedFd)>, path: &Path) -> io::Result<&'p OwnedFd> {
        let wanted = path.parent().unwrap_or(Path::new(""));
        if parent.as_ref().is_none_or(|(open, _)| open != wanted) {
            let directory = self.make_directories(wanted)?;
            self.make_writable(&directory, wanted)?;
            *parent = Some((wanted.to_owned(), directory));
        }
        match parent {
            Some((_, directory)) => Ok(directory),
            None => Err(Errno::ENOENT.into()),
        }
    }

    /// Opens a directory; creates missing parts.
    fn make_directories(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match self.root.open_beneath(path, flags, Links::Inside) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            // A parent directory denies access to its owner.
            Err(why) if why.kind() == io::ErrorKind::PermissionDenied && !path.as_os_str().is_empty() => {}
            result => return result,
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        let above = self.make_directories(parent)?;
        self.make_writable(&above, parent)?;
        match mkdirat(&above, file_name(path)?, Mode::from_bits_truncate(0o777)) {
            Ok(()) | Err(Errno::EEXIST) => self.root.open_beneath(path, flags, Links::Inside),
            Err(why) => Err(why.into()),
        }
    }
}

impl Destination<'_> {
    /// Gives the owner write permission on an existing directory, such as one of Go's module cache; its mode is
    /// restored at the end. Directories of other users are not changed.
    fn make_writable(&self, directory: &OwnedFd, path: &Path) -> io::Result<()> {
        let (stat, user) = (fstat(directory)?, geteuid());
        let mode = stat.st_mode & 0o7777;
        if mode & 0o700 == 0o700 || user.is_root() || stat.st_uid != user.as_raw() {
            return Ok(());
        }
        let own_path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        fs::set_permissions(own_path, fs::Permissions::from_mode(mode | 0o700))?;
        self.deferred().read_only.entry(path.to_owned()).or_insert(mode);
        Ok(())
    }
}

fn file_name(path: &Path) -> io::Result<&OsStr> {
    path.file_name().ok_or_else(|| io::Error::other("it has no name"))
}

/// Sets the mode; avoids a system call if the mode is already right.
fn set_mode(file: &File, mode: Mode) -> nix::Result<()> {
    let now = Mode::from_bits_truncate(fstat(file)?.st_mode & 0o7777);
    if now == mode { Ok(()) } else { fchmod(file, mode) }
}

fn create(directory: &OwnedFd, name: &OsStr, mode: Mode) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(directory, name, flags, mode) {
        Err(Errno::EEXIST) => {
            remove_existing(directory, name)?;
            Ok(File::from(openat(directory, name, flags, mode)?))
        }
        result => Ok(File::from(result?)),
    }
}

/// Removes an existing entry, unless it is a directory.
fn remove_existing(directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => Err(io::Error::other("a directory with that name exists")),
        Err(why) => Err(why.into()),
    }
}

fn copy(from: &mut dyn Read, to: &mut File, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        match from.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&buffer[..length])?,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(why) => return Err(unreadable(why)),
        }
    }
}

/// The number of bytes that may be written to the disk of the project directory.
fn free_bytes(root: &ArchiveRoot) -> io::Result<i64> {
    let stat = fstatvfs(root.fd())?;
    let size = |blocks: u64| i64::try_from(blocks.saturating_mul(stat.fragment_size())).unwrap_or(i64::MAX);
    Ok(size(stat.blocks_available()).saturating_sub(RESERVED_BYTES.min(size(stat.blocks()) / 20)))
}
