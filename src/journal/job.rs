//! The journal of a job that runs: how far it is, written before each thing that must not happen twice.

use std::io;

use super::{Progress, SlotDirectory};

/// Tells how much of the log the server has.
type Acknowledged = Box<dyn Fn() -> u64 + Send>;

/// The journal of one job.
pub struct JobJournal {
    /// The slot's directory, with the job's record, log and outcomes of steps.
    pub directory: SlotDirectory,
    /// How far the job is.
    pub progress: Progress,
    job: i64,
    acknowledged: Acknowledged,
}

impl JobJournal {
    /// The journal of the job with this id, whose record is in `directory` already.
    pub fn new(directory: SlotDirectory, progress: Progress, job: i64, acknowledged: Acknowledged) -> Self {
        Self { directory, progress, job, acknowledged }
    }

    /// Writes how far the job is. Errors: the journal cannot be written, for another reason than a full disk.
    pub fn save(&mut self) -> io::Result<()> {
        self.progress.acknowledged = (self.acknowledged)();
        match self.directory.append_progress(&self.progress) {
            // A job that fills the disk must not lose its outcome for it: only a crash from here on would go unnoticed.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                log::error!(
                    "no space for the journal; the job continues without it, and a crash now would lose it job={} error={error}",
                    self.job
                );
                Ok(())
            }
            saved => saved,
        }
    }
}
