//! Records the build directories of finished jobs, and removes those that no job has used for the longest time while
//! they are too old or too large in total.
//!
//! The agent records each directory in which a job works, and the time. So it removes only directories of its own jobs,
//! and a job cannot keep its directory by changing file times. A directory is removed only while no job uses it; a job
//! that needs the directory waits for the end of the removal.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use serde::{Deserialize, Serialize};

use super::containers::is_job_dir;
use super::context::Job;
use super::sources::remove;
use crate::config::cache::StorageLimits;
use crate::decode;
use crate::executor::user::{self, as_job};
use crate::monitor::machine;
use crate::sync;
use crate::sys;

/// The name of the record in the state directory.
const FILE: &str = "builds.json";
/// The maximum depth of directories that are measured. Deeper files are not counted.
const DEEPEST: usize = 64;

/// A directory that is removed as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BuildDir {
    /// The configured root of builds.
    pub root: PathBuf,
    /// A directory below the root. Jobs cannot replace it, but can change everything below it.
    pub trusted: PathBuf,
    /// The path of the directory to remove, relative to `trusted`; empty for `trusted` itself.
    pub below: PathBuf,
    /// The user of the jobs in this directory; `None` for the agent's own user and for containers.
    pub user: Option<String>,
}

/// The last use of a directory, and its size at that time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Usage {
    /// The time of the last use, in seconds since the epoch.
    used: u64,
    /// The size on the disk in bytes, once it is measured.
    bytes: Option<u64>,
}

/// The result of removals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Removed {
    count: u64,
    bytes: u64,
}

/// The build directories of this machine.
pub struct BuildDirs {
    state: PathBuf,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    known: BTreeMap<BuildDir, Usage>,
    /// The number of jobs in each directory.
    in_use: BTreeMap<BuildDir, u32>,
    removing: Option<BuildDir>,
    /// The limits of each root.
    limits: BTreeMap<PathBuf, StorageLimits>,
}

/// A directory that a job uses; it is not removed until this is dropped.
pub struct InUse {
    dirs: Arc<BuildDirs>,
    dir: BuildDir,
}

impl BuildDirs {
    /// Loads the record from the state directory.
    pub fn load(state: &Path) -> Arc<Self> {
        let read = fs::read(state.join(FILE)).ok().and_then(|text| decode::json::<Vec<(BuildDir, Usage)>>(&text).ok());
        let known = read.unwrap_or_default().into_iter().collect();
        Arc::new(Self {
            state: state.to_owned(),
            inner: Mutex::new(Inner { known, ..Inner::default() }),
            changed: Condvar::new(),
        })
    }

    /// Sets the limits of the builds below `root`.
    pub fn limit(&self, root: &Path, limits: StorageLimits) {
        self.lock().limits.insert(root.to_owned(), limits);
    }

    /// Whether any root has limits.
    pub fn has_limits(&self) -> bool {
        self.lock().limits.values().any(|limits| *limits != StorageLimits::default())
    }

