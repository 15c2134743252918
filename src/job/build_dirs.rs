//! Records the build directories of finished jobs, and removes those that no job has used for the longest time while
//! they are too old or too large in total.
//!
//! The agent records each directory in which a job works, and the time. So the agent removes only directories of its
//! own jobs, and a job cannot prevent the removal of its directory by changing file times. A directory is removed only
//! while no job uses it; a job that needs the directory waits for the end of the removal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::build_dir::BuildDir;
use super::existing_builds::{self, Layout};
use crate::config::cache::StorageLimits;
use crate::decode;
use crate::monitor::machine;
use crate::sync;
use crate::sys;

/// The name of the record in the state directory.
const FILE: &str = "builds.json";

/// Removes a build directory. Errors: something in it cannot be removed.
pub type Remove = Arc<dyn Fn(&BuildDir) -> io::Result<()> + Send + Sync>;

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
    table: Mutex<DirTable>,
    changed: Condvar,
}

/// All that the agent knows of the build directories.
#[derive(Default)]
struct DirTable {
    /// The last use of each recorded directory.
    recorded: BTreeMap<BuildDir, Usage>,
    /// The number of jobs in each directory.
    in_use: BTreeMap<BuildDir, u32>,
    /// The directory that is being removed.
    removing: Option<BuildDir>,
    /// The limits below each root, and how directories there are removed.
    limits: BTreeMap<PathBuf, (StorageLimits, Remove)>,
    /// For each root, where the directories of its jobs are.
    layouts: BTreeMap<PathBuf, Vec<Layout>>,
    /// The roots in which unrecorded directories were searched.
    searched: BTreeSet<PathBuf>,
}

/// A directory that a job uses; it is not removed until this is dropped.
pub struct BuildDirInUse {
    dirs: Arc<BuildDirs>,
    dir: BuildDir,
}

impl BuildDirs {
    /// Loads the record from the state directory.
    pub fn load(state: &Path) -> Arc<Self> {
        let read = fs::read(state.join(FILE)).ok().and_then(|text| decode::json::<Vec<(BuildDir, Usage)>>(&text).ok());
        let recorded = crate::ordered::map(read.unwrap_or_default());
        Arc::new(Self {
            state: state.to_owned(),
            table: Mutex::new(DirTable { recorded, ..DirTable::default() }),
            changed: Condvar::new(),
        })
    }

    /// Sets the limits of the builds below `root`.
    pub fn limit(&self, root: &Path, limits: StorageLimits, remove: Remove) {
        self.lock().limits.insert(root.to_owned(), (limits, remove));
    }

    /// Sets where the directories of jobs are below each root, to find those that are not recorded.
    pub fn set_layouts(&self, layouts: impl Iterator<Item = (PathBuf, Layout)>) {
        let mut all: BTreeMap<PathBuf, Vec<Layout>> = BTreeMap::new();
        for (root, layout) in layouts {
            all.entry(root).or_default().push(layout);
        }
        self.lock().layouts = all;
    }

    /// Whether any root has limits.
    pub fn has_limits(&self) -> bool {
        self.lock().limits.values().any(|(limits, _)| *limits != StorageLimits::default())
    }

    /// Marks a directory as used by a job until the result is dropped. If the directory is being removed, waits for the
    /// end of the removal.
    pub fn claim(self: &Arc<Self>, dir: BuildDir) -> BuildDirInUse {
        let mut table = self.lock();
        while table.removing.as_ref() == Some(&dir) {
            table = sync::wait(&self.changed, table);
        }
        *table.in_use.entry(dir.clone()).or_default() += 1;
        table.recorded.insert(dir.clone(), Usage { used: sys::unix_now(), bytes: None });
        self.save(&table);
        BuildDirInUse { dirs: Arc::clone(self), dir }
    }

    /// Removes directories until the limits are met.
    pub fn tidy(&self) {
        let limits: Vec<_> = self.lock().limits.clone().into_iter().collect();
        for (root, (limits, remove)) in limits {
            let removed = self.tidy_root(&root, limits, &remove);
            machine::builds_removed(removed.count, removed.bytes);
            machine::builds_measured(&root, limits.size.map(|_| self.bytes(&root)));
        }
    }

    /// Adds the directories below a root to the record that are not in it, once for each root.
    fn find_existing(&self, root: &Path) {
        let layouts = {
            let mut table = self.lock();
            if !table.searched.insert(root.to_owned()) {
                return;
            }
            table.layouts.get(root).cloned().unwrap_or_default()
        };
        let found: Vec<_> = layouts.iter().flat_map(|layout| existing_builds::find(root, layout)).collect();
        let mut table = self.lock();
        let before = table.recorded.len();
        for (dir, changed) in found {
            table.recorded.entry(dir).or_insert(Usage { used: changed.min(sys::unix_now()), bytes: None });
        }
        let count = table.recorded.len() - before;
        if count > 0 {
            log::info!("unrecorded build directories found path={} count={count}", root.display());
            self.save(&table);
        }
    }

