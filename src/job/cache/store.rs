//! The local store: `KEY/cache.zip`, shared by all slots of the machine. Readers open an archive and keep it, writers
//! replace it by renaming; a lock keeps two writers of one key, and the clean-up, apart.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::config::cache::Limits;
use crate::job::transfer::random;
use nix::fcntl::{Flock, FlockArg};

const LOCK: &str = ".lock";
const METADATA: &str = "metadata.json";
const ARCHIVE: &str = "cache.zip";

/// Makes the directory of an archive and keeps others from writing it while the lock is held.
pub fn lock(archive: &Path) -> io::Result<Flock<File>> {
    let directory = directory_of(archive)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut options = OpenOptions::new();
    let options = options.create(true).truncate(false).write(true).mode(0o600);
    let lock = options.custom_flags(nix::libc::O_NOFOLLOW).open(directory.join(LOCK))?;
    Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, why)| why.into())
}

/// Opens an archive and marks it as used.
pub fn open(archive: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(archive)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let metadata = directory_of(archive).and_then(|at| OpenOptions::new().write(true).open(at.join(METADATA)));
    if let Ok(metadata) = metadata {
        let _ = metadata.set_modified(SystemTime::now());
    }
    Ok(file)
}

/// An archive that is not whole yet; it is gone unless it is kept.
pub struct Draft {
    /// To be written.
    pub file: File,
    path: PathBuf,
    archive: PathBuf,
}

impl Draft {
    /// Beside the archive whose place it will take.
    pub fn new(archive: &Path) -> io::Result<Self> {
        let path = directory_of(archive)?.join(format!(".draft-{}-{:08x}", std::process::id(), random()));
        let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(&path)?;
        Ok(Self { file, path, archive: archive.to_owned() })
    }

    /// Puts it in the archive's place.
    pub fn keep(self, key: &str) -> io::Result<()> {
        let metadata = serde_json::json!({ "cachekey": key }).to_string();
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(true).write(true).mode(0o640);
        let file = options.custom_flags(nix::libc::O_NOFOLLOW).open(directory_of(&self.archive)?.join(METADATA))?;
        io::Write::write_all(&mut &file, metadata.as_bytes())?;
        fs::rename(&self.path, &self.archive)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `keep` it has this name no more.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes what is too old, then what was not used for longest until the rest is small enough. What is in use stays.
/// Returns how many archives and bytes are gone.
pub fn clean(store: &Path, limits: Limits) -> (u32, u64) {
    if limits == Limits::default() {
        return (0, 0);
    }
    let mut archives = Vec::new();
    find(store, 0, &mut archives);
    archives.sort_by_key(|archive| archive.used);
    let mut total: u64 = archives.iter().map(|archive| archive.size).sum();
    let (mut count, mut bytes) = (0, 0);
    for archive in &archives {
        let age = archive.used.elapsed().unwrap_or_default();
        let too_old = limits.age.is_some_and(|limit| age > limit);
        let too_much = limits.size.is_some_and(|limit| total > limit);
        if (too_old || too_much) && remove(&archive.directory) {
            total -= archive.size;
            count += 1;
            bytes += archive.size;
        }
    }
    (count, bytes)
}

struct Kept {
    directory: PathBuf,
    size: u64,
    used: SystemTime,
}

fn find(directory: &Path, depth: u32, found: &mut Vec<Kept>) {
    const DEEPEST: u32 = 32;
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth < DEEPEST {
            find(&entry.path(), depth + 1, found);
        } else if kind.is_file() && entry.file_name() == ARCHIVE {
            let Ok(archive) = entry.metadata() else { continue };
            let used = fs::symlink_metadata(directory.join(METADATA)).and_then(|metadata| metadata.modified());
            let used = used.or_else(|_| archive.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            found.push(Kept { directory: directory.to_owned(), size: archive.blocks() * 512, used });
        }
    }
}

fn remove(directory: &Path) -> bool {
    let Ok(lock) = OpenOptions::new().create(true).truncate(false).write(true).open(directory.join(LOCK)) else {
        return false;
    };
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
        return false;
    };
    let gone = fs::remove_file(directory.join(ARCHIVE)).is_ok();
    let _ = fs::remove_file(directory.join(METADATA));
    gone
}

fn directory_of(archive: &Path) -> io::Result<&Path> {
    archive.parent().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
