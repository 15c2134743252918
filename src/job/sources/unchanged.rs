//! Finds the files of a checkout that have not changed, and rebuilds the git index from them before git trusts it.
//!
//! Git considers a file unchanged if its times and size are those in the index, or if a flag in the index marks it as
//! unchanged. A job can write both. The agent therefore keeps the entries but not their flags, and a file counts as
//! unchanged only if its content is that of its entry: either the agent hashes the file, or the file's times are those
//! that the agent recorded after the checkout ([`super::record`]). Git writes all other files again.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::sys::stat::{FileStat, Mode, fstat, umask};

use super::index::{self, IndexEntry, KnownFiles};
use super::record::CheckoutRecord;
use super::{SourcesPlan, files, object_id};
use crate::archive::root::{ArchiveRoot, FileKind, kind_of};

/// Limit for the threads that hash files.
const MAX_THREADS: usize = 8;

/// Rebuilds the index. Returns the files whose content is known to be that of their entries; `None` if the index cannot
/// be read: then it is unknown which files of the directory came from git.
pub fn rebuild_index(plan: &SourcesPlan, record: &CheckoutRecord) -> io::Result<Option<KnownFiles>> {
    let path = plan.project.join(".git/index");
    if files::open(&path).is_none() {
        super::remove::remove(&path)?;
        return Ok(Some(KnownFiles::new()));
    }
    let Some(entries) = index::list(plan)? else { return Ok(None) };
    let known = find(plan, &entries, record)?;
    index::write(plan, &path, &entries, &known)?;
    Ok(Some(known))
}

/// Finds the files whose content is that of their entries.
pub fn find(plan: &SourcesPlan, entries: &[IndexEntry], record: &CheckoutRecord) -> io::Result<KnownFiles> {
    let root = ArchiveRoot::open(&plan.project)?;
    // The umask determines the permissions that git would give a new file.
    let mask = umask(Mode::empty());
    umask(mask);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(stat) = unchanged(&root, plan, entry, record, mask) {
                found.push((entry.path.clone(), (entry.oid.clone(), stat)));
            }
        }
        found
    };
    Ok(thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut known: KnownFiles = work().into_iter().collect();
        // A thread that panicked contributes no files.
        known.extend(helpers.into_iter().filter_map(|helper| helper.join().ok()).flatten());
        known
    }))
}

/// The stat of a file whose content is that of its entry.
fn unchanged(
    root: &ArchiveRoot,
    plan: &SourcesPlan,
    entry: &IndexEntry,
    record: &CheckoutRecord,
    mask: Mode,
) -> Option<FileStat> {
    let path = Path::new(OsStr::from_bytes(&entry.path));
    let stat = root.stat(path).ok()?;
    let kind = if entry.mode & 0o170_000 == 0o120_000 { FileKind::Link } else { FileKind::File };
    if kind_of(&stat) != kind || !matches!(entry.mode, 0o100_644 | 0o100_755 | 0o120_000) {
        return None;
    }
    if record.holds(entry, &stat) {
        return Some(stat);
    }
    if kind == FileKind::Link {
        let target = root.read_link(path).ok()?;
        return (object_id::hash_content(plan, "blob", target.as_bytes()) == entry.oid).then_some(stat);
    }
    let full = if entry.mode & 0o100 == 0 { 0o666 } else { 0o777 };
    // Another hard link may exist, or the permissions may exclude the job. So git writes the file again.
    if stat.st_nlink != 1 || stat.st_mode & 0o7777 != full & !mask.bits() {
        return None;
    }
    let (mut file, opened) = root.open_file(path).ok()?;
    let hash = object_id::hash_reader(plan, "blob", opened.st_size.unsigned_abs(), &mut file).ok()?;
    let after = fstat(&file).ok()?;
    (hash == entry.oid && is_same(&stat, &after)).then_some(after)
}

/// Whether a file did not change between two calls of stat.
fn is_same(one: &FileStat, other: &FileStat) -> bool {
    let times = |stat: &FileStat| (stat.st_ctime, stat.st_ctime_nsec, stat.st_mtime, stat.st_mtime_nsec);
    (one.st_dev, one.st_ino, one.st_size, one.st_mode) == (other.st_dev, other.st_ino, other.st_size, other.st_mode)
        && times(one) == times(other)
}
