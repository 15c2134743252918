//! The thread of a job: accepts the job at its manager if a manager offered it, runs the job, reports its end, and
//! releases its slot.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};

use super::concurrent_ids::IdScope;
use super::{JobManager, reports};
use crate::agent::offers::OfferedJob;
use crate::agent::slots::Permit;
use crate::coordinator::JobHandle;
use crate::job::context::{RunnerContext, job_name};
use crate::job::control::JobControl;
use crate::job::fail_job;
use crate::job::run::{self, JobOutcome};
use crate::job_id::JobId;
use crate::journal::{OfferState, Predecessor, Record, SlotDirectory};
use crate::monitor::metrics;
use crate::payload::Payload;
use crate::sync;

/// The stack size of a job's thread in bytes: large enough to parse large payloads.
const JOB_STACK: usize = 1 << 20;

/// A job with everything that its thread needs.
pub(super) struct PendingJob {
    pub permit: Permit,
    pub context: RunnerContext,
    pub record: Record,
    pub payload: Payload,
    pub begin: JobStart,
    /// Set for a job that a manager offers.
    pub offered: Option<OfferedJob>,
}

/// How a job begins in this agent.
pub(super) enum JobStart {
    /// The job is new; the result of writing it to the journal.
    New(io::Result<()>),
    /// The job was found in the journal.
    Resumed(Predecessor),
}

/// Which agent has an offered job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobOwner {
    /// This agent: the manager has confirmed that.
    ThisAgent,
    /// Another agent, or still the manager.
    Other,
}

impl JobManager {
    /// Starts the thread of a job.
    pub(super) fn start(self: &Arc<Self>, job: PendingJob) {
        let control = match JobControl::new() {
            Ok(control) => Arc::new(control),
            Err(error) => {
                return self.fail_unstarted(job, &format!("the agent has no file descriptors left: {error}"));
            }
        };
        self.register(job.permit.slot, &control);
        let jobs = Arc::clone(self);
        if let Err((job, error)) =
            spawn_job_thread(&job.payload.id.clone(), job, move |job| jobs.run_job(job, &control))
        {
            self.fail_unstarted(job, &format!("cannot create a thread for the job: {error}"));
        }
    }

    fn run_job(&self, job: PendingJob, control: &Arc<JobControl>) {
        let PendingJob { permit, context, mut record, payload, mut begin, offered } = job;
        let handle = payload.handle();
        let (ids, scope) = (record.concurrent, IdScope::new(&context, &payload));
        let directory = SlotDirectory::new(&self.state_dir, permit.slot);
        if let Some(offered) = &offered
            && self.claim(offered, &mut record, &mut begin, &handle, &directory, control) == JobOwner::Other
        {
            metrics::job_ended(&context.runner_labels(), &handle.id, "offer_void");
            return self.release(permit, ids, &scope);
        }
        let (slot_directory, name) = (directory.clone(), job_name(&payload, record.began));
        // A panic in one job must neither end the agent nor leave the job unreported.
        let ended = catch_unwind(AssertUnwindSafe(|| match begin {
            JobStart::New(written) => written.and_then(|()| run::run(&context, directory, record, payload, control)),
            JobStart::Resumed(predecessor) => run::resume(&context, directory, record, payload, control, predecessor),
        }));
        match ended {
            Ok(Ok(outcome)) => self.report(&context, &handle.id, &outcome),
            Ok(Err(error)) => {
                let why = format!("the agent cannot use its state directory: {error}");
                self.fail_aborted(&context, &handle, &slot_directory, name, &why);
            }
            Err(_) => {
                let why = "the agent's thread for this job panicked (a bug in mayfly); the agent's log names the source \
                           line";
                self.fail_aborted(&context, &handle, &slot_directory, name, why);
            }
        }
        // If the record is still in the journal, the next agent must deliver the result, so this agent does not report
        // the end of the job to the manager.
        if let Some(offered) = offered.filter(|_| slot_directory.load().is_none()) {
            offered.note_ended();
        }
        self.release(permit, ids, &scope);
    }

