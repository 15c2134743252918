//! The connection of a job to its server: announces the job, and starts the upload of its log.

use std::io;
use std::sync::Arc;

use super::context::Job;
use crate::coordinator::{JobState, JobStatus, TraceKind, TraceSummary};
use crate::journal::SlotDirectory;
use crate::trace::{UploadOptions, Uploader};

/// Whether the server assigns the job to this runner.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Assignment {
    Confirmed,
    /// The job was cancelled, or has timed out on the server.
    Withdrawn,
}

/// Announces that the job runs.
pub fn announce(job: &Job<'_>) -> Assignment {
    let reply = job.context.coordinator.update_job(&job.payload.handle(), &JobState::Running, TraceSummary::default());
    if reply.status == JobStatus::Finished {
        return Assignment::Withdrawn;
    }
    job.control.set_status(reply.status);
    Assignment::Confirmed
}

/// Starts the upload of the log, of which GitLab has acknowledged `acknowledged` bytes. The job's status on the server
/// becomes a stop request. Fails if the log cannot be opened or no thread can be started.
pub fn start_upload(job: &Job<'_>, directory: &SlotDirectory, acknowledged: u64) -> io::Result<Uploader> {
    let shows_variables = job.settings.debug || job.settings.debug_services;
    let options = UploadOptions {
        kind: if shows_variables { TraceKind::Debug } else { TraceKind::Normal },
        offset: acknowledged,
        final_report_attempts: job.context.runner.final_report_attempts,
    };
    let control = Arc::clone(&job.control);
    let uploader = Uploader::start(
        Arc::clone(&job.context.coordinator),
        job.payload.handle(),
        &directory.spool(),
        options,
        Box::new(move |status| control.set_status(status)),
    )?;
    job.control.on_abandon(Box::new(uploader.abandoner()));
    Ok(uploader)
}
