//! Accepts jobs, counts them, writes them to the journal, runs each in a thread, and passes stop requests to them.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::concurrent_ids::{ConcurrentIdPool, IdScope};
use super::fitness::FailureStreaks;
use super::offers::OfferedJob;
use super::pending_job::{JobStart, PendingJob, spawn_job_thread};
use super::slots::Permit;
use super::{AgentEvent, job_reports};
use crate::coordinator::JobHandle;
use crate::executor::ConcurrentIds;
use crate::instance::{Activity, Instance, JobDemand};
use crate::job::context::{RunnerContext, name_of};
use crate::job::control::JobControl;
use crate::job::fail_job;
use crate::job::run::{self, JobOutcome};
use crate::journal::{self, JobCount, OfferState, Predecessor, Progress, Record, SlotDirectory};
use crate::monitor::metrics;
use crate::payload::{self, Payload, Undecodable};
use crate::sync;
use crate::sys::BootTime;

/// A poll and its interval take less than this. A job that waited longer in the queue waited for an instance.
const SHORT_QUEUE_TIME: Duration = Duration::from_secs(10);

/// The jobs of this instance.
pub struct JobManager {
    state_dir: PathBuf,
    instance: Arc<dyn Instance>,
    events: Sender<AgentEvent>,
    failures: FailureStreaks,
    state: Mutex<State>,
}

struct State {
    count: JobCount,
    /// The controls of the running jobs, by slot: jobs of two GitLab servers may have the same id.
    controls: HashMap<usize, Arc<JobControl>>,
    concurrent_ids: ConcurrentIdPool,
    /// The reason of an eviction, which also applies to jobs that arrive later.
    evicted: Option<String>,
    /// The reason of an interruption, which also applies to jobs that arrive later.
    interrupted: Option<String>,
}

impl JobManager {
    /// Manages the jobs of an instance with this state directory.
    pub fn new(state: PathBuf, instance: Arc<dyn Instance>, count: JobCount, events: Sender<AgentEvent>) -> Arc<Self> {
        if let Err(error) = count.save(&state) {
            log::error!("cannot save the job count error={error}");
        }
        let inner = State {
            count,
            controls: HashMap::new(),
            concurrent_ids: ConcurrentIdPool::default(),
            evicted: None,
            interrupted: None,
        };
        Arc::new(Self {
            state_dir: state,
            instance,
            events,
            failures: FailureStreaks::default(),
            state: Mutex::new(inner),
        })
    }

    /// The system failures in a row.
    pub fn failures(&self) -> &FailureStreaks {
        &self.failures
    }

    /// Accepts a job that GitLab has assigned, and runs it or reports it as failed to GitLab. Returns false if the
    /// response has no job id or token: then the agent has not accepted a job.
    pub fn accept(
        self: &Arc<Self>,
        mut permit: Permit,
        context: RunnerContext,
        body: Vec<u8>,
        request_id: String,
        offered: Option<OfferedJob>,
    ) -> bool {
        let context = context.in_slot(permit.slot);
        let text = String::from_utf8_lossy(&body).into_owned();
        drop(body);
        let payload = match payload::decode(text.as_bytes()) {
            Ok(payload) => payload,
            Err(Undecodable { why, job: None }) => {
                log::error!(
                    "GitLab sent a job that cannot be decoded (no id or token); it cannot be reported runner={} error={why}",
                    context.runner.name
                );
                return false;
            }
            Err(Undecodable { why, job: Some(job) }) => {
                self.fail_received(
                    permit,
                    context,
                    job,
                    &format!("the payload of this job cannot be read: {why}"),
                    offered,
                );
                return true;
            }
        };
        let concurrent = self.lock().concurrent_ids.assign(&IdScope::of(&context, &payload), None);
        let record = Record {
            version: journal::VERSION,
            identity: context.identity.clone(),
            url: context.runner.url.clone(),
            tls: context.runner.tls.clone(),
            short_token: context.runner.token.short(),
            configuration: context.carried.to_string(),
            key: Some(context.runner.key()),
            payload: text,
            request_id,
            concurrent,
            began: BootTime::now(),
            number: self.count_job(),
            offer: offered.as_ref().map(|offered| Box::new(offered.record())),
            progress: Progress::default(),
        };
        // The journal is written first: if the agent lost the job, GitLab would wait an hour for it.
        let written = SlotDirectory::new(&self.state_dir, permit.slot).begin(&record);
        permit.begin_job();
        self.save_count();
        let queued = payload.job_info.time_in_queue_seconds;
        metrics::job_received(&context.runner_labels(), &payload.id, queued);
        log::info!("job received job={} runner={}", payload.id, context.runner.name);
        let waited = Duration::try_from_secs_f64(queued.unwrap_or(0.0));
        let had_to_wait = waited.is_ok_and(|waited| waited > SHORT_QUEUE_TIME);
        self.instance.job_taken(if had_to_wait { JobDemand::More } else { JobDemand::One });
        self.start(PendingJob { permit, context, record, payload, begin: JobStart::New(written), offered });
        true
    }

