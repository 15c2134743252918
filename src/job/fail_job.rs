//! Fails jobs that this agent cannot run to their end.

use std::io;
use std::sync::Arc;

use super::context::RunnerContext;
use crate::coordinator::{JobHandle, JobState};
use crate::failure::FailureReason;
use crate::journal::SlotDirectory;
use crate::trace::{Delivery, FilterSpec, Trace, UploadOptions, Uploader};

/// Ends the step that may still run, and removes everything that was created for the job. `name` is the job's name for
/// its containers.
pub fn stop_leftovers(context: &RunnerContext, directory: &SlotDirectory, name: String) {
    let progress = directory.load().map(|record| record.progress).unwrap_or_default();
    if let Some(step) = progress.step {
        crate::shim::sweep(&step.id, &step.cgroups);
    }
    let builds = progress.dirs.map(|place| place.builds);
    if let Some(clean_up) = context.executor.clean_up(context, name, builds.as_deref()) {
        clean_up();
    }
}

/// Reports the job as failed, and appends the reason to its log. Fails if the state directory is not writable.
pub fn fail(context: &RunnerContext, directory: &SlotDirectory, job: &JobHandle, why: &str) -> io::Result<Delivery> {
    if !directory.spool().exists() {
        directory.create()?;
    }
    let spec = FilterSpec { limit: context.runner.output_limit, timestamps: true, ..FilterSpec::default() };
    let trace = Trace::open(&directory.spool(), &spec, false)?;
    trace.conclude(None, false, &format!("Job failed (system failure): {why}"));
    let options = UploadOptions { debug_trace: false, offset: 0, final_tries: context.runner.final_tries };
    let coordinator = Arc::clone(&context.coordinator);
    let uploader = Uploader::start(coordinator, job.clone(), &directory.spool(), options, Box::new(|_| {}))?;
    let delivery = uploader.finish(JobState::Failed { reason: FailureReason::RunnerSystemFailure, exit_code: None });
    directory.discard()?;
    Ok(delivery)
}
