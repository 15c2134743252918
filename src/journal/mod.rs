//! State that survives a crash of the agent: the running jobs, the number of accepted jobs, and the step of a shutdown.
//! This layer only reads and writes files.
//!
//! Each slot has a directory with the record of its job, the log and the step results. A record is written to a new
//! file and renamed; it is bound to the machine and the boot. Progress is appended to the record as lines, because
//! creating a file for each step would make short jobs wait for the file system.

mod job;
mod job_count;
pub mod progress;
pub mod shutdown;
pub mod stop_requests;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::job::{JobJournal, Resumption};
pub use self::job_count::JobCount;
pub use self::progress::{ContainerCondition, JobContainer, OfferState, Progress, RemainingStages, StepRecord};
use crate::coordinator::manager::protocol::Offer;
use crate::decode;
use crate::executor::ConcurrentIds;
use crate::http::tls::TlsFiles;
use crate::instance::Identity;
use crate::sys::{self, BootTime};
use crate::token::Token;

/// The version of the format of [`Record`]. An agent resumes only jobs whose record has this version.
pub const VERSION: u32 = 1;

/// Everything that a later agent needs to resume a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// See [`VERSION`].
    pub version: u32,
    /// The machine and the boot that the job runs in.
    pub identity: Identity,
    /// The URL of GitLab.
    pub url: String,
    /// Certificates for GitLab.
    pub tls: TlsFiles,
    /// The short token of the runner.
    pub short_token: String,
    /// The configuration that the job started with; see [`crate::config::carried`]. Empty in the record of an earlier
    /// version.
    #[serde(default)]
    pub configuration: String,
    /// Identifies the runner's token; see [`crate::config::Runner::key`].
    #[serde(default)]
    pub key: Option<Token>,
    /// The payload as GitLab sent it.
    pub payload: String,
    /// Id of the request that returned the job.
    pub request_id: String,
    pub concurrent: ConcurrentIds,
    /// Start of the job.
    pub began: BootTime,
    /// Number of the job on this machine, starting at 1. The job count is written after the record.
    #[serde(default)]
    pub number: u32,
    /// The offer, for a job from a manager.
    #[serde(default)]
    pub offer: Option<Box<OfferRecord>>,
    pub progress: Progress,
}

/// How the earlier agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Predecessor {
    /// The process ended.
    Ended,
    /// The process handed over to this program (SIGUSR2).
    HandedOver,
}

/// The offer of a job by a manager.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OfferRecord {
    /// URL of the manager.
    pub manager: String,
    pub offer: Offer,
}

/// A record that this version cannot resume, as far as it can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRecord {
    /// The version of its format; `None` if it has none.
    pub version: Option<u32>,
    pub identity: Identity,
    /// The URL of GitLab.
    pub url: String,
    pub tls: TlsFiles,
    pub short_token: String,
    /// The payload as GitLab sent it.
    pub payload: String,
    /// Whether a manager offered the job.
    pub is_offered: bool,
    /// The step that may still run.
    pub step: Option<StepRecord>,
}

/// What the record of a slot holds.
#[derive(Debug)]
pub enum StoredRecord {
    /// There is no record.
    Absent,
    /// A record of this version.
    Current(Box<Record>),
    /// A record of another version.
    Foreign(Box<ForeignRecord>),
    /// A text that is no record.
    Unreadable,
}

/// The directory of one slot.
#[derive(Clone, Debug)]
pub struct SlotDirectory(PathBuf);

impl SlotDirectory {
    /// The directory of slot `number` below the state directory.
    pub fn new(state: &Path, number: usize) -> Self {
        Self(state.join(format!("slot-{number}")))
    }

    /// A directory with another name.
    pub fn at_path(path: PathBuf) -> Self {
        Self(path)
    }

    /// Creates the directory, empty. Errors: the state directory cannot be written.
    pub fn create(&self) -> io::Result<()> {
        self.discard()?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }

    /// Removes the directory with its content. The record goes first: if the agent dies meanwhile, the next one must
    /// not resume a job whose other files are lost.
    pub fn discard(&self) -> io::Result<()> {
        let ignore_missing = |result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        ignore_missing(fs::remove_file(self.record()))?;
        ignore_missing(fs::remove_dir_all(&self.0))
    }

    /// The log of the job.
    pub fn spool(&self) -> PathBuf {
        self.0.join("trace")
    }

