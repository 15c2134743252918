//! The journal of a running job: its progress, written before each step that must not happen twice.

use std::io;

use super::{Progress, SlotDirectory};
use crate::job_id::JobId;

/// Returns how many bytes of the log GitLab has.
type Acknowledged = Box<dyn Fn() -> u64 + Send>;

/// Whether another process may resume a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumption {
    /// Another agent can resume it, so its progress is recorded.
    Possible,
    /// It ends with this process (a local run), so nothing reads a record.
    Never,
}

/// The journal of one job.
pub struct JobJournal {
    /// The directory of the slot, with the record, the log and the step results.
    pub directory: SlotDirectory,
    pub progress: Progress,
    job: JobId,
    resumption: Resumption,
    acknowledged: Acknowledged,
}

impl JobJournal {
    /// The journal of the job with this id. If it can be resumed, its record is in `directory`.
    pub fn new(
        directory: SlotDirectory,
        progress: Progress,
        job: JobId,
        resumption: Resumption,
        acknowledged: Acknowledged,
    ) -> Self {
        Self { directory, progress, job, resumption, acknowledged }
    }

    /// Writes the progress. Errors: the journal cannot be written. A full disk is logged, but is not an error.
    pub fn save(&mut self) -> io::Result<()> {
        if self.resumption == Resumption::Never {
            return Ok(());
        }
        self.progress.log.acknowledged = (self.acknowledged)();
        match self.directory.append_progress(&self.progress) {
            // A job that fills the disk must not lose its result; only a crash from here on would lose the progress.
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
