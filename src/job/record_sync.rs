//! Syncs the record of a new job to the disk, shortly after the job has started.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::journal::SlotDirectory;
use crate::sync;

/// The delay before the sync. fsync blocks other file creation on ext4, and a job that has just started creates many
/// files.
const SYNC_DELAY: Duration = Duration::from_millis(100);

/// Syncs the record after the delay, unless the job ends sooner and drops the result.
pub fn start(directory: &SlotDirectory) -> Sender<()> {
    let directory = directory.clone();
    let (job, ended) = mpsc::channel();
    let started = sync::spawn("sync", 64 * 1024, move || {
        if ended.recv_timeout(SYNC_DELAY) == Err(RecvTimeoutError::Timeout) {
            // The job may have ended, and its record been removed, before the sync.
            let _ = directory.sync();
        }
    });
    if let Err(error) = started {
        log::warn!("cannot start the thread that syncs the journal error={error}");
    }
    job
}