    /// The result of a step.
    pub fn status(&self, step: &str) -> PathBuf {
        self.0.join(format!("{step}.status"))
    }

    /// Writes the record of a new job in place of the old content. Errors: the state directory cannot be written.
    pub fn begin(&self, record: &Record) -> io::Result<()> {
        self.create()?;
        self.save(record)
    }

    /// Writes the whole record. Errors: the record cannot be written.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        sys::replace_file(&self.record(), &serde_json::to_vec(record)?)
    }

    /// Appends the progress to the record. Errors: there is no record, or it cannot be written; then the earlier
    /// progress stays valid.
    pub fn append_progress(&self, progress: &Progress) -> io::Result<()> {
        // Starts with a newline, because a crash may have left the line before incomplete.
        let mut line = vec![b'\n'];
        serde_json::to_writer(&mut line, progress)?;
        let mut file = OpenOptions::new().append(true).open(self.record())?;
        let size = file.metadata()?.len();
        file.write_all(&line).inspect_err(|_| drop(file.set_len(size)))
    }

    /// Calls fsync on the record, to survive a power loss.
    pub fn sync(&self) -> io::Result<()> {
        File::open(self.record())?.sync_all()?;
        File::open(&self.0)?.sync_all()
    }

    /// The record with its last progress, if there is one of this version.
    pub fn load(&self) -> Option<Record> {
        match self.read() {
            StoredRecord::Current(record) => Some(*record),
            StoredRecord::Absent | StoredRecord::Foreign(_) | StoredRecord::Unreadable => None,
        }
    }

    /// The record with its last progress.
    pub fn read(&self) -> StoredRecord {
        let Ok(text) = fs::read(self.record()) else { return StoredRecord::Absent };
        let mut lines = text.split(|byte| *byte == b'\n');
        let first = lines.next().unwrap_or_default();
        match decode::json::<Record>(first) {
            Ok(mut record) if record.version == VERSION => {
                if let Some(latest) = lines.rev().find_map(|line| decode::json(line).ok()) {
                    record.progress = latest;
                }
                StoredRecord::Current(Box::new(record))
            }
            _ => {
                let latest = lines.rev().find_map(|line| decode::json(line).ok());
                ForeignRecord::parse(first, latest)
                    .map_or(StoredRecord::Unreadable, |record| StoredRecord::Foreign(Box::new(record)))
            }
        }
    }

    fn record(&self) -> PathBuf {
        self.0.join("job.json")
    }
}

impl ForeignRecord {
    /// Reads the fields that every version writes. `latest` is the last progress after the record.
    fn parse(record: &[u8], latest: Option<Value>) -> Option<Self> {
        let record: Value = decode::json(record).ok()?;
        let step = latest.as_ref().or(record.get("progress")).and_then(find_step);
        Some(Self {
            version: field(&record, "version"),
            identity: field(&record, "identity")?,
            url: field(&record, "url")?,
            tls: field(&record, "tls").unwrap_or_default(),
            short_token: field(&record, "short_token")?,
            payload: field(&record, "payload")?,
            is_offered: record.get("offer").is_some_and(|offer| !offer.is_null()),
            step,
        })
    }
}

fn field<T: DeserializeOwned>(record: &Value, key: &str) -> Option<T> {
    decode::json(record.get(key)?.to_string().as_bytes()).ok()
}

/// The running step. Another version may store it elsewhere in the progress.
fn find_step(progress: &Value) -> Option<StepRecord> {
    let Value::Object(fields) = progress else { return None };
    if fields.contains_key("id") && fields.contains_key("cgroups") {
        return decode::json(progress.to_string().as_bytes()).ok();
    }
    fields.values().find_map(find_step)
}

/// The existing slot directories below the state directory, by number.
pub fn slots(state: &Path) -> Vec<(usize, SlotDirectory)> {
    let entries = fs::read_dir(state).into_iter().flatten().flatten();
    let number = |entry: &fs::DirEntry| entry.file_name().to_str()?.strip_prefix("slot-")?.parse().ok();
    let mut slots: Vec<_> = entries.filter_map(|entry| Some((number(&entry)?, SlotDirectory(entry.path())))).collect();
    slots.sort_unstable_by_key(|(number, _)| *number);
    slots
}

#[cfg(test)]
pub mod tests {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

    use super::progress::StageProgress;
    use super::*;

