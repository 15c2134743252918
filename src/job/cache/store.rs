//! Local caches: `KEY/cache.zip`, shared by all slots of the machine. Readers open an archive; writers replace it by
//! rename. A lock serialises writers of one key and the clean-up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use crate::config::cache::StorageLimits;
use crate::job::transfer::bytes;
use crate::random;
use crate::sync;
use crate::sys::open_regular;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

const LOCK: &str = ".lock";
const METADATA: &str = "metadata.json";
const ARCHIVE: &str = "cache.zip";
const ETAG: &str = "etag";
const PENDING_PREFIX: &str = ".draft-";

/// How long a job waits for another job that saves or downloads the same key.
const LOCK_TIMEOUT: Duration = Duration::from_secs(600);

/// A temporary file that was not written for this long is a leftover of a killed process.
const MAX_PENDING_AGE: Duration = Duration::from_secs(24 * 3600);

/// Creates the directory of an archive, and locks it against other writers.
pub fn lock(archive: &Path) -> io::Result<Flock<File>> {
    const MAX_ATTEMPTS: u32 = 100;
    let directory = directory_of(archive)?;
    let path = directory.join(LOCK);
    // The clean-up may remove the directory during the wait.
    for _ in 0..MAX_ATTEMPTS {
        make_directory(directory)?;
        let file = match open_lock(&path) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        share(&file, &path);
        let lock = wait_for_lock(file, LOCK_TIMEOUT)?;
        if is_still_at(&lock, &path) {
            // Only the holder of the lock writes, so other temporary files were left by killed processes.
            remove_pending(directory, Duration::ZERO);
            return Ok(lock);
        }
    }
    Err(io::Error::other("its directory is removed repeatedly"))
}

/// Creates a directory with its parents. Inside a shared directory (set-group-id), the new ones are shared as well.
fn make_directory(directory: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|path| path.symlink_metadata().is_err()).collect();
    for path in missing.into_iter().rev() {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(why) if why.kind() != io::ErrorKind::AlreadyExists => return Err(why),
            Err(_) => {}
            Ok(()) if is_shared(path) => fs::set_permissions(path, fs::Permissions::from_mode(0o2770))?,
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Whether several users share a directory: it has the set-group-id bit.
fn is_shared(directory: &Path) -> bool {
    directory.symlink_metadata().is_ok_and(|found| found.mode() & 0o2000 != 0)
}

/// Gives the group of a shared directory access to a file. A failure is ignored: the file then belongs to another user.
fn share(file: &File, path: &Path) {
    if path.parent().is_some_and(is_shared) {
        let _ = file.set_permissions(fs::Permissions::from_mode(0o660));
    }
}

/// Opens the lock file; replaces a pipe, device or link that a job put in its place.
fn open_lock(path: &Path) -> io::Result<File> {
    let open = || open_regular(path, OpenOptions::new().create(true).truncate(false).write(true).mode(0o600));
    match open() {
        Err(_) if path.symlink_metadata().is_ok_and(|found| !found.is_file() && !found.is_dir()) => {
            fs::remove_file(path)?;
            open()
        }
        file => file,
    }
}

/// Waits for the lock of a file. Fails after the timeout.
fn wait_for_lock(file: File, timeout: Duration) -> io::Result<Flock<File>> {
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => file,
        lock => return lock.map_err(|(_, why)| why.into()),
    };
    let (sender, receiver) = mpsc::channel();
    // A thread that still waits after the timeout ends with the process, which also releases its lock.
    sync::spawn("cache-lock", 64 * 1024, move || {
        let _ = sender.send(Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, why)| why));
    })?;
    match receiver.recv_timeout(timeout) {
        Ok(lock) => Ok(lock?),
        Err(_) => {
            let why = format!("another process has held the lock of this cache for {} s", timeout.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        }
    }
}

/// Whether an open file still has this name.
fn is_still_at(file: &File, path: &Path) -> bool {
    let there = file.metadata().ok().zip(path.symlink_metadata().ok());
    there.is_some_and(|(one, other)| (one.dev(), one.ino()) == (other.dev(), other.ino()))
}

