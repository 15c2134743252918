//! Accepts a job from a poll or from the journal: decodes it, writes it to the journal, and starts its thread. A job
//! that cannot run is reported as failed, because GitLab would wait an hour for it otherwise.

use std::sync::Arc;
use std::time::Duration;

use super::concurrent_ids::IdScope;
use super::job_thread::{JobStart, PendingJob, spawn_job_thread};
use super::{JobManager, reports};
use crate::agent::AgentEvent;
use crate::agent::offers::OfferedJob;
use crate::agent::slots::{Permit, RequestOutcome};
use crate::coordinator::JobHandle;
use crate::instance::JobDemand;
use crate::job::context::RunnerContext;
use crate::journal::{self, Predecessor, Progress, Record, SlotDirectory};
use crate::monitor::metrics;
use crate::payload::{self, Payload, Undecodable};
use crate::sys::BootTime;

/// A poll and its interval take less than this. A job that waited longer in the queue waited for an instance.
const SHORT_QUEUE_TIME: Duration = Duration::from_secs(10);

impl JobManager {
    /// Accepts a job that GitLab has assigned, and runs it or reports it as failed to GitLab. If the response has no
    /// job id or token, the agent has not accepted a job.
    pub fn accept(
        self: &Arc<Self>,
        mut permit: Permit,
        context: RunnerContext,
        body: Vec<u8>,
        request_id: String,
        offered: Option<OfferedJob>,
    ) -> RequestOutcome {
        let context = context.in_slot(permit.slot);
        let text = String::from_utf8_lossy(&body).into_owned();
        drop(body);
        let payload = match payload::decode(text.as_bytes()) {
            Ok(payload) => payload,
            Err(undecodable) => return self.reject(permit, context, undecodable, offered),
        };
        let record = self.new_record(&context, &payload, text, request_id, offered.as_ref());
        // The journal is written first: if the agent lost the job, GitLab would wait an hour for it.
        let written = SlotDirectory::new(&self.state_dir, permit.slot).begin(&record);
        permit.begin_job();
        self.save_count();
        let queued = payload.job_info.time_in_queue_seconds;
        metrics::job_received(&context.runner_labels(), &payload.id, queued);
        log::info!("job received job={} runner={}", payload.id, context.runner.name);
        self.instance.job_taken(demand(queued));
        self.start(PendingJob { permit, context, record, payload, begin: JobStart::New(written), offered });
        RequestOutcome::Job
    }

    /// Reports a job whose payload cannot be decoded as failed, if its id and token were found.
    fn reject(
        self: &Arc<Self>,
        permit: Permit,
        context: RunnerContext,
        undecodable: Undecodable,
        offered: Option<OfferedJob>,
    ) -> RequestOutcome {
        let Undecodable { why, job } = undecodable;
        let Some(job) = job else {
            log::error!(
                "GitLab sent a job that cannot be decoded (no id or token); it cannot be reported runner={} error={why}",
                context.runner.name
            );
            return RequestOutcome::NoJob;
        };
        self.fail_received(permit, context, job, &format!("the payload of this job cannot be read: {why}"), offered);
        RequestOutcome::Job
    }

    /// The record of a new job. Counts the job.
    fn new_record(
        &self,
        context: &RunnerContext,
        payload: &Payload,
        text: String,
        request_id: String,
        offered: Option<&OfferedJob>,
    ) -> Record {
        let concurrent = self.lock().concurrent_ids.assign(&IdScope::new(context, payload), None);
        Record {
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
            offer: offered.map(|offered| Box::new(offered.record())),
            progress: Progress::default(),
        }
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
        self.lock().concurrent_ids.assign(&IdScope::new(&context, &payload), Some(record.concurrent));
        metrics::job_resumed(&context.runner_labels(), &payload.id, record.began);
        log::info!("job resumed from journal job={} runner={}", payload.id, context.runner.name);
        self.start(PendingJob { permit, context, record, payload, begin: JobStart::Resumed(predecessor), offered });
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

    /// Fails a job that cannot be decoded. The request is sent by its own thread, because GitLab may be slow.
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
                    Ok(()) => reports::fail_with_log(&context, &directory, &job, &message),
                    Err(error) => {
                        let why = format!("{message}; its log cannot be written: {error}");
                        reports::fail(&context, &job, &why);
                    }
                }
            }
            if let Some(offered) = offered {
                offered.note_ended();
            }
            drop(permit);
            let _ = jobs.events.send(AgentEvent::Recheck);
        });
        if let Err(((_permit, context, job), error)) = refused {
            reports::fail(&context, &job, &format!("{why}; no thread can be created to report it: {error}"));
        }
    }
}

/// Whether the fleet needs more instances, by the seconds that a job was queued.
fn demand(queued: Option<f64>) -> JobDemand {
    let queued = Duration::try_from_secs_f64(queued.unwrap_or(0.0));
    match queued.is_ok_and(|queued| queued > SHORT_QUEUE_TIME) {
        true => JobDemand::More,
        false => JobDemand::One,
    }
}