    /// Resumes a job from the journal.
    pub fn resume(
        self: &Arc<Self>,
        permit: Permit,
        context: RunnerContext,
        record: Record,
        payload: Payload,
        predecessor: Predecessor,
        offered: Option<OfferedJob>,
    ) {
        let context = context.in_slot(permit.slot);
        self.lock().concurrent_ids.assign(&IdScope::of(&context, &payload), Some(record.concurrent));
        metrics::job_resumed(&context.runner_labels(), &payload.id, record.began);
        log::info!("job resumed from journal job={} runner={}", payload.id, context.runner.name);
        self.start(PendingJob { permit, context, record, payload, begin: JobStart::Resumed(predecessor), offered });
    }

    /// Stops the scripts of all jobs, also of jobs that arrive later. The jobs still upload their artifacts.
    pub fn evict(&self, why: &str) {
        let mut inner = self.lock();
        inner.evicted = Some(why.to_owned());
        inner.controls.values().for_each(|control| control.evict(why));
    }

    /// Ends the effect of [`JobManager::evict`] on jobs that arrive later. Jobs that it stopped stay stopped.
    pub fn cancel_eviction(&self) {
        self.lock().evicted = None;
    }

    /// Stops all jobs, also jobs that arrive later.
    pub fn interrupt(&self, why: &str) {
        let mut inner = self.lock();
        inner.interrupted = Some(why.to_owned());
        inner.controls.values().for_each(|control| control.interrupt(why));
    }

    /// Stops waiting for the delivery of logs and states; the next agent delivers them.
    pub fn abandon_all(&self) {
        let controls: Vec<Arc<JobControl>> = self.lock().controls.values().cloned().collect();
        controls.iter().for_each(|control| control.abandon());
    }

    fn start(self: &Arc<Self>, task: PendingJob) {
        let control = match JobControl::new() {
            Ok(control) => Arc::new(control),
            Err(error) => {
                return self.fail_unstarted(task, &format!("the agent has no file descriptors left: {error}"));
            }
        };
        {
            let mut inner = self.lock();
            if let Some(why) = &inner.evicted {
                control.evict(why);
            }
            if let Some(why) = &inner.interrupted {
                control.interrupt(why);
            }
            inner.controls.insert(task.permit.slot, Arc::clone(&control));
            // Called under the lock: otherwise two threads could call it in the wrong order, and the last call would
            // not reflect the current state.
            self.instance.set_activity(Activity::Busy);
        }
        let jobs = Arc::clone(self);
        if let Err((task, error)) =
            spawn_job_thread(&task.payload.id.clone(), task, move |task| jobs.run_job(task, &control))
        {
            self.fail_unstarted(task, &format!("cannot create a thread for the job: {error}"));
        }
    }