fn remove_pending(directory: &Path, age: Duration) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let modified = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if entry.file_name().as_encoded_bytes().starts_with(PENDING_PREFIX.as_bytes())
            && (age.is_zero() || modified().is_some_and(|since| since > age))
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Opens an archive and updates its access time.
pub fn open(archive: &Path) -> io::Result<File> {
    let file = open_regular(archive, OpenOptions::new().read(true))?;
    let metadata =
        directory_of(archive).and_then(|at| open_regular(&at.join(METADATA), OpenOptions::new().write(true)));
    if let Ok(metadata) = metadata {
        // The file may belong to another user of a shared store; then the kernel allows only the current time.
        let _ = futimens(&metadata, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW);
    }
    Ok(file)
}

/// Removes an unusable archive, unless it has been replaced.
pub fn forget(archive: &Path, opened: &File) {
    let Ok(_lock) = lock(archive) else { return };
    if is_still_at(opened, archive) {
        let _ = fs::remove_file(archive);
        let _ = fs::remove_file(archive.with_file_name(ETAG));
    }
}

/// The ETag of the object with the same content, if known.
pub fn etag(archive: &Path) -> Option<String> {
    const MAX_ETAG_LENGTH: u64 = 1024;
    archive.symlink_metadata().ok()?;
    let file = open_regular(&archive.with_file_name(ETAG), OpenOptions::new().read(true)).ok()?;
    let mut text = String::new();
    file.take(MAX_ETAG_LENGTH).read_to_string(&mut text).ok()?;
    Some(text).filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// Stores the ETag of the object with the same content; the caller holds the lock.
pub fn set_etag(archive: &Path, etag: &str) {
    // Without the ETag, the archive is downloaded once more.
    let _ = replace(&archive.with_file_name(ETAG), etag.as_bytes());
}

/// Writes a small file by rename, so that an existing file, link or pipe at the path is never opened.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let pending = pending_path(path)?;
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o640).open(&pending)?;
    share(&file, &pending);
    let written = file.write_all(content).and_then(|()| fs::rename(&pending, path));
    if written.is_err() {
        let _ = fs::remove_file(&pending);
    }
    written
}

/// An unused name beside a file.
fn pending_path(path: &Path) -> io::Result<PathBuf> {
    Ok(directory_of(path)?.join(format!("{PENDING_PREFIX}{}-{:08x}", std::process::id(), random::number())))
}

/// An incomplete archive; removed unless it is committed.
pub struct PendingArchive {
    /// The file to write.
    pub file: File,
    path: PathBuf,
    archive: PathBuf,
}

impl PendingArchive {
    /// Creates the file beside the archive that it will replace.
    pub fn new(archive: &Path) -> io::Result<Self> {
        let path = pending_path(archive)?;
        let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(&path)?;
        share(&file, &path);
        Ok(Self { file, path, archive: archive.to_owned() })
    }

    /// Replaces the archive.
    pub fn commit(self, key: &str) -> io::Result<()> {
        let metadata = serde_json::json!({ "cachekey": key }).to_string();
        replace(&directory_of(&self.archive)?.join(METADATA), metadata.as_bytes())?;
        // The ETag belongs to the replaced archive.
        match fs::remove_file(self.archive.with_file_name(ETAG)) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
            _ => fs::rename(&self.path, &self.archive),
        }
    }
}

