//! The record of the files that the agent has checked out, for the next job in the same directory.
//!
//! The record holds the times of each file just after git wrote it. A job cannot set a file's change time (`ctime`). So
//! a file whose times are those in the record still has the same content and need not be read again. The record is in
//! `.git`, where jobs can write: it has a message authentication code (HMAC) that only the agent can compute, and a
//! record with a wrong code is ignored. The agent writes no record if other users may change files while git runs.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::FileStat;
use nix::time::{ClockId, clock_gettime};
use ring::digest::{Context, SHA256};
use ring::hmac;

use super::index::{self, IndexEntry};
use super::{SourcesPlan, files, kept};
use crate::archive::root::ArchiveRoot;
use crate::digest::hex;

/// Limit for the size of a record: more than any checkout needs.
const MAX_SIZE: u64 = 1 << 30;

/// The coarsest resolution of a kernel's file timestamps.
const TIMESTAMP_RESOLUTION: Duration = Duration::from_millis(10);

/// The recorded state of each file, by path.
#[derive(Default)]
pub struct CheckoutRecord(HashMap<Vec<u8>, String>);

impl CheckoutRecord {
    /// Reads the record of the project directory; returns an empty one if it does not exist or the agent did not write
    /// it.
    pub fn read(plan: &SourcesPlan) -> Self {
        Self::try_read(plan).unwrap_or_default()
    }

    fn try_read(plan: &SourcesPlan) -> Option<Self> {
        let key = key_of(plan)?;
        let content = files::read_small(&path(plan), MAX_SIZE)?;
        let (code, text) = content.split_at_checked(32)?;
        hmac::verify(&key, &signed(plan, text), code).ok()?;
        let mut files = HashMap::new();
        for line in text.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
            let tab = line.iter().position(|byte| *byte == b'\t')?;
            files.insert(line[tab + 1..].to_vec(), String::from_utf8(line[..tab].to_vec()).ok()?);
        }
        Some(Self(files))
    }

    /// Whether a file has not changed since the record was written, for the same object.
    pub fn holds(&self, entry: &IndexEntry, stat: &FileStat) -> bool {
        self.0.get(&entry.path).is_some_and(|known| *known == line_of(&entry.oid, entry.mode, stat))
    }

    /// Records the current state of all files of the checkout: git has just written them.
    pub fn write(plan: &SourcesPlan) -> io::Result<()> {
        let Some(key) = key_of(plan) else { return Ok(()) };
        let Some(entries) = index::list(plan)? else { return Ok(()) };
        let root = ArchiveRoot::open(&plan.project)?;
        let stat = |entry: &IndexEntry| root.stat(Path::new(OsStr::from_bytes(&entry.path))).ok();
        let entries = entries.into_iter().chain(large_files(plan));
        let found: Vec<(IndexEntry, FileStat)> =
            entries.filter_map(|entry| stat(&entry).map(|stat| (entry, stat))).collect();
        // A later change must get a later time. No event announces a tick of the kernel's clock, so sleep for one.
        let changed = |stat: &FileStat| (stat.st_ctime, stat.st_ctime_nsec);
        let last = found.iter().map(|(_, stat)| changed(stat)).max();
        let now = || clock_gettime(ClockId::CLOCK_REALTIME_COARSE).map(|now| (now.tv_sec(), now.tv_nsec()));
        if last.is_some_and(|last| now().is_ok_and(|now| now <= last)) {
            std::thread::sleep(TIMESTAMP_RESOLUTION);
        }
        let now = now()?;
        let mut text = Vec::new();
        for (entry, stat) in found.iter().filter(|(_, stat)| changed(stat) < now && stat.st_nlink == 1) {
            text.extend_from_slice(line_of(&entry.oid, entry.mode, stat).as_bytes());
            text.push(b'\t');
            text.extend_from_slice(&entry.path);
            text.push(0);
        }
        let mut file = files::create(&path(plan))?;
        file.write_all(hmac::sign(&key, &signed(plan, &text)).as_ref())?;
        file.write_all(&text)
    }
}

/// The key that signs records. Jobs do not know the runner's token.
pub fn key(token: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
    hex(hmac::sign(&key, b"mayfly record of a checkout").as_ref())
}

/// The Git LFS files of the repository, as entries whose object id is the SHA-256 in their name.
fn large_files(plan: &SourcesPlan) -> Vec<IndexEntry> {
    let store = PathBuf::from(".git/lfs/objects");
    let names = |directory: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(plan.project.join(directory)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let mut found = Vec::new();
    for first in names(&store).into_iter().map(|name| store.join(name)) {
        for second in names(&first).into_iter().map(|name| first.join(name)) {
            for oid in names(&second) {
                let path = second.join(&oid).into_os_string().into_encoded_bytes();
                found.push(IndexEntry { mode: 0, oid, path });
            }
        }
    }
    found
}

/// Removes Git LFS files that an earlier job may have changed: Git LFS checks only their size.
pub fn remove_unknown_large_files(plan: &SourcesPlan, record: &CheckoutRecord) -> io::Result<()> {
    let root = ArchiveRoot::open(&plan.project)?;
    for entry in large_files(plan) {
        let path = Path::new(OsStr::from_bytes(&entry.path));
        let is_known = root.stat(path).is_ok_and(|stat| record.holds(&entry, &stat));
        let is_itself = || {
            let (mut file, _) = root.open_file(path).ok()?;
            let mut context = Context::new(&SHA256);
            io::copy(&mut file, &mut Hasher(&mut context)).ok()?;
            Some(hex(context.finish().as_ref()) == entry.oid)
        };
        if !is_known && is_itself() != Some(true) {
            super::remove::remove(&plan.project.join(path))?;
        }
    }
    Ok(())
}

/// A writer that hashes its input.
struct Hasher<'a>(&'a mut Context);

impl Write for Hasher<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn path(plan: &SourcesPlan) -> PathBuf {
    plan.project.join(".git").join(kept::CHECKOUT_RECORD)
}

fn key_of(plan: &SourcesPlan) -> Option<hmac::Key> {
    plan.record_key.as_ref().map(|key| hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()))
}

/// The signed text: it includes the directory, so that the record of one directory is not valid in another.
fn signed(plan: &SourcesPlan, text: &[u8]) -> Vec<u8> {
    let scope = format!("checkout\0{}\0{}\0", plan.project.display(), plan.object_format);
    [scope.as_bytes(), text].concat()
}

fn line_of(oid: &str, mode: u32, stat: &FileStat) -> String {
    format!(
        "{oid} {mode:o} {:o} {} {} {} {}.{:09} {}.{:09} {}",
        stat.st_mode,
        stat.st_dev,
        stat.st_ino,
        stat.st_size,
        stat.st_ctime,
        stat.st_ctime_nsec,
        stat.st_mtime,
        stat.st_mtime_nsec,
        stat.st_uid
    )
}
