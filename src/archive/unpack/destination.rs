//! Where unpacked files go: made beneath the project directory, whatever stands there already.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fchmod, fstat, fstatat, futimens, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

use super::{UnpackError, Unpacked, unreadable};
use crate::archive::Warnings;
use crate::archive::root::{Kind, Links, Root, kind_of};

/// What is left on the disk for others, at most.
const RESERVE: i64 = 16 << 20;
/// Bytes of paths and targets that are kept in memory until all files are there: a million links and directories.
const DEFERRED_BYTES_MAX: usize = 128 << 20;

/// The project directory while an archive is unpacked into it; shared by threads.
pub struct Destination<'a> {
    root: &'a Root,
    /// Bytes that may still be written, as far as is known.
    budget: AtomicI64,
    entries: AtomicU64,
    later: Mutex<DeferredMetadata>,
}

/// What waits until all files are there: links, so that nothing is written through one of the archive's own, and the
/// modes and times of directories, so that files can still be made in them.
#[derive(Default)]
struct DeferredMetadata {
    links: Vec<(PathBuf, OsString)>,
    directories: BTreeMap<PathBuf, Meta>,
    warnings: Warnings,
    /// Bytes that the paths and targets take.
    size: usize,
}

impl DeferredMetadata {
    /// Asks for memory. Errors: an archive that small takes no such number of links and directories.
    fn reserve(&mut self, path: &Path, target: &OsStr) -> io::Result<()> {
        /// What a tree and a list keep beside the bytes.
        const BESIDE: usize = 64;
        self.size += path.as_os_str().len() + target.len() + BESIDE;
        match self.size > DEFERRED_BYTES_MAX {
            true => Err(unreadable(io::Error::other("the archive holds too many links and directories"))),
            false => Ok(()),
        }
    }
}

/// Mode and time of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Permission bits; others are dropped.
    pub mode: u32,
    /// When it was last changed.
    pub mtime: TimeSpec,
}

impl Meta {
    /// Neither set-user-id nor set-group-id nor sticky: an archive has no business to hand those out.
    fn permissions(self) -> Mode {
        Mode::from_bits_truncate(self.mode & 0o777)
    }
}

/// What a thread that writes files keeps from one to the next.
pub struct Writer {
    /// The directory that the next file is likely to go into, too.
    parent: Option<(PathBuf, OwnedFd)>,
    /// It suits both a decompressor and a disk.
    buffer: Vec<u8>,
}

impl Writer {
    /// Before the first file.
    pub fn new() -> Self {
        Self { parent: None, buffer: vec![0; 64 * 1024] }
    }
}

impl<'a> Destination<'a> {
    /// Begins to unpack.
    pub fn new(root: &'a Root) -> io::Result<Self> {
        let budget = AtomicI64::new(free(root)?);
        Ok(Self { root, budget, entries: AtomicU64::new(0), later: Mutex::default() })
    }

    fn later(&self) -> MutexGuard<'_, DeferredMetadata> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that something was passed over.
    pub fn warn(&self, text: String) {
        self.later().warnings.push(text);
    }

    /// Asks for room for an entry of this size.
    pub fn reserve(&self, size: u64) -> io::Result<()> {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        if self.budget.fetch_sub(size.min(i64::MAX / 2), Ordering::Relaxed) >= size {
            return Ok(());
        }
        // Files may have been replaced by smaller ones meanwhile: ask the disk again.
        let free = free(self.root)?;
        self.budget.store(free.saturating_sub(size), Ordering::Relaxed);
        if free >= size {
            return Ok(());
        }
        let why = format!("{size} bytes, but only {} are free on the disk", free.max(0));
        Err(io::Error::new(io::ErrorKind::StorageFull, why))
    }