    fn run_job(&self, task: PendingJob, control: &Arc<JobControl>) {
        let PendingJob { permit, context, mut record, payload, mut begin, offered } = task;
        let handle = payload.handle();
        let (ids, scope) = (record.concurrent, IdScope::of(&context, &payload));
        let directory = SlotDirectory::new(&self.state_dir, permit.slot);
        let (left, name) = (directory.clone(), name_of(&payload, record.began));
        if let Some(offered) = &offered
            && let Err(()) = self.take_over(offered, &mut record, &mut begin, &handle, &directory, control)
        {
            metrics::job_ended(&context.runner_labels(), &handle.id, "offer_void");
            return self.release(permit, ids, &scope);
        }
        // A panic in one job must neither end the agent nor leave the job unreported.
        let outcome = catch_unwind(AssertUnwindSafe(|| match begin {
            JobStart::New(written) => written.and_then(|()| run::run(&context, directory, record, payload, control)),
            JobStart::Resumed(predecessor) => run::resume(&context, directory, record, payload, control, predecessor),
        }));
        let trouble = match outcome {
            Ok(Ok(ended)) => {
                job_reports::outcome(&context.runner_labels(), &handle.id, &ended);
                if let JobOutcome::Reported { state, .. } = &ended {
                    self.failures.record(&context.runner_labels(), job_reports::is_system_failure(state));
                }
                None
            }
            Ok(Err(error)) => Some(format!("the agent cannot use its state directory: {error}")),
            Err(_) => Some(
                "the agent's thread for this job panicked (a bug in mayfly); the agent's log names the source line"
                    .to_owned(),
            ),
        };
        if let Some(why) = trouble {
            fail_job::stop_leftovers(&context, &left, name);
            job_reports::fail_with_log(&context, &left, &handle, &why);
            self.failures.record(&context.runner_labels(), true);
        }
        // If the record is still in the journal, the next agent must deliver the result, so this agent does not report
        // the end of the job to the manager.
        if let Some(offered) = offered.filter(|_| left.load().is_none()) {
            offered.note_ended();
        }
        self.release(permit, ids, &scope);
    }

    /// Accepts an offered job at the manager, before the job starts. Errors: this agent does not get the job; its files
    /// on this machine have been removed.
    fn take_over(
        &self,
        offered: &OfferedJob,
        record: &mut Record,
        begin: &mut JobStart,
        handle: &JobHandle,
        directory: &SlotDirectory,
        control: &JobControl,
    ) -> Result<(), ()> {
        let written = match begin {
            JobStart::New(written) => written.as_ref().map_or_else(|error| Err(error.to_string()), |()| Ok(())),
            JobStart::Resumed(_) => Ok(()),
        };
        if let Err(why) = &written {
            // The manager then offers the job to an agent whose disk is not full.
            log::error!("cannot write the journal; the offered job is not accepted job={} error={why}", handle.id);
        }
        let accepted = match record.progress.offer {
            OfferState::Accepted => {
                offered.note_accepted(handle);
                true
            }
            OfferState::Open => written.is_ok() && offered.accept(handle, control),
        };
        if !accepted {
            self.uncount_job();
            if let Err(error) = directory.discard() {
                log::error!("cannot remove the directory of a slot job={} error={error}", handle.id);
            }
            return Err(());
        }
        record.progress.offer = OfferState::Accepted;
        // The agent appends to the log that the manager has started.
        if !directory.spool().exists() {
            record.progress.log.acknowledged = offered.offer.trace.offset;
            if let Err(error) = offered.begin_log(directory) {
                *begin = JobStart::New(Err(error));
            }
        }
        Ok(())
    }

    /// Subtracts from the job count an offered job that this agent did not get.
    fn uncount_job(&self) {
        {
            let mut inner = self.lock();
            inner.count.jobs = inner.count.jobs.saturating_sub(1);
        }
        self.save_count();
    }

