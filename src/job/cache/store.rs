//! The local store: `KEY/cache.zip`, shared by all slots of the machine. Readers open an archive and keep it, writers
//! replace it by renaming; a lock keeps two writers of one key, and the clean-up, apart.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::config::cache::Limits;
use crate::job::transfer::{bytes, random};
use nix::fcntl::{Flock, FlockArg};

const LOCK: &str = ".lock";
const METADATA: &str = "metadata.json";
const ARCHIVE: &str = "cache.zip";
const ETAG: &str = "etag";
const DRAFT: &str = ".draft-";

/// A draft that nobody wrote to for this long was left by a process that was killed.
const DRAFT_MOST: Duration = Duration::from_secs(24 * 3600);

/// Makes the directory of an archive and keeps others from writing it while the lock is held.
pub fn lock(archive: &Path) -> io::Result<Flock<File>> {
    const TURNS: u32 = 100;
    let directory = directory_of(archive)?;
    let path = directory.join(LOCK);
    // The clean-up may take the directory away while we wait.
    for _ in 0..TURNS {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let file = match open_lock(&path) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, why)| why)?;
        if stands_at(&lock, &path) {
            // Who holds the lock is the only one who writes: other drafts were left by processes that were killed.
            remove_drafts(directory, Duration::ZERO);
            return Ok(lock);
        }
    }
    Err(io::Error::other("its directory is removed again and again"))
}

fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.create(true).truncate(false).write(true).mode(0o600);
    options.custom_flags(nix::libc::O_NOFOLLOW).open(path)
}

/// Whether an open file is still what has this name.
fn stands_at(file: &File, path: &Path) -> bool {
    let there = file.metadata().ok().zip(path.symlink_metadata().ok());
    there.is_some_and(|(one, other)| (one.dev(), one.ino()) == (other.dev(), other.ino()))
}

fn remove_drafts(directory: &Path, age: Duration) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let modified = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if entry.file_name().as_encoded_bytes().starts_with(DRAFT.as_bytes())
            && (age.is_zero() || modified().is_some_and(|since| since > age))
        {
            let _ = fs::remove_file(entry.path());
        }
    }
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

/// Removes an archive that turned out to be of no use, unless another one has taken its place.
pub fn forget(archive: &Path, opened: &File) {
    let Ok(_lock) = lock(archive) else { return };
    if stands_at(opened, archive) {
        let _ = fs::remove_file(archive);
        let _ = fs::remove_file(archive.with_file_name(ETAG));
    }
}

/// What the object store calls the archive, if it is known to have the same.
pub fn etag(archive: &Path) -> Option<String> {
    const MOST: u64 = 1024;
    archive.symlink_metadata().ok()?;
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(archive.with_file_name(ETAG)).ok()?;
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).ok()?;
    Some(text).filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// Remembers what the object store calls the archive; the lock must be held.
pub fn set_etag(archive: &Path, etag: &str) {
    let mut options = OpenOptions::new();
    let options = options.create(true).truncate(true).write(true).mode(0o640).custom_flags(nix::libc::O_NOFOLLOW);
    // Without it the archive is fetched once more: no harm.
    let _ = options.open(archive.with_file_name(ETAG)).and_then(|mut file| file.write_all(etag.as_bytes()));
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
        let path = directory_of(archive)?.join(format!("{DRAFT}{}-{:08x}", std::process::id(), random()));
        let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(&path)?;
        Ok(Self { file, path, archive: archive.to_owned() })
    }

    /// Puts it in the archive's place.
    pub fn keep(self, key: &str) -> io::Result<()> {
        let metadata = serde_json::json!({ "cachekey": key }).to_string();
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(true).write(true).mode(0o640);
        let file = options.custom_flags(nix::libc::O_NOFOLLOW).open(directory_of(&self.archive)?.join(METADATA))?;
        (&file).write_all(metadata.as_bytes())?;
        // It speaks of the archive that was there.
        match fs::remove_file(self.archive.with_file_name(ETAG)) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
            _ => fs::rename(&self.path, &self.archive),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `keep` it has this name no more.
        let _ = fs::remove_file(&self.path);
    }
}

/// Keeps the caches of all projects below `root` within their limits, and says what went.
pub fn tidy(root: &Path, limits: Limits) {
    let (count, freed) = clean(root, limits);
    if count > 0 {
        println!("Removed {count} local caches that were not used for longest ({})", bytes(freed as f64));
    }
}

/// Removes what is too old, then what was not used for longest until the rest is small enough. What is in use stays.
/// Returns how many archives and bytes are gone.
fn clean(root: &Path, limits: Limits) -> (u32, u64) {
    if limits == Limits::default() {
        return (0, 0);
    }
    let mut archives = Vec::new();
    find(root, 0, &mut archives);
    archives.sort_by_key(|archive| archive.used);
    let mut total: u64 = archives.iter().map(|archive| archive.size).sum();
    let (mut count, mut bytes) = (0, 0);
    for archive in &archives {
        let age = archive.used.elapsed().unwrap_or_default();
        let too_old = limits.age.is_some_and(|limit| age > limit);
        let too_much = limits.size.is_some_and(|limit| total > limit);
        if (too_old || too_much) && remove(root, &archive.directory) {
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
    const DEEPEST: u32 = 48;
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
        } else if kind.is_file() && entry.file_name() == LOCK {
            remove_drafts(directory, DRAFT_MOST);
        }
    }
}

/// Removes an archive with all that belongs to it, and the directories above that hold nothing more.
fn remove(root: &Path, directory: &Path) -> bool {
    let path = directory.join(LOCK);
    let Ok(lock) = open_lock(&path) else { return false };
    let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else { return false };
    if !stands_at(&lock, &path) {
        return false;
    }
    let gone = fs::remove_file(directory.join(ARCHIVE)).is_ok();
    remove_drafts(directory, Duration::ZERO);
    for name in [METADATA, ETAG, LOCK] {
        let _ = fs::remove_file(directory.join(name));
    }
    let mut empty = Some(directory);
    while let Some(directory) = empty.filter(|directory| *directory != root && fs::remove_dir(directory).is_ok()) {
        empty = directory.parent();
    }
    gone
}

fn directory_of(archive: &Path) -> io::Result<&Path> {
    archive.parent().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