    /// Writes a file. Something that is no directory is replaced: never written through, whatever it links to.
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
            // Half a file is worse than none.
            let _ = unlinkat(directory, name, UnlinkatFlags::NoRemoveDir);
        }
        self.entries.fetch_add(1, Ordering::Relaxed);
        written
    }

    /// Makes a directory.
    pub fn directory(&self, path: &Path, meta: Meta) -> io::Result<()> {
        if !path.as_os_str().is_empty() {
            self.make_directories(path)?;
            self.later().reserve(path, OsStr::new(""))?;
            self.later().directories.insert(path.to_owned(), meta);
            self.entries.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Remembers a symbolic link. Errors: there are too many.
    pub fn link(&self, path: PathBuf, target: OsString) -> io::Result<()> {
        let mut later = self.later();
        later.reserve(&path, &target)?;
        later.links.push((path, target));
        self.entries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives a file that was unpacked another name.
    pub fn hard_link(&self, writer: &mut Writer, path: &Path, target: &Path) -> io::Result<()> {
        let name = file_name(path)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let from = self.root.open_beneath(target.parent().unwrap_or(Path::new("")), flags, Links::Inside)?;
        let from_name = file_name(target)?;
        if kind_of(&fstatat(&from, from_name, AtFlags::AT_SYMLINK_NOFOLLOW)?) != Kind::File {
            return Err(io::Error::other("it links to something that is no file"));
        }
        let directory = self.open_parent(&mut writer.parent, path)?;
        if path != target {
            clear(directory, name)?;
            linkat(&from, from_name, directory, name, AtFlags::empty())?;
        }
        self.entries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Makes what was left for the end.
    pub fn finish(self) -> Result<Unpacked, UnpackError> {
        let later = std::mem::take(&mut *self.later());
        let mut parent = None;
        for (path, target) in &later.links {
            let name = path.as_os_str().as_encoded_bytes();
            self.make_link(&mut parent, path, target).map_err(|why| UnpackError::of_io(name, &why))?;
        }
        // The deepest first: a change below would touch the time of what is above.
        for (path, meta) in later.directories.iter().rev() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            if let Ok(directory) = self.root.open_beneath(path, flags, Links::Refused) {
                let _ = fchmod(&directory, meta.permissions());
                let _ = futimens(&directory, &TimeSpec::UTIME_OMIT, &meta.mtime);
            }
        }
        Ok(Unpacked { entries: self.entries.into_inner(), warnings: later.warnings })
    }

    fn make_link(&self, parent: &mut Option<(PathBuf, OwnedFd)>, path: &Path, target: &OsStr) -> io::Result<()> {
        let directory = self.open_parent(parent, path)?;
        let name = file_name(path)?;
        clear(directory, name)?;
        Ok(symlinkat(target, directory, name)?)
    }

    fn open_parent<'p>(&self, parent: &'p mut Option<(PathBuf, OwnedFd)>, path: &Path) -> io::Result<&'p OwnedFd> {
        let wanted = path.parent().unwrap_or(Path::new(""));
        if parent.as_ref().is_none_or(|(open, _)| open != wanted) {
            *parent = Some((wanted.to_owned(), self.make_directories(wanted)?));
        }
        match parent {
            Some((_, directory)) => Ok(directory),
            None => Err(Errno::ENOENT.into()),
        }
    }

    /// Opens a directory, made with all above it where it is missing.
    fn make_directories(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match self.root.open_beneath(path, flags, Links::Inside) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let above = self.make_directories(path.parent().unwrap_or(Path::new("")))?;
        match mkdirat(&above, file_name(path)?, Mode::from_bits_truncate(0o777)) {
            Ok(()) | Err(Errno::EEXIST) => self.root.open_beneath(path, flags, Links::Inside),
            Err(why) => Err(why.into()),
        }
    }
}

fn file_name(path: &Path) -> io::Result<&OsStr> {
    path.file_name().ok_or_else(|| io::Error::other("it has no name"))
}

/// Spares a call where the mode is right from the start.
fn set_mode(file: &File, mode: Mode) -> nix::Result<()> {
    let now = Mode::from_bits_truncate(fstat(file)?.st_mode & 0o7777);
    if now == mode { Ok(()) } else { fchmod(file, mode) }
}

fn create(directory: &OwnedFd, name: &OsStr, mode: Mode) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(directory, name, flags, mode) {
        Err(Errno::EEXIST) => {
            clear(directory, name)?;
            Ok(File::from(openat(directory, name, flags, mode)?))
        }
        result => Ok(File::from(result?)),
    }
}

/// Removes what stands in the way, unless it is a directory.
fn clear(directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => Err(io::Error::other("a directory stands in its place")),
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

/// Bytes that may be written to the disk of the project directory.
fn free(root: &Root) -> io::Result<i64> {
    let stat = fstatvfs(root.fd())?;
    let size = |blocks: u64| i64::try_from(blocks.saturating_mul(stat.fragment_size())).unwrap_or(i64::MAX);
    Ok(size(stat.blocks_available()).saturating_sub(RESERVE.min(size(stat.blocks()) / 20)))
}
