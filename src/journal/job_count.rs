//! The number of jobs taken on this machine, and since when.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::slots;
use crate::decode;
use crate::instance::Identity;
use crate::sys::BootTime;

/// The file in the state directory.
const COUNT_FILE: &str = "agent.json";
/// The size of the file of the job count, in bytes.
const COUNT_FILE_SIZE: usize = 512;

/// The number of jobs taken on this machine, and since when: `MaxBuilds` and the maximum age apply across restarts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobCount {
    identity: Identity,
    pub jobs: u32,
    /// Start of the lifetime. Each boot restarts it, because a machine of a warm pool was powered off for most of
    /// its age.
    #[serde(default)]
    pub began: BootTime,
}

impl JobCount {
    /// The count of this machine, including the jobs in the journal. The count of another machine is discarded; it is
    /// there if this machine started from an image of a used machine.
    pub fn load(state: &Path, identity: &Identity) -> Self {
        let read = fs::read(state.join(COUNT_FILE)).ok().and_then(|text| decode::json::<Self>(&text).ok());
        let ours = read.filter(|count| count.identity.instance == identity.instance);
        let records = slots(state).into_iter().filter_map(|(_, slot)| slot.load());
        let in_journal =
            records.filter(|record| record.identity.instance == identity.instance).map(|record| record.number);
        let counted = ours.as_ref().map_or(0, |count| count.jobs);
        let jobs = in_journal.max().unwrap_or(0).max(counted);
        let began = ours.filter(|count| count.identity.boot == identity.boot && count.began > BootTime::default());
        let began = began.map_or_else(BootTime::now, |count| count.began);
        Self { identity: identity.clone(), jobs, began }
    }

    /// Overwrites the file with one write: creating a file for each job would make the job wait for the file system.
    pub fn save(&self, state: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.resize(text.len().max(COUNT_FILE_SIZE), b' ');
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(state.join(COUNT_FILE))?;
        file.write_all_at(&text, 0)?;
        if file.metadata()?.len() > text.len() as u64 { file.set_len(text.len() as u64) } else { Ok(()) }
    }

    /// Deletes the count.
    pub fn reset(state: &Path) -> io::Result<()> {
        match fs::remove_file(state.join(COUNT_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests::record;
    use crate::journal::{Record, SlotDirectory};

    #[test]
    fn a_count_belongs_to_its_machine() {
        let directory = tempfile::tempdir().expect("a directory");
        let identity = Identity { instance: "i-1".into(), boot: "b-1".into() };
        let mut count = JobCount::load(directory.path(), &identity);
        for jobs in [4, 3] {
            count.jobs = jobs;
            count.save(directory.path()).expect("save the record");
            assert_eq!(JobCount::load(directory.path(), &identity).jobs, jobs);
            fs::write(directory.path().join(COUNT_FILE), [b'x'; 2 * COUNT_FILE_SIZE]).expect("write the file");
        }
        count.save(directory.path()).expect("save the record");
        assert_eq!(JobCount::load(directory.path(), &identity).began, count.began, "the age continues");
        let later = Identity { boot: "b-2".into(), ..identity.clone() };
        assert_eq!(JobCount::load(directory.path(), &later).jobs, 3);
        assert!(JobCount::load(directory.path(), &later).began > count.began, "a boot starts a new age");
        let other = Identity { instance: "i-2".into(), ..identity };
        assert_eq!(JobCount::load(directory.path(), &other).jobs, 0);
    }

    #[test]
    fn a_job_in_the_journal_is_counted() {
        let directory = tempfile::tempdir().expect("a directory");
        let identity = record().identity;
        let mut count = JobCount::load(directory.path(), &identity);
        count.jobs = 3;
        count.save(directory.path()).expect("save the record");
        let slot = SlotDirectory::new(directory.path(), 0);
        slot.begin(&Record { number: 4, ..record() }).expect("an agent that dies before it counts the job");
        assert_eq!(JobCount::load(directory.path(), &identity).jobs, 4);
        let other = Identity { instance: "i-2".into(), ..identity.clone() };
        assert_eq!(JobCount::load(directory.path(), &other).jobs, 0);
        slot.discard().expect("discard the slot");
        assert_eq!(JobCount::load(directory.path(), &identity).jobs, 3);
    }
}