    /// Marks a directory as used by a job until the result is dropped; waits for a running removal of it.
    pub fn claim(self: &Arc<Self>, dir: BuildDir) -> InUse {
        let mut inner = self.lock();
        while inner.removing.as_ref() == Some(&dir) {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        *inner.in_use.entry(dir.clone()).or_default() += 1;
        inner.known.insert(dir.clone(), Usage { used: now(), bytes: None });
        self.save(&inner);
        InUse { dirs: Arc::clone(self), dir }
    }

    /// Removes directories until the limits are met.
    pub fn tidy(&self) {
        let limits: Vec<(PathBuf, StorageLimits)> = self.lock().limits.clone().into_iter().collect();
        for (root, limits) in limits {
            let removed = self.tidy_root(&root, limits);
            machine::builds_removed(removed.count, removed.bytes);
            machine::builds_measured(&root, limits.size.map(|_| self.bytes(&root)));
        }
    }

    fn tidy_root(&self, root: &Path, limits: StorageLimits) -> Removed {
        let mut removed = Removed::default();
        if limits == StorageLimits::default() {
            return removed;
        }
        if limits.size.is_some() {
            self.measure(root);
        }
        while let Some((dir, bytes)) = self.next_to_remove(root, limits) {
            let outcome = dir.remove();
            let mut inner = self.lock();
            inner.removing = None;
            inner.known.remove(&dir);
            self.save(&inner);
            drop(inner);
            self.changed.notify_all();
            match outcome {
                Ok(()) => {
                    removed.count += 1;
                    removed.bytes += bytes;
                    log::info!("build directory removed path={} bytes={bytes}", dir.path().display());
                }
                // A directory that cannot be removed is not retried until a job has used it again.
                Err(error) => {
                    log::warn!("cannot remove a build directory path={} error={error}", dir.path().display());
                }
            }
        }
        removed
    }

    /// The total size of the measured directories below `root`.
    fn bytes(&self, root: &Path) -> u64 {
        self.lock().known.iter().filter(|(dir, _)| dir.root == root).filter_map(|(_, usage)| usage.bytes).sum()
    }

    /// Measures the directories that were used since their last measurement, without holding the lock. A size that a
    /// job has made outdated is measured again after that job.
    fn measure(&self, root: &Path) {
        let is_due = |(dir, usage): &(&BuildDir, &Usage)| dir.root == root && usage.bytes.is_none();
        let due: Vec<(BuildDir, u64)> =
            self.lock().known.iter().filter(is_due).map(|(dir, usage)| (dir.clone(), usage.used)).collect();
        for (dir, used) in due {
            let bytes = dir.measure();
            let mut inner = self.lock();
            if let Some(usage) = inner.known.get_mut(&dir).filter(|usage| usage.used == used) {
                usage.bytes = Some(bytes);
            }
        }
        self.save(&self.lock());
    }

    /// The least recently used directory that exceeds a limit and that no job uses. Marks it as being removed.
    fn next_to_remove(&self, root: &Path, limits: StorageLimits) -> Option<(BuildDir, u64)> {
        let mut inner = self.lock();
        let mut here: Vec<(&BuildDir, &Usage)> = inner.known.iter().filter(|(dir, _)| dir.root == root).collect();
        here.sort_by_key(|(_, usage)| usage.used);
        let total: u64 = here.iter().filter_map(|(_, usage)| usage.bytes).sum();
        let is_too_old = |usage: &Usage| limits.age.is_some_and(|age| now().saturating_sub(usage.used) > age.as_secs());
        let is_too_much = limits.size.is_some_and(|size| total > size);
        let (dir, usage) = here
            .into_iter()
            .find(|(dir, usage)| !inner.in_use.contains_key(*dir) && (is_too_much || is_too_old(usage)))?;
        let (dir, bytes) = (dir.clone(), usage.bytes.unwrap_or(0));
        inner.removing = Some(dir.clone());
        Some((dir, bytes))
    }

    fn save(&self, inner: &Inner) {
        let all: Vec<(&BuildDir, &Usage)> = inner.known.iter().collect();
        let (path, draft) = (self.state.join(FILE), self.state.join(FILE).with_extension("draft"));
        let written = serde_json::to_vec(&all).map_err(io::Error::other).and_then(|text| fs::write(&draft, text));
        // If the record cannot be written, the agent forgets the directories after a restart and keeps them.
        if let Err(error) = written.and_then(|()| fs::rename(&draft, &path)) {
            log::debug!("cannot record the build directories path={} error={error}", path.display());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        sync::lock(&self.inner)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut inner = self.dirs.lock();
        if let Some(jobs) = inner.in_use.get_mut(&self.dir) {
            *jobs -= 1;
            if *jobs == 0 {
                inner.in_use.remove(&self.dir);
            }
        }
        inner.known.insert(self.dir.clone(), Usage { used: now(), bytes: None });
        self.dirs.save(&inner);
    }
}

impl BuildDir {
    /// The directory that a later job would reuse.
    pub fn of_job(job: &Job<'_>) -> Option<Self> {
        let (context, dirs) = (job.context, &job.settings.dirs);
        let executor = &context.executor;
        if dirs.container_builds.is_some() && !executor.shares_builds(context) {
            // The agent created this directory, and everything in it belongs to the job.
            let (root, trusted) = (context.builds.clone(), dirs.builds.clone());
            let dir = Self { root, trusted, below: PathBuf::new(), user: None };
            return (!is_job_dir(&dirs.builds)).then_some(dir);
        }
        let below = dirs.project.strip_prefix(&dirs.builds).ok().filter(|below| !below.as_os_str().is_empty())?;
        // Each user of a pool of users has a directory below the root.
        let above = executor.shares_caches().then(|| dirs.builds.parent()).flatten();
        Some(Self {
            root: above.unwrap_or(&dirs.builds).to_owned(),
            trusted: dirs.builds.clone(),
            below: below.to_owned(),
            user: executor.user().map(|user| user.name.clone()),
        })
    }

    fn path(&self) -> PathBuf {
        self.trusted.join(&self.below)
    }

    /// Removes the directory with its content, and the job's files beside it. Fails if a file cannot be removed.
    fn remove(&self) -> io::Result<()> {
        if self.below.as_os_str().is_empty() {
            return remove::remove(&self.trusted);
        }
        self.as_owner(|| {
            let (above, name) = self.open_above()?;
            let at = |name: &Path| PathBuf::from(format!("/proc/self/fd/{}", above.as_raw_fd())).join(name);
            let mut beside = name.clone().into_os_string();
            beside.push(".tmp");
            remove::remove(&at(&name)).and(remove::remove(&at(Path::new(&beside))))
        })?
    }

    /// The size on the disk in bytes; 0 for files that cannot be opened.
    fn measure(&self) -> u64 {
        let measured = match self.below.as_os_str().is_empty() {
            true => open_directory(&self.trusted).map(|directory| size_of(directory, 0)),
            false => self
                .as_owner(|| {
                    let (above, name) = self.open_above()?;
                    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    io::Result::Ok(size_of(openat(&above, &name, flags, Mode::empty())?, 0))
                })
                .and_then(|outcome| outcome),
        };
        measured.unwrap_or(0)
    }

    /// The parent of the directory to remove, opened without following a link of a job, and the name in it.
    fn open_above(&self) -> io::Result<(OwnedFd, PathBuf)> {
        let (Some(above), Some(name)) = (self.below.parent(), self.below.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let trusted = open_directory(&self.trusted)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let above = match above.as_os_str().is_empty() {
            true => trusted,
            false => sys::open_beneath(trusted.as_fd(), above, flags)?,
        };
        Ok((above, PathBuf::from(name)))
    }

    /// Acts with the rights of the jobs that worked there, so that a link of a job cannot lead to files of other users.
    fn as_owner<T>(&self, act: impl FnOnce() -> T) -> io::Result<T> {
        let user = self.user.as_deref().map(user::look_up).transpose().map_err(io::Error::other)?;
        as_job(user.as_ref(), act)
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// The size on the disk of everything below a directory. Follows no link.
fn size_of(directory: OwnedFd, depth: usize) -> u64 {
    let Ok(mut listing) = Dir::from_fd(directory) else { return 0 };
    let names: Vec<_> = listing.iter().flatten().map(|entry| entry.file_name().to_owned()).collect();
    let mut bytes = 0;
    for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
        let Ok(stat) = fstatat(&listing, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let is_directory = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR;
        if is_directory && depth < DEEPEST {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            bytes +=
                openat(&listing, name.as_c_str(), flags, Mode::empty()).map_or(0, |below| size_of(below, depth + 1));
        }
    }
    bytes
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// A build directory of 64 KiB, last used `ago` seconds ago.
    fn used(dirs: &Arc<BuildDirs>, root: &Path, name: &str, ago: u64) -> BuildDir {
        let dir = BuildDir { root: root.into(), trusted: root.into(), below: format!("a/{name}").into(), user: None };
        fs::create_dir_all(dir.path().join("deep/deeper")).expect("made");
        fs::create_dir_all(root.join(format!("a/{name}.tmp"))).expect("made");
        fs::write(dir.path().join("deep/deeper/file"), vec![1; 64 << 10]).expect("written");
        drop(dirs.claim(dir.clone()));
        dirs.lock().known.get_mut(&dir).expect("known").used = now() - ago;
        dir
    }

    fn left(root: &Path) -> Vec<String> {
        let entries = fs::read_dir(root.join("a")).expect("read").flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_least_recently_used_go_until_the_rest_is_small_enough() {
        let directory = tempfile::tempdir().expect("a directory");
        let (root, dirs) = (directory.path().join("builds"), BuildDirs::load(directory.path()));
        for (name, ago) in [("new", 1), ("old", 30), ("older", 40)] {
            used(&dirs, &root, name, ago);
        }
        let limits = StorageLimits { size: Some(150 << 10), age: None };
        let removed = dirs.tidy_root(&root, limits);
        assert_eq!(
            (left(&root), removed.count),
            (vec!["new".into(), "new.tmp".into(), "old".into(), "old.tmp".into()], 1)
        );
        assert!(removed.bytes >= 64 << 10 && dirs.bytes(&root) <= 150 << 10, "{removed:?}");
        assert_eq!(dirs.tidy_root(&root, limits), Removed::default());
        assert_eq!(dirs.tidy_root(&root, StorageLimits { size: None, age: Some(Duration::from_secs(20)) }).count, 1);
        assert_eq!(left(&root), ["new", "new.tmp"]);
        // A later agent loads the record.
        assert_eq!(
            BuildDirs::load(directory.path()).tidy_root(&root, StorageLimits { size: Some(0), age: None }).count,
            1
        );
        assert!(left(&root).is_empty());
    }

    #[test]
    fn a_directory_that_a_job_uses_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let (root, dirs) = (directory.path().join("builds"), BuildDirs::load(directory.path()));
        let dir = used(&dirs, &root, "busy", 100);
        let job = dirs.claim(dir);
        let nothing = StorageLimits { size: Some(0), age: Some(Duration::ZERO) };
        assert_eq!(dirs.tidy_root(&root, nothing).count, 0);
        drop(job);
        assert_eq!(dirs.tidy_root(&root, nothing).count, 1);
    }

    #[test]
    fn a_job_waits_for_the_end_of_a_removal() {
        let directory = tempfile::tempdir().expect("a directory");
        let (root, dirs) = (directory.path().join("builds"), BuildDirs::load(directory.path()));
        let dir = used(&dirs, &root, "gone", 100);
        dirs.lock().removing = Some(dir.clone());
        let (sender, claimed) = mpsc::channel();
        let waiting = thread::spawn({
            let dirs = Arc::clone(&dirs);
            move || {
                drop(dirs.claim(dir));
                sender.send(())
            }
        });
        assert!(claimed.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
        dirs.lock().removing = None;
        dirs.changed.notify_all();
        claimed.recv().expect("claimed");
        waiting.join().expect("ended").expect("sent");
    }

    #[test]
    fn a_link_in_the_way_leads_nowhere() {
        let directory = tempfile::tempdir().expect("a directory");
        let (root, dirs) = (directory.path().join("builds"), BuildDirs::load(directory.path()));
        let outside = directory.path().join("outside");
        fs::create_dir_all(outside.join("p")).expect("made");
        used(&dirs, &root, "p", 100);
        fs::rename(root.join("a"), root.join("b")).expect("moved");
        symlink(&outside, root.join("a")).expect("planted");
        assert_eq!(dirs.tidy_root(&root, StorageLimits { size: None, age: Some(Duration::ZERO) }).count, 0);
        assert!(outside.join("p").exists());
    }
}
