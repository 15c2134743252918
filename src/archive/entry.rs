//! A file, directory or link that goes into an archive.

use std::cmp::Ordering;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::root::FileKind;

/// One file, directory or link to pack. Entries are sorted by the bytes of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveEntry {
    /// The path relative to the project directory.
    pub path: PathBuf,
    pub kind: FileKind,
}

impl Ord for ArchiveEntry {
    fn cmp(&self, other: &Self) -> Ordering {
        let names = [self, other].map(|entry| entry.path.as_os_str().as_bytes());
        names[0].cmp(names[1]).then(self.kind.cmp(&other.kind))
    }
}

impl PartialOrd for ArchiveEntry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
