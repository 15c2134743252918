//! Copies files, in parallel if there are many.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::SystemTime;

use nix::libc;

use super::parallel::threads;
use super::stamp::Stamp;

/// Below this number of files, copying takes less time than starting a thread.
const MIN_FILES: usize = 64;
/// The largest file that is copied through memory, in bytes.
const MAX_BUFFERED: usize = 64 * 1024;

/// A copied file: its path, the stamp of the original, and the stamp of the copy.
type Copied = (PathBuf, Stamp, Stamp);

/// Copies files from one tree to another, whose directories exist. A file that no longer exists is skipped.
pub fn copy_all(from: &Path, to: &Path, files: &[(&Path, Stamp)]) -> io::Result<Vec<Copied>> {
    let threads = if files.len() < MIN_FILES { 1 } else { threads() };
    if threads == 1 {
        return copy_part(from, to, files);
    }
    thread::scope(|scope| {
        let parts: Vec<_> = files
            .chunks(files.len().div_ceil(threads))
            .map(|part| scope.spawn(move || copy_part(from, to, part)))
            .collect();
        let mut copied = Vec::with_capacity(files.len());
        for part in parts {
            copied
                .extend(part.join().unwrap_or_else(|_| {
                    Err(io::Error::other("internal error: a thread that copies files panicked"))
                })?);
        }
        Ok(copied)
    })
}

fn copy_part(from: &Path, to: &Path, files: &[(&Path, Stamp)]) -> io::Result<Vec<Copied>> {
    let mut copied = Vec::with_capacity(files.len());
    let mut buffer = vec![0; MAX_BUFFERED];
    for (path, _) in files {
        match copy_file(&from.join(path), &to.join(path), &mut buffer) {
            Ok((original, copy)) => copied.push(((*path).to_owned(), original, copy)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    }
    Ok(copied)
}

fn copy_file(from: &Path, to: &Path, buffer: &mut [u8]) -> io::Result<(Stamp, Stamp)> {
    // A pipe in place of the file does not block, and a link is not followed.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut original = match File::options().read(true).custom_flags(flags).open(from) {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return copy_link(from, to),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Err(io::ErrorKind::NotFound.into()),
        opened => opened?,
    };
    let metadata = original.metadata()?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mode = metadata.permissions().mode() & 0o777 | 0o600;
    let mut copy = File::options().write(true).create_new(true).mode(mode).open(to)?;
    copy_content(&mut original, metadata.len(), &mut copy, buffer)?;
    // Build tools compare modification times; the copy of an unchanged file must not look new.
    copy.set_modified(metadata.modified()?)?;
    let mut made = copy.metadata()?;
    if made.permissions().mode() & 0o777 != mode {
        copy.set_permissions(fs::Permissions::from_mode(mode))?;
        made = copy.metadata()?;
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let stamp = Stamp::of_metadata(&metadata);
    // The original may have changed within the resolution of its time stamps, so its stamp is not trusted in the next
    // run.
    let original = if stamp.is_recent(now) { Stamp::default() } else { stamp };
    Ok((original, Stamp::of_metadata(&made)))
}

/// Copies the content. For large files, the kernel shares blocks if the file system supports that; for a small file,
/// the system call takes longer than the copy.
fn copy_content(original: &mut File, length: u64, copy: &mut File, buffer: &mut [u8]) -> io::Result<()> {
    if length > buffer.len() as u64 {
        return io::copy(original, copy).map(drop);
    }
    let mut left = length;
    while left > 0 {
        match original.read(buffer)? {
            0 => break,
            count => {
                copy.write_all(&buffer[..count])?;
                left = left.saturating_sub(count as u64);
            }
        }
    }
    Ok(())
}

fn copy_link(from: &Path, to: &Path) -> io::Result<(Stamp, Stamp)> {
    symlink(fs::read_link(from)?, to)?;
    Ok((Stamp::of_metadata(&from.symlink_metadata()?), Stamp::of_metadata(&to.symlink_metadata()?)))
}
