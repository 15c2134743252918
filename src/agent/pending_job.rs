//! A job between its acceptance and the start of its thread.

use std::io;
use std::sync::mpsc;

use super::offers::OfferedJob;
use super::slots::Permit;
use crate::job::context::RunnerContext;
use crate::journal::{Predecessor, Record};
use crate::payload::Payload;
use crate::payload::job_id::JobId;
use crate::sync;

/// Large enough to parse large payloads.
const JOB_STACK: usize = 1 << 20;

/// A job with everything that its thread needs.
pub struct PendingJob {
    pub permit: Permit,
    pub context: RunnerContext,
    pub record: Record,
    pub payload: Payload,
    pub begin: JobStart,
    /// Set for a job that a manager offers.
    pub offered: Option<OfferedJob>,
}

/// How a job begins in this agent.
pub enum JobStart {
    /// The job is new; the result of writing it to the journal.
    New(io::Result<()>),
    /// The job was found in the journal.
    Resumed(Predecessor),
}

/// Runs `work` with `load` in a job thread. Errors: no thread can be created; the error contains `load`.
pub fn spawn_job_thread<T: Send + 'static>(
    job: &JobId,
    load: T,
    work: impl FnOnce(T) + Send + 'static,
) -> Result<(), (T, io::Error)> {
    let (hand, given) = mpsc::channel();
    if let Err(error) = sync::spawn(format!("job-{job}"), JOB_STACK, move || given.recv().map_or((), work)) {
        return Err((load, error));
    }
    // The thread waits for `load`, so the channel is open.
    let _ = hand.send(load);
    Ok(())
}