    pub fn record() -> Record {
        Record {
            version: VERSION,
            identity: Identity { instance: "i-1".into(), boot: "b-1".into() },
            url: "https://gitlab.test".into(),
            tls: TlsFiles::default(),
            short_token: "abc".into(),
            configuration: String::new(),
            key: None,
            payload: "{\n}".into(),
            request_id: String::new(),
            concurrent: ConcurrentIds::default(),
            began: BootTime::from_nanos(1),
            number: 1,
            offer: None,
            progress: Progress::default(),
        }
    }

    #[test]
    fn a_record_has_the_last_complete_progress() {
        let directory = tempfile::tempdir().expect("a directory");
        let slot = SlotDirectory::at_path(directory.path().join("slot"));
        let at = |index| Progress {
            stage: Some(StageProgress { index, ..StageProgress::default() }),
            ..Progress::default()
        };
        let stage = |slot: &SlotDirectory| slot.load().expect("a record").progress.stage.map(|stage| stage.index);
        assert!(slot.append_progress(&Progress::default()).is_err(), "there is no record");
        slot.create().expect("create the directory");
        slot.save(&record()).expect("save the record");
        assert_eq!((stage(&slot), slot.load().expect("a record").payload.as_str()), (None, "{\n}"));
        for number in 1..=3 {
            slot.append_progress(&at(number)).expect("append the progress");
            assert_eq!(stage(&slot), Some(number));
        }
        let mut file = OpenOptions::new().append(true).open(slot.record()).expect("open the file");
        file.write_all(b"\n{\"stage\":{\"index\":4,\"sec").expect("an agent that dies while it writes");
        assert_eq!(stage(&slot), Some(3));
        slot.append_progress(&at(5)).expect("append the progress");
        assert_eq!(stage(&slot), Some(5));
        slot.save(&record()).expect("save the record");
        assert_eq!(stage(&slot), None);
    }

    #[test]
    fn the_record_is_removed_before_the_other_files() {
        let directory = tempfile::tempdir().expect("a directory");
        let slot = SlotDirectory::at_path(directory.path().join("slot"));
        slot.begin(&record()).expect("write the record");
        for step in 0..20 {
            fs::write(slot.status(&format!("7-{step}")), "0").expect("write the file");
        }
        let watch = Inotify::init(InitFlags::IN_NONBLOCK).expect("a watch");
        watch.add_watch(&slot.0, AddWatchFlags::IN_DELETE).expect("watch the directory");
        slot.discard().expect("remove the directory");
        let removed = watch.read_events().expect("the removals");
        assert_eq!(removed.first().and_then(|event| event.name.clone()), Some("job.json".into()), "{removed:?}");
        assert!(!slot.0.exists());
        slot.discard().expect("there is no directory any more");
    }

    #[test]
    fn the_record_of_another_version_still_names_its_job_and_its_step() {
        let directory = tempfile::tempdir().expect("a directory");
        let slot = SlotDirectory::at_path(directory.path().join("slot"));
        assert!(matches!(slot.read(), StoredRecord::Absent));
        slot.create().expect("create the directory");
        let step = StepRecord { id: "7-1".into(), shim: None, cgroups: vec!["/c".into()], deadline: None };
        for version in [None, Some(VERSION + 1)] {
            let mut text = serde_json::to_value(record()).expect("encode as JSON");
            text["version"] = version.into();
            text["progress"] = serde_json::json!({"stage": 3, "other": {"step": step}});
            fs::write(slot.record(), text.to_string()).expect("write the file");
            assert!(slot.load().is_none());
            let StoredRecord::Foreign(foreign) = slot.read() else { panic!("{:?}", slot.read()) };
            assert_eq!((foreign.version, foreign.url.as_str()), (version, "https://gitlab.test"));
            assert_eq!((foreign.payload.as_str(), foreign.is_offered), ("{\n}", false));
            assert_eq!(foreign.step, Some(step.clone()));
        }
        for nonsense in ["", "[]", "{\"version\":1}", "{\"url\":"] {
            fs::write(slot.record(), nonsense).expect("write the file");
            assert!(matches!(slot.read(), StoredRecord::Unreadable), "{nonsense}");
        }
    }

    #[test]
    fn finds_its_slots() {
        let directory = tempfile::tempdir().expect("a directory");
        for number in [11, 2] {
            SlotDirectory::new(directory.path(), number).create().expect("create the directory");
        }
        let numbers: Vec<usize> = slots(directory.path()).into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, [2, 11]);
    }
}
