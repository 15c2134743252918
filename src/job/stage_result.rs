//! The result of a stage.

use std::io;

use crate::failure::JobError;

/// Why a stage failed.
#[derive(Debug)]
pub enum StageError {
    /// The job fails, with this reason.
    Failed(JobError),
    /// The journal is not writable: the agent abandons the job.
    JournalUnusable(io::Error),
}

pub type StageResult<T = ()> = Result<T, StageError>;

impl From<JobError> for StageError {
    fn from(error: JobError) -> Self {
        Self::Failed(error)
    }
}

impl From<io::Error> for StageError {
    fn from(error: io::Error) -> Self {
        Self::JournalUnusable(error)
    }
}