    fn tidy_root(&self, root: &Path, limits: StorageLimits, remove: &Remove) -> Removed {
        let mut removed = Removed::default();
        if limits == StorageLimits::default() {
            return removed;
        }
        self.find_existing(root);
        if limits.size.is_some() {
            self.measure(root);
        }
        while let Some((dir, bytes)) = self.next_to_remove(root, limits) {
            let outcome = remove(&dir);
            let mut table = self.lock();
            table.removing = None;
            table.recorded.remove(&dir);
            self.save(&table);
            drop(table);
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
        self.lock().recorded.iter().filter(|(dir, _)| dir.root == root).filter_map(|(_, usage)| usage.bytes).sum()
    }

    /// Measures the directories that were used since their last measurement, without holding the lock meanwhile. If a
    /// job has used the directory during the measurement, the size is discarded; the directory is measured again after
    /// that job.
    fn measure(&self, root: &Path) {
        let is_due = |(dir, usage): &(&BuildDir, &Usage)| dir.root == root && usage.bytes.is_none();
        let due: Vec<(BuildDir, u64)> =
            self.lock().recorded.iter().filter(is_due).map(|(dir, usage)| (dir.clone(), usage.used)).collect();
        for (dir, used) in due {
            let bytes = dir.measure();
            let mut table = self.lock();
            if let Some(usage) = table.recorded.get_mut(&dir).filter(|usage| usage.used == used) {
                usage.bytes = Some(bytes);
            }
        }
        self.save(&self.lock());
    }

    /// The least recently used directory that exceeds a limit and that no job uses. Marks it as being removed.
    fn next_to_remove(&self, root: &Path, limits: StorageLimits) -> Option<(BuildDir, u64)> {
        let mut table = self.lock();
        let mut here: Vec<(&BuildDir, &Usage)> = table.recorded.iter().filter(|(dir, _)| dir.root == root).collect();
        here.sort_unstable_by_key(|(_, usage)| usage.used);
        let total: u64 = here.iter().filter_map(|(_, usage)| usage.bytes).sum();
        let is_too_old =
            |usage: &Usage| limits.age.is_some_and(|age| sys::unix_now().saturating_sub(usage.used) > age.as_secs());
        let is_too_much = limits.size.is_some_and(|size| total > size);
        let (dir, usage) = here
            .into_iter()
            .find(|(dir, usage)| !table.in_use.contains_key(*dir) && (is_too_much || is_too_old(usage)))?;
        let (dir, bytes) = (dir.clone(), usage.bytes.unwrap_or(0));
        table.removing = Some(dir.clone());
        Some((dir, bytes))
    }

    fn save(&self, table: &DirTable) {
        let all: Vec<(&BuildDir, &Usage)> = table.recorded.iter().collect();
        let path = self.state.join(FILE);
        let written = serde_json::to_vec(&all).map_err(io::Error::other);
        // If the record cannot be written, the agent forgets the directories after a restart and keeps them.
        if let Err(error) = written.and_then(|text| sys::replace_file(&path, &text)) {
            log::debug!("cannot record the build directories path={} error={error}", path.display());
        }
    }

    fn lock(&self) -> MutexGuard<'_, DirTable> {
        sync::lock(&self.table)
    }
}

impl Drop for BuildDirInUse {
    fn drop(&mut self) {
        let mut table = self.dirs.lock();
        if let Some(jobs) = table.in_use.get_mut(&self.dir) {
            *jobs -= 1;
            if *jobs == 0 {
                table.in_use.remove(&self.dir);
            }
        }
        table.recorded.insert(self.dir.clone(), Usage { used: sys::unix_now(), bytes: None });
        self.dirs.save(&table);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::job::sources::remove::remove_below;

    /// Applies limits, and removes directories with the rights of this process.
    fn tidy(dirs: &BuildDirs, root: &Path, limits: StorageLimits) -> Removed {
        let remove: Remove = Arc::new(|dir: &BuildDir| remove_below(&dir.trusted, &dir.below));
        dirs.tidy_root(root, limits, &remove)
    }

    /// A build directory of 64 KiB, last used `ago` seconds ago.
    fn used(dirs: &Arc<BuildDirs>, root: &Path, name: &str, ago: u64) -> BuildDir {
        let dir = BuildDir { root: root.into(), trusted: root.into(), below: format!("a/{name}").into(), user: None };
        fs::create_dir_all(dir.path().join("deep/deeper")).expect("create the directory");
        fs::create_dir_all(root.join(format!("a/{name}.tmp"))).expect("create the directory");
        fs::write(dir.path().join("deep/deeper/file"), vec![1; 64 << 10]).expect("write the file");
        drop(dirs.claim(dir.clone()));
        dirs.lock().recorded.get_mut(&dir).expect("the directory must be recorded").used = sys::unix_now() - ago;
        dir
    }

    fn left(root: &Path) -> Vec<String> {
        let entries = fs::read_dir(root.join("a")).expect("list the directory").flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
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
        let removed = tidy(&dirs, &root, limits);
        assert_eq!(
            (left(&root), removed.count),
            (vec!["new".into(), "new.tmp".into(), "old".into(), "old.tmp".into()], 1)
        );
        assert!(removed.bytes >= 64 << 10 && dirs.bytes(&root) <= 150 << 10, "{removed:?}");
        assert_eq!(tidy(&dirs, &root, limits), Removed::default());
        assert_eq!(tidy(&dirs, &root, StorageLimits { size: None, age: Some(Duration::from_secs(20)) }).count, 1);
        assert_eq!(left(&root), ["new", "new.tmp"]);
        // A later agent loads the record.
        assert_eq!(
            tidy(&BuildDirs::load(directory.path()), &root, StorageLimits { size: Some(0), age: None }).count,
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
        assert_eq!(tidy(&dirs, &root, nothing).count, 0);
        drop(job);
        assert_eq!(tidy(&dirs, &root, nothing).count, 1);
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
        claimed.recv().expect("the directory must be claimed");
        waiting.join().expect("the thread must not panic").expect("the message must be sent");
    }
}