impl Drop for PendingArchive {
    fn drop(&mut self) {
        // After `commit` the file no longer has this name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Enforces the limits for the caches of all projects below `root`, and prints what was removed.
pub fn enforce_limits(root: &Path, limits: StorageLimits) {
    let (count, freed) = clean(root, limits);
    if count > 0 {
        println!("Removed the {count} least recently used local caches ({})", bytes(freed as f64));
    }
}

/// Removes caches that are too old, then the least recently used ones until the size limit is met. Locked caches are
/// kept. Returns the number of removed archives and bytes.
fn clean(root: &Path, limits: StorageLimits) -> (u32, u64) {
    if limits == StorageLimits::default() {
        return (0, 0);
    }
    let mut archives = Vec::new();
    find(root, 0, &mut archives);
    archives.sort_unstable_by_key(|archive| archive.used);
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

struct StoredArchive {
    directory: PathBuf,
    size: u64,
    used: SystemTime,
}

fn find(directory: &Path, depth: u32, found: &mut Vec<StoredArchive>) {
    const MAX_DEPTH: u32 = 48;
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth < MAX_DEPTH {
            find(&entry.path(), depth + 1, found);
        } else if kind.is_file() && entry.file_name() == ARCHIVE {
            let Ok(archive) = entry.metadata() else { continue };
            let used = fs::symlink_metadata(directory.join(METADATA)).and_then(|metadata| metadata.modified());
            let used = used.or_else(|_| archive.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            found.push(StoredArchive { directory: directory.to_owned(), size: archive.blocks() * 512, used });
        } else if kind.is_file() && entry.file_name() == LOCK {
            remove_pending(directory, MAX_PENDING_AGE);
        }
    }
}

/// Removes an archive with its other files, and parent directories that are now empty.
fn remove(root: &Path, directory: &Path) -> bool {
    let path = directory.join(LOCK);
    let Ok(lock) = open_lock(&path) else { return false };
    let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else { return false };
    if !is_still_at(&lock, &path) {
        return false;
    }
    let gone = fs::remove_file(directory.join(ARCHIVE)).is_ok();
    remove_pending(directory, Duration::ZERO);
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// Things that a job may put in the place of a file in the store.
    fn plant(what: &str, path: &Path, outside: &Path) {
        let _ = fs::remove_file(path);
        match what {
            "pipe" => mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).expect("a pipe"),
            "socket" => drop(UnixListener::bind(path).expect("a socket")),
            "link" => symlink(outside, path).expect("create the link"),
            _ => unreachable!(),
        }
    }

    #[test]
    fn planted_files_neither_block_a_job_nor_lead_out() {
        let temporary = tempfile::tempdir().expect("a directory");
        let outside = temporary.path().join("outside");
        let archive = temporary.path().join("key/cache.zip");
        for what in ["pipe", "socket", "link"] {
            fs::write(&outside, "stays").expect("write the file");
            drop(lock(&archive).expect("a lock"));
            for name in [LOCK, METADATA, ETAG, ARCHIVE] {
                plant(what, &archive.with_file_name(name), &outside);
            }
            assert!(open(&archive).is_err(), "{what}");
            assert_eq!(etag(&archive), None, "{what}");
            let held = lock(&archive).expect(what);
            PendingArchive::new(&archive).expect("create the draft").commit("key").expect(what);
            set_etag(&archive, "\"e\"");
            drop(held);
            assert_eq!(etag(&archive).as_deref(), Some("\"e\""), "{what}");
            open(&archive).expect(what);
            for name in [LOCK, METADATA, ETAG, ARCHIVE] {
                assert!(archive.with_file_name(name).symlink_metadata().expect(name).is_file(), "{what} {name}");
            }
            assert_eq!(fs::read_to_string(&outside).expect("read the file"), "stays", "{what}");
        }
    }

    #[test]
    fn waiting_for_a_lock_has_a_timeout() {
        let temporary = tempfile::tempdir().expect("a directory");
        let archive = temporary.path().join("key/cache.zip");
        let held = lock(&archive).expect("a lock");
        let another = || open_lock(&archive.with_file_name(LOCK)).expect("open the file");
        let why = wait_for_lock(another(), Duration::from_millis(50)).expect_err("the lock must be taken");
        assert_eq!(why.kind(), io::ErrorKind::TimedOut);
        let waiting = thread::spawn({
            let file = another();
            move || wait_for_lock(file, LOCK_TIMEOUT).is_ok()
        });
        drop(held);
        assert!(waiting.join().expect("the thread must not panic"));
    }
}