    /// Accepts an offered job at the manager, before the job starts. If this agent does not get the job, removes the
    /// job's files.
    fn claim(
        &self,
        offered: &OfferedJob,
        record: &mut Record,
        begin: &mut JobStart,
        job: &JobHandle,
        directory: &SlotDirectory,
        control: &JobControl,
    ) -> JobOwner {
        let is_ours = match (record.progress.offer, &*begin) {
            (OfferState::Accepted, _) => {
                offered.note_accepted(job);
                true
            }
            (OfferState::Open, JobStart::New(Err(error))) => {
                // The manager then offers the job to an agent whose disk is not full.
                log::error!("cannot write the journal; the offered job is not accepted job={} error={error}", job.id);
                false
            }
            (OfferState::Open, JobStart::New(Ok(())) | JobStart::Resumed(_)) => offered.accept(job, control),
        };
        if !is_ours {
            self.uncount_job();
            discard(directory, &job.id);
            return JobOwner::Other;
        }
        record.progress.offer = OfferState::Accepted;
        // The agent appends to the log that the manager has started.
        if !directory.spool().exists() {
            record.progress.log.acknowledged = offered.offer.trace.offset;
            if let Err(error) = offered.begin_log(directory) {
                *begin = JobStart::New(Err(error));
            }
        }
        JobOwner::ThisAgent
    }

    /// Logs and counts the end of a job.
    fn report(&self, context: &RunnerContext, job: &JobId, outcome: &JobOutcome) {
        reports::outcome(&context.runner_labels(), job, outcome);
        if let JobOutcome::Reported { state, .. } = outcome {
            let runner = context.runner_labels();
            match reports::is_system_failure(state) {
                true => self.failures.record_failure(&runner),
                false => self.failures.end_streak(&runner),
            }
        }
    }

    /// Fails a job whose thread could not run it to its end.
    fn fail_aborted(
        &self,
        context: &RunnerContext,
        job: &JobHandle,
        directory: &SlotDirectory,
        name: String,
        why: &str,
    ) {
        fail_job::stop_leftovers(context, directory, name);
        reports::fail_with_log(context, directory, job, why);
        self.failures.record_failure(&context.runner_labels());
    }

    /// Fails a job that cannot start.
    fn fail_unstarted(&self, job: PendingJob, why: &str) {
        let PendingJob { permit, context, record, payload, offered, .. } = job;
        let directory = SlotDirectory::new(&self.state_dir, permit.slot);
        fail_job::stop_leftovers(&context, &directory, job_name(&payload, record.began));
        match offered.is_some() && record.progress.offer == OfferState::Open {
            // The manager offers the job to another agent.
            true => log::error!("cannot start the offered job; it is not accepted job={} error={why}", payload.id),
            false => reports::fail(&context, &payload.handle(), why),
        }
        self.failures.record_failure(&context.runner_labels());
        discard(&directory, &payload.id);
        if let Some(offered) = &offered {
            offered.note_ended();
        }
        self.release(permit, record.concurrent, &IdScope::new(&context, &payload));
    }
}

/// Removes the directory of a slot whose job does not run.
fn discard(directory: &SlotDirectory, job: &JobId) {
    if let Err(error) = directory.discard() {
        log::error!("cannot remove the directory of a slot job={job} error={error}");
    }
}

/// Runs `work` with `load` in a job's thread. Errors: no thread can be created; the error contains `load`, which is
/// therefore sent through a channel.
pub(super) fn spawn_job_thread<T: Send + 'static>(
    job: &JobId,
    load: T,
    work: impl FnOnce(T) + Send + 'static,
) -> Result<(), (T, io::Error)> {
    let (sender, receiver) = mpsc::channel();
    if let Err(error) = sync::spawn(format!("job-{job}"), JOB_STACK, move || receiver.recv().map_or((), work)) {
        return Err((load, error));
    }
    // The thread waits for `load`, so the channel is open.
    let _ = sender.send(load);
    Ok(())
}
