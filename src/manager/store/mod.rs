//! The manager's durable state: an append-only file with one line and a checksum for each change. The store rewrites
//! the file when most lines are obsolete. A crash can truncate only the last line, which is then ignored.
//!
//! A written change survives the end of the process; a synced change survives a power loss. Changes of several threads
//! share a sync.

pub mod records;
mod seal;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::sync;
use records::{Records, StoreEvent};
pub use seal::Sealer;

/// The store rewrites no file that is smaller than this, in bytes.
const MIN_COMPACT_SIZE: u64 = 1 << 20;

/// The store; threads share it.
pub struct Store {
    directory: PathBuf,
    sealer: Sealer,
    log: Mutex<ChangeLog>,
    /// The number of synced changes.
    synced: Mutex<u64>,
    /// `Flock` releases the lock when the store is dropped, even if a child process still has a copy of the descriptor.
    _lock: Flock<File>,
}

/// The open file, and the state that its changes produce.
struct ChangeLog {
    file: File,
    records: Records,
    /// The number of written changes.
    written: u64,
    size: u64,
    /// The size after the last rewrite.
    compact_size: u64,
}

/// The number of a written change, for [`Store::sync`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

impl Store {
    /// Opens the store in a directory, which is created if it does not exist. Errors: why the store cannot be used, and
    /// the remedy.
    pub fn open(directory: &Path) -> Result<Self, String> {
        let unusable = |error: &dyn std::fmt::Display| {
            format!(
                "the manager's state directory {} cannot be used: {error}; set `state_dir` below [mayfly.manager]",
                directory.display()
            )
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| unusable(&error))?;
        let lock = File::create(directory.join("lock")).map_err(|error| unusable(&error))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => unusable(&"another manager uses it"),
            other => unusable(&format!("lock: {other}")),
        })?;
        let sealer = Sealer::load(&directory.join("key")).map_err(|error| unusable(&format!("key: {error}")))?;
        let records = read(&directory.join("state")).map_err(|error| unusable(&error))?;
        let (file, size) = rewrite(directory, &records).map_err(|error| unusable(&error))?;
        let log = ChangeLog { file, records, written: 0, size, compact_size: size };
        Ok(Self { directory: directory.to_owned(), sealer, log: Mutex::new(log), synced: Mutex::new(0), _lock: lock })
    }

    /// The current records: all changes applied.
    pub fn records(&self) -> Records {
        self.lock().records.clone()
    }

    /// Encrypts secrets.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// Appends a change to the file. If the write fails, the change is not applied.
    pub fn write(&self, event: StoreEvent) -> io::Result<Position> {
        let line = encode(&event)?;
        let mut log = self.lock();
        if log.size > MIN_COMPACT_SIZE && log.size > 2 * log.compact_size {
            match rewrite(&self.directory, &log.records) {
                Ok((file, size)) => (log.file, log.size, log.compact_size) = (file, size, size),
                // The old file stays in use. The next attempt follows at twice its size.
                Err(error) => {
                    log::warn!("cannot compact the manager's state error={error}");
                    log.compact_size = log.size;
                }
            }
        }
        if let Err(error) = log.file.write_all(&line) {
            // Removes a partly written line, because the next line would continue it.
            log.file.set_len(log.size)?;
            return Err(error);
        }
        log.size += line.len() as u64;
        log.written += 1;
        log.records.apply(event);
        Ok(Position(log.written))
    }

    /// Syncs a change and all changes before it to the disk. Errors: the disk failed.
    pub fn sync(&self, position: Position) -> io::Result<()> {
        let mut synced = sync::lock(&self.synced);
        if *synced >= position.0 {
            return Ok(());
        }
        let (file, written) = {
            let log = self.lock();
            (log.file.try_clone()?, log.written)
        };
        file.sync_data()?;
        *synced = written;
        Ok(())
    }

    /// Writes a change and syncs it to the disk. Errors: the disk failed.
    pub fn commit(&self, event: StoreEvent) -> io::Result<()> {
        let position = self.write(event)?;
        self.sync(position)
    }

    fn lock(&self) -> MutexGuard<'_, ChangeLog> {
        sync::lock(&self.log)
    }
}

fn encode(event: &StoreEvent) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(event)?;
    let mut line = format!("{:08x} ", crc32fast::hash(&text)).into_bytes();
    line.extend_from_slice(&text);
    line.push(b'\n');
    Ok(line)
}

fn decode(line: &[u8]) -> Option<StoreEvent> {
    let (sum, text) = line.split_at_checked(9)?;
    let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?.trim_end(), 16).ok()?;
    (sum == crc32fast::hash(text)).then(|| crate::decode::json(text).ok()).flatten()
}

