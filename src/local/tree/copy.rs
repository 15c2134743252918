//! Copies files, in parallel if there are many.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::SystemTime;

use super::stamp::Stamp;

/// Below this number of files, copying takes less time than starting a thread.
const FEW: usize = 64;

/// A copied file: its path, the stamp of the original, and the stamp of the copy.
type Copied = (PathBuf, Stamp, Stamp);

/// Copies files from one tree to another, whose directories exist. A file that no longer exists is skipped.
pub fn all(from: &Path, to: &Path, files: &[(&Path, Stamp)]) -> io::Result<Vec<Copied>> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(8);
    if files.len() < FEW || threads == 1 {
        return some(from, to, files);
    }
    thread::scope(|scope| {
        let parts: Vec<_> =
            files.chunks(files.len().div_ceil(threads)).map(|part| scope.spawn(move || some(from, to, part))).collect();
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

fn some(from: &Path, to: &Path, files: &[(&Path, Stamp)]) -> io::Result<Vec<Copied>> {
    let mut copied = Vec::with_capacity(files.len());
    for (path, _) in files {
        match one(&from.join(path), &to.join(path)) {
            Ok((original, copy)) => copied.push(((*path).to_owned(), original, copy)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    }
    Ok(copied)
}

fn one(from: &Path, to: &Path) -> io::Result<(Stamp, Stamp)> {
    let metadata = from.symlink_metadata()?;
    if metadata.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return Ok((Stamp::of(&metadata), Stamp::of(&to.symlink_metadata()?)));
    }
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut original = File::open(from)?;
    let metadata = original.metadata()?;
    let mut copy = File::options().write(true).create_new(true).open(to)?;
    // On file systems that support it, the kernel shares the blocks of both files.
    io::copy(&mut original, &mut copy)?;
    copy.set_permissions(fs::Permissions::from_mode(metadata.permissions().mode() & 0o777 | 0o600))?;
    // Build tools compare modification times; the copy of an unchanged file must not look new.
    copy.set_modified(metadata.modified()?)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let stamp = Stamp::of(&metadata);
    // The original may have changed within the resolution of its time stamps, so its stamp is not trusted in the next
    // run.
    let original = if stamp.is_recent(now) { Stamp::default() } else { stamp };
    Ok((original, Stamp::of(&copy.metadata()?)))
}
