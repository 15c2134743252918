//! The local store: `KEY/cache.zip`, shared by all slots of the machine. Readers open an archive and keep it, writers
//! replace it by renaming; a lock keeps two writers of one key, and the clean-up, apart.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use crate::config::cache::StorageLimits;
use crate::job::transfer::bytes;
use crate::random;
use crate::sys::open_regular;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

const LOCK: &str = ".lock";
const METADATA: &str = "metadata.json";
const ARCHIVE: &str = "cache.zip";
const ETAG: &str = "etag";
const PENDING_PREFIX: &str = ".draft-";

/// Another job that saves or fetches the same key is given this long; one that holds the lock for no reason, no longer.
const LOCK_TIMEOUT: Duration = Duration::from_secs(600);

/// A draft that nobody wrote to for this long was left by a process that was killed.
const PENDING_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Makes the directory of an archive and keeps others from writing it while the lock is held.
pub fn lock(archive: &Path) -> io::Result<Flock<File>> {
    const TURNS: u32 = 100;
    let directory = directory_of(archive)?;
    let path = directory.join(LOCK);
    // The clean-up may take the directory away while we wait.
    for _ in 0..TURNS {
        make_directory(directory)?;
        let file = match open_lock(&path) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        share(&file, &path);
        let lock = wait_for_lock(file, LOCK_TIMEOUT)?;
        if is_still_at(&lock, &path) {
            // Who holds the lock is the only one who writes: other drafts were left by processes that were killed.
            remove_pending(directory, Duration::ZERO);
            return Ok(lock);
        }
    }
    Err(io::Error::other("its directory is removed again and again"))
}

/// Makes a directory, with all above it. Below one that several users share (set-group-id), they share what is made.
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

/// Whether a directory belongs to several users: it passes its group on to what is made in it.
fn is_shared(directory: &Path) -> bool {
    directory.symlink_metadata().is_ok_and(|found| found.mode() & 0o2000 != 0)
}

/// Lets the other users of a shared directory use a file that was made in it. Who did not make it need not do that.
fn share(file: &File, path: &Path) {
    if path.parent().is_some_and(is_shared) {
        let _ = file.set_permissions(fs::Permissions::from_mode(0o660));
    }
}

/// Opens the lock. A pipe, a device or a link in its place was put there by a job and goes.
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