fn read(path: &Path) -> io::Result<Records> {
    let content = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Records::default()),
        content => content?,
    };
    let mut records = Records::default();
    let lines: Vec<&[u8]> = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    for (index, line) in lines.iter().enumerate() {
        match decode(line) {
            Some(event) => records.apply(event),
            None if index + 1 == lines.len() => {
                log::warn!("the last change in the manager's state is incomplete after a crash; it is ignored")
            }
            None => log::error!("a change in the manager's state is invalid; it is ignored line={}", index + 1),
        }
    }
    Ok(records)
}

/// Writes the records to a new file and renames it over the old one. Returns the file, opened for appending, and its
/// size.
fn rewrite(directory: &Path, records: &Records) -> io::Result<(File, u64)> {
    let (path, draft) = (directory.join("state"), directory.join("state.draft"));
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    let mut writer = BufWriter::new(&file);
    for event in records.events() {
        writer.write_all(&encode(&event)?)?;
    }
    writer.flush()?;
    drop(writer);
    file.sync_all()?;
    fs::rename(&draft, &path)?;
    File::open(directory)?.sync_all()?;
    let file = OpenOptions::new().append(true).open(&path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::records::{Accepted, AgentRecord, JobRecord};
    use super::*;

    fn job(id: &str) -> JobRecord {
        JobRecord {
            id: id.to_owned(),
            taken: 1,
            token: "t".to_owned(),
            payload: Some("p".repeat(1000)),
            project: String::new(),
            link: String::new(),
            request_id: String::new(),
            timestamps: true,
            trace: String::new(),
            trace_sent: 0,
            accepted: None,
            failed: None,
            last_line: String::new(),
        }
    }

    fn agent(instance: &str) -> AgentRecord {
        AgentRecord {
            instance: instance.to_owned(),
            boot: "b".to_owned(),
            token_hash: "h".to_owned(),
            version: "1".to_owned(),
            capacity: 1,
            has_own_capacity: false,
            registered: 1,
            builds: 0,
        }
    }

    fn taken(id: &str) -> StoreEvent {
        StoreEvent::Job { pool: "p".to_owned(), job: Box::new(job(id)) }
    }

    fn accepted(id: &str) -> StoreEvent {
        let by = Accepted { offer: "o".to_owned(), instance: "i-1".to_owned(), at: 2 };
        StoreEvent::Accepted { pool: "p".to_owned(), id: id.to_owned(), by }
    }

    #[test]
    fn a_crash_keeps_all_changes() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("open the store");
        assert!(Store::open(directory.path()).is_err_and(|why| why.contains("another manager")));
        for event in [
            StoreEvent::Agent { pool: "p".to_owned(), agent: agent("i-1") },
            taken("1"),
            taken("2"),
            accepted("1"),
            StoreEvent::Trace { pool: "p".to_owned(), id: "2".to_owned(), trace: "wait".to_owned(), sent: 4 },
        ] {
            store.commit(event).expect("commit the event");
        }
        let before = store.records();
        drop(store);
        let store = Store::open(directory.path()).expect("open the store");
        assert_eq!(store.records(), before);
        let jobs = before.jobs;
        assert_eq!(jobs[&("p".to_owned(), "1".to_owned())].payload, None, "the agent has the payload");
        assert_eq!(jobs[&("p".to_owned(), "2".to_owned())].trace, "wait");
        assert_eq!(before.agents.values().next().expect("an agent").builds, 1);
    }

    #[test]
    fn a_truncated_last_line_is_ignored() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("open the store");
        store.commit(taken("1")).expect("commit the event");
        let before = store.records();
        drop(store);
        let whole = fs::read(directory.path().join("state")).expect("read the file");
        for length in 0..whole.len() - 1 {
            let more: Vec<u8> = whole.iter().chain(&whole[..length]).copied().collect();
            fs::write(directory.path().join("state"), more).expect("write the file");
            let store = Store::open(directory.path()).expect("open the store");
            assert_eq!(store.records(), before);
            store.commit(taken("2")).expect("commit the event");
            drop(store);
            let store = Store::open(directory.path()).expect("open the store");
            assert_eq!(store.records().jobs.len(), 2, "the change after it must be read");
            drop(store);
        }
    }

    #[test]
    fn obsolete_changes_do_not_fill_the_disk() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("open the store");
        for number in 0..5000 {
            let id = number.to_string();
            store.write(taken(&id)).expect("write the event");
            store.write(StoreEvent::JobGone { pool: "p".to_owned(), id }).expect("write the event");
        }
        let size = fs::metadata(directory.path().join("state")).expect("a file").len();
        assert!(size <= MIN_COMPACT_SIZE + 4096, "{size}");
        assert!(store.records().jobs.is_empty());
    }
}
