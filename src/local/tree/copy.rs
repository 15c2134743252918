//! Copies of files, on all cores when there are many.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::SystemTime;

use super::stamp::Stamp;

/// Fewer files are copied sooner than a thread is started.
const FEW: usize = 64;

/// A copy that was made, and the stamps of original and copy.
type Copied = (PathBuf, Stamp, Stamp);

/// Copies files, whose directories exist, from one tree to another; one that has gone meanwhile is left out.
/// Errors: the disk.
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
            copied.extend(part.join().unwrap_or_else(|_| Err(io::Error::other("a thread that copies files died")))?);
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
    // The kernel shares the blocks of both files where the file system can.
    io::copy(&mut original, &mut copy)?;
    copy.set_permissions(fs::Permissions::from_mode(metadata.permissions().mode() & 0o777 | 0o600))?;
    // Tools that compare times with what a cache holds must not see a new file each time.
    copy.set_modified(metadata.modified()?)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let stamp = Stamp::of(&metadata);
    // A change of the original that its times do not show yet: not to be trusted the next time.
    let original = if stamp.is_recent(now) { Stamp::default() } else { stamp };
    Ok((original, Stamp::of(&copy.metadata()?)))
}