    /// Fails a job that was received but cannot run here.
    pub fn fail_received(
        self: &Arc<Self>,
        mut permit: Permit,
        context: RunnerContext,
        job: JobHandle,
        why: &str,
        offered: Option<OfferedJob>,
    ) {
        permit.begin_job();
        self.count_job();
        self.save_count();
        metrics::job_received(&context.runner_labels(), &job.id, None);
        self.fail_undecodable(permit, context, job, why, offered);
    }

    /// Fails a job that cannot start.
    fn fail_unstarted(&self, task: PendingJob, why: &str) {
        let name = name_of(&task.payload, task.record.began);
        let directory = SlotDirectory::new(&self.state_dir, task.permit.slot);
        fail_job::stop_leftovers(&task.context, &directory, name);
        match task.offered.is_some() && task.record.progress.offer == OfferState::Open {
            // The manager offers the job to another agent.
            true => log::error!("cannot start the offered job; it is not accepted job={} error={why}", task.payload.id),
            false => job_reports::fail(&task.context, &task.payload.handle(), why),
        }
        self.failures.record(&task.context.runner_labels(), true);
        if let Err(error) = directory.discard() {
            log::error!("cannot remove the directory of a slot job={} error={error}", task.payload.id);
        }
        if let Some(offered) = &task.offered {
            offered.note_ended();
        }
        self.release(task.permit, task.record.concurrent, &IdScope::of(&task.context, &task.payload));
    }

    /// Fails a job that cannot be decoded, because GitLab would wait an hour for it otherwise. The request is sent by
    /// its own thread, because GitLab may be slow.
    pub fn fail_undecodable(
        self: &Arc<Self>,
        permit: Permit,
        context: RunnerContext,
        job: JobHandle,
        why: &str,
        offered: Option<OfferedJob>,
    ) {
        let why = why.to_owned();
        let (jobs, message) = (Arc::clone(self), why.clone());
        let refused = spawn_job_thread(&job.id.clone(), (permit, context, job), move |(permit, context, job)| {
            let directory = SlotDirectory::new(&jobs.state_dir, permit.slot);
            if offered.as_ref().is_none_or(|offered| offered.accept_to_fail(&job)) {
                let begin = |offered: &OfferedJob| directory.create().and_then(|()| offered.begin_log(&directory));
                match offered.as_ref().map_or(Ok(()), begin) {
                    Ok(()) => job_reports::fail_with_log(&context, &directory, &job, &message),
                    Err(error) => {
                        let why = format!("{message}; its log cannot be written: {error}");
                        job_reports::fail(&context, &job, &why);
                    }
                }
            }
            if let Some(offered) = offered {
                offered.note_ended();
            }
            drop(permit);
            let _ = jobs.events.send(AgentEvent::Changed);
        });
        if let Err(((_permit, context, job), error)) = refused {
            job_reports::fail(&context, &job, &format!("{why}; no thread can be created to report it: {error}"));
        }
    }

    /// Counts a job. Returns the new count.
    fn count_job(&self) -> u32 {
        let mut inner = self.lock();
        inner.count.jobs += 1;
        inner.count.jobs
    }

    fn save_count(&self) {
        if let Err(error) = self.lock().count.save(&self.state_dir) {
            log::error!("cannot save the job count error={error}");
        }
    }

    /// Releases the slot of a job that has ended. The permit is dropped last, because the next job in the slot
    /// registers its own control.
    fn release(&self, permit: Permit, ids: ConcurrentIds, scope: &IdScope) {
        {
            let mut inner = self.lock();
            inner.controls.remove(&permit.slot);
            if inner.controls.is_empty() {
                self.instance.set_activity(Activity::Idle);
            }
            inner.concurrent_ids.release(scope, ids);
        }
        drop(permit);
        let _ = self.events.send(AgentEvent::Changed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }
}

/// Creates the state directory. Errors: it cannot be created or written.
pub fn prepare_state(state: &std::path::Path) -> io::Result<()> {
    crate::executor::roots::make(state, None, 0o700)
}
