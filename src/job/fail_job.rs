//! Fails jobs that this agent cannot run to their end.

use std::io;
use std::sync::Arc;

use super::context::RunnerContext;
use crate::coordinator::{JobHandle, JobState, TraceKind, TraceOutcome};
use crate::failure::FailureReason;
use crate::journal::SlotDirectory;
use crate::trace::colours::{RED, RESET};
use crate::trace::{Delivery, FilterSpec, ResultLine, SectionMarkers, Trace, UploadOptions, Uploader};

/// Ends the step that may still run, and removes everything that was created for the job. `name` is the job's name for
/// its containers.
pub fn stop_leftovers(context: &RunnerContext, directory: &SlotDirectory, name: String) {
    let progress = directory.load().map(|record| record.progress).unwrap_or_default();
    if let Some(step) = progress.step() {
        crate::shim::kill_step(&step.id, step.shim, &directory.status(&step.id), &step.cgroups);
    }
    let builds = progress.dirs.map(|dirs| dirs.builds);
    if let Some(clean_up) = context.executor.clean_up(context, name, builds.as_deref()) {
        clean_up(Box::new(|| {}));
    }
}

fn failure_text(why: &str) -> String {
    format!("Job failed (system failure): {why}")
}

/// Appends the reason of a failure to the job's log at GitLab without writing to this machine's disk, which may be
/// full.
pub fn send_reason(context: &RunnerContext, job: &JobHandle, why: &str) {
    let line = format!("{RED}ERROR: {}{RESET}\n", failure_text(why));
    let send = |start| context.coordinator.append_trace(job, start, line.as_bytes(), TraceKind::Normal).outcome;
    // GitLab already has a part of the log, which an earlier agent sent.
    if let TraceOutcome::Resync(size) = send(0) {
        send(size);
    }
}

/// Reports the job as failed, and appends the reason to its log. Fails if the state directory is not writable.
pub fn fail(context: &RunnerContext, directory: &SlotDirectory, job: &JobHandle, why: &str) -> io::Result<Delivery> {
    if !directory.spool().exists() {
        directory.create()?;
    }
    let spec = FilterSpec { limit: context.runner.output_limit, timestamps: true, ..FilterSpec::default() };
    let trace = Trace::open(&directory.spool(), &spec, SectionMarkers::Omitted)?;
    let before = trace.size();
    trace.write_result(None, &ResultLine::Failure(failure_text(why)));
    if trace.size() == before {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let options = UploadOptions {
        kind: TraceKind::Normal,
        offset: 0,
        final_report_attempts: context.runner.final_report_attempts,
    };
    let coordinator = Arc::clone(&context.coordinator);
    let uploader = Uploader::start(coordinator, job.clone(), &directory.spool(), options, Box::new(|_| {}))?;
    let delivery = uploader.finish(JobState::Failed { reason: FailureReason::RunnerSystemFailure, exit_code: None });
    directory.discard()?;
    Ok(delivery)
}
