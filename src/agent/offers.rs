//! Jobs that a manager offers. The agent writes such a job to the journal, accepts it at the manager, and runs it only
//! after the manager has confirmed that.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::server::RunnerServer;
use crate::backoff::Backoff;
use crate::coordinator::JobHandle;
use crate::coordinator::manager::ManagedJobs;
use crate::coordinator::manager::protocol::Offer;
use crate::coordinator::source::{AcceptOutcome, JobSource};
use crate::job::control::JobControl;
use crate::journal::{OfferRecord, SlotDirectory};
use crate::sys;

/// Interval of retries while the manager does not answer.
const ACCEPT_RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5)).with_jitter(0.5);

/// An offered job and its manager.
#[derive(Clone)]
pub struct OfferedJob {
    pub offer: Offer,
    /// The server that offers the job.
    pub source: Arc<RunnerServer>,
    /// URL of the manager.
    pub manager: String,
    /// The agent's jobs from this manager.
    pub jobs: Arc<ManagedJobs>,
}

impl OfferedJob {
    /// Accepts the job at the manager; retries until the manager answers. Returns false if another agent has the job,
    /// or if the agent stops before the manager answers.
    pub fn accept(&self, job: &JobHandle, control: &JobControl) -> bool {
        let mut attempts = 0;
        loop {
            match self.source.accept(&job.id, &self.offer) {
                AcceptOutcome::Accepted => {
                    self.note_accepted(job);
                    return true;
                }
                AcceptOutcome::Void => {
                    log::info!("the manager withdrew the offer; the job is not run job={}", job.id);
                    return false;
                }
                AcceptOutcome::Unsettled(why) => {
                    if attempts == 0 {
                        log::warn!("cannot accept the job; retrying job={} error={why}", job.id);
                    }
                }
            }
            control.wait(ACCEPT_RETRY.delay(attempts));
            attempts += 1;
            let requests = control.stop_requests();
            if requests.stops_job() || requests.eviction().is_some() || control.is_abandoned() {
                log::warn!(
                    "the agent stops before it could accept the job; the manager offers it again job={}",
                    job.id
                );
                return false;
            }
        }
    }

    /// Adds the accepted job to the heartbeats to the manager.
    pub fn note_accepted(&self, job: &JobHandle) {
        self.jobs.add(job.id.to_string(), self.offer.offer.clone(), job.token.clone());
    }

    /// Writes the manager's lines, which GitLab already has, to the job's log. The write is atomic: if the agent is
    /// killed, the file has all lines or does not exist. A file with some of the lines would differ from GitLab's log.
    /// Errors: the state directory cannot be written.
    pub fn begin_log(&self, directory: &SlotDirectory) -> io::Result<()> {
        match self.offer.trace.is_empty() {
            true => Ok(()),
            false => sys::replace_file(&directory.spool(), self.offer.trace.text.as_bytes()),
        }
    }

    /// Reports the end of the job to the manager.
    pub fn note_ended(&self) {
        self.jobs.remove(&self.offer.offer);
    }

    /// Accepts a job that cannot run on this machine, in order to fail it. Returns false if another agent has the job.
    pub fn accept_to_fail(&self, job: &JobHandle) -> bool {
        let accepted = self.source.accept(&job.id, &self.offer) == AcceptOutcome::Accepted;
        if accepted {
            self.note_accepted(job);
        }
        accepted
    }

    /// The record of the offer for the journal.
    pub fn record(&self) -> OfferRecord {
        OfferRecord { manager: self.manager.clone(), offer: self.offer.clone() }
    }
}