/// Waits for the lock of a file. Errors: another process holds it for longer.
fn wait_for_lock(file: File, timeout: Duration) -> io::Result<Flock<File>> {
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => file,
        lock => return lock.map_err(|(_, why)| why.into()),
    };
    let (sender, receiver) = mpsc::channel();
    // A thread that waits too long ends with the process, and the lock that it may get with it.
    thread::Builder::new().name("cache-lock".to_owned()).spawn(move || {
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

/// Whether an open file is still what has this name.
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

/// Opens an archive and marks it as used.
pub fn open(archive: &Path) -> io::Result<File> {
    let file = open_regular(archive, OpenOptions::new().read(true))?;
    let metadata =
        directory_of(archive).and_then(|at| open_regular(&at.join(METADATA), OpenOptions::new().write(true)));
    if let Ok(metadata) = metadata {
        // Another user of a shared store may set the present time and no other.
        let _ = futimens(&metadata, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW);
    }
    Ok(file)
}

/// Removes an archive that turned out to be of no use, unless another one has taken its place.
pub fn forget(archive: &Path, opened: &File) {
    let Ok(_lock) = lock(archive) else { return };
    if is_still_at(opened, archive) {
        let _ = fs::remove_file(archive);
        let _ = fs::remove_file(archive.with_file_name(ETAG));
    }
}

/// What the object store calls the archive, if it is known to have the same.
pub fn etag(archive: &Path) -> Option<String> {
    const MOST: u64 = 1024;
    archive.symlink_metadata().ok()?;
    let file = open_regular(&archive.with_file_name(ETAG), OpenOptions::new().read(true)).ok()?;
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).ok()?;
    Some(text).filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// Remembers what the object store calls the archive; the lock must be held.
pub fn set_etag(archive: &Path, etag: &str) {
    // Without it the archive is fetched once more: no harm.
    let _ = replace(&archive.with_file_name(ETAG), etag.as_bytes());
}

/// Writes a small file and puts it in the place of whatever has that name: nothing there is opened.
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

/// A name beside a file that nothing has yet.
fn pending_path(path: &Path) -> io::Result<PathBuf> {
    Ok(directory_of(path)?.join(format!("{PENDING_PREFIX}{}-{:08x}", std::process::id(), random::number())))
}

/// An archive that is not whole yet; it is gone unless it is kept.
pub struct PendingArchive {
    /// To be written.
    pub file: File,
    path: PathBuf,
    archive: PathBuf,
}

impl PendingArchive {
    /// Beside the archive whose place it will take.
    pub fn new(archive: &Path) -> io::Result<Self> {
        let path = pending_path(archive)?;
        let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(&path)?;
        share(&file, &path);
        Ok(Self { file, path, archive: archive.to_owned() })
    }

    /// Puts it in the archive's place.
    pub fn commit(self, key: &str) -> io::Result<()> {
        let metadata = serde_json::json!({ "cachekey": key }).to_string();
        replace(&directory_of(&self.archive)?.join(METADATA), metadata.as_bytes())?;
        // It speaks of the archive that was there.
        match fs::remove_file(self.archive.with_file_name(ETAG)) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
            _ => fs::rename(&self.path, &self.archive),
        }
    }
}

impl Drop for PendingArchive {
    fn drop(&mut self) {
        // After `keep` it has this name no more.
        let _ = fs::remove_file(&self.path);
    }
}

/// Keeps the caches of all projects below `root` within their limits, and says what went.
pub fn enforce_limits(root: &Path, limits: StorageLimits) {
    let (count, freed) = clean(root, limits);
    if count > 0 {
        println!("Removed {count} local caches that were not used for longest ({})", bytes(freed as f64));
    }
}

/// Removes what is too old, then what was not used for longest until the rest is small enough. What is in use stays.
/// Returns how many archives and bytes are gone.
fn clean(root: &Path, limits: StorageLimits) -> (u32, u64) {
    if limits == StorageLimits::default() {
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

struct StoredArchive {
    directory: PathBuf,
    size: u64,
    used: SystemTime,
}

fn find(directory: &Path, depth: u32, found: &mut Vec<StoredArchive>) {
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
            found.push(StoredArchive { directory: directory.to_owned(), size: archive.blocks() * 512, used });
        } else if kind.is_file() && entry.file_name() == LOCK {
            remove_pending(directory, PENDING_AGE_MAX);
        }
    }
}

/// Removes an archive with all that belongs to it, and the directories above that hold nothing more.
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

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// What a job may leave in the place of a file of the store.
    fn plant(what: &str, path: &Path, outside: &Path) {
        let _ = fs::remove_file(path);
        match what {
            "pipe" => mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).expect("a pipe"),
            "socket" => drop(UnixListener::bind(path).expect("a socket")),
            "link" => symlink(outside, path).expect("a link"),
            _ => unreachable!(),
        }
    }

    #[test]
    fn nothing_in_the_place_of_a_file_holds_a_job_up_or_leads_out() {
        let temporary = tempfile::tempdir().expect("a directory");
        let outside = temporary.path().join("outside");
        let archive = temporary.path().join("key/cache.zip");
        for what in ["pipe", "socket", "link"] {
            fs::write(&outside, "stays").expect("written");
            drop(lock(&archive).expect("a lock"));
            for name in [LOCK, METADATA, ETAG, ARCHIVE] {
                plant(what, &archive.with_file_name(name), &outside);
            }
            assert!(open(&archive).is_err(), "{what}");
            assert_eq!(etag(&archive), None, "{what}");
            let held = lock(&archive).expect(what);
            PendingArchive::new(&archive).expect("a draft").commit("key").expect(what);
            set_etag(&archive, "\"e\"");
            drop(held);
            assert_eq!(etag(&archive).as_deref(), Some("\"e\""), "{what}");
            open(&archive).expect(what);
            for name in [LOCK, METADATA, ETAG, ARCHIVE] {
                assert!(archive.with_file_name(name).symlink_metadata().expect(name).is_file(), "{what} {name}");
            }
            assert_eq!(fs::read_to_string(&outside).expect("there"), "stays", "{what}");
        }
    }

    #[test]
    fn nobody_waits_for_a_lock_for_ever() {
        let temporary = tempfile::tempdir().expect("a directory");
        let archive = temporary.path().join("key/cache.zip");
        let held = lock(&archive).expect("a lock");
        let another = || open_lock(&archive.with_file_name(LOCK)).expect("opened");
        let why = wait_for_lock(another(), Duration::from_millis(50)).expect_err("held");
        assert_eq!(why.kind(), io::ErrorKind::TimedOut);
        let waiting = thread::spawn({
            let file = another();
            move || wait_for_lock(file, LOCK_TIMEOUT).is_ok()
        });
        drop(held);
        assert!(waiting.join().expect("ended"));
    }
}
