//! A job that a manager offers: it is in the journal before the agent accepts it, and nothing of it runs before the
//! manager has confirmed that.

use std::sync::Arc;
use std::time::Duration;

use super::server::Server;
use crate::coordinator::JobHandle;
use crate::coordinator::manager::ManagedJobs;
use crate::coordinator::manager::protocol::Offer;
use crate::coordinator::source::{AcceptOutcome, JobSource};
use crate::http::Backoff;
use crate::job::control::JobControl;
use crate::journal::OfferRecord;

/// Between two attempts to accept while the manager does not answer.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// An offered job.
#[derive(Clone)]
pub struct OfferedJob {
    /// The offer.
    pub offer: Offer,
    /// Who offers it.
    pub source: Arc<Server>,
    /// Its URL.
    pub manager: String,
    /// The jobs that the agent has from this manager.
    pub jobs: Arc<ManagedJobs>,
}

impl OfferedJob {
    /// Accepts the job, however long the manager takes to answer. False: the job is not ours, or was not accepted when
    /// the agent had to stop.
    pub fn accept(&self, job: &JobHandle, control: &JobControl) -> bool {
        let mut attempts = 0;
        loop {
            match self.source.accept(&job.id, &self.offer) {
                AcceptOutcome::Accepted => {
                    self.note_accepted(job);
                    return true;
                }
                AcceptOutcome::Void => {
                    log::info!("offer void; the job is not run job={}", job.id);
                    return false;
                }
                AcceptOutcome::Unsettled(why) => {
                    if attempts == 0 {
                        log::warn!("cannot accept the job; retrying job={} error={why}", job.id);
                    }
                }
            }
            control.wait(RETRY.at(attempts).mul_f64(0.5 + crate::random::fraction() / 2.0));
            attempts += 1;
            let requests = control.stop_requests();
            if requests.stops_job() || requests.evict.is_some() || requests.abandoned {
                log::warn!(
                    "the agent stops before it could accept the job; the manager offers it again job={}",
                    job.id
                );
                return false;
            }
        }
    }

    /// Has the manager hear of the job from now on.
    pub fn note_accepted(&self, job: &JobHandle) {
        self.jobs.add(job.id.to_string(), self.offer.offer.clone(), job.token.clone());
    }

    /// Has the manager hear that the job ended.
    pub fn note_ended(&self) {
        self.jobs.remove(&self.offer.offer);
    }

    /// Has the manager hear that the job, which cannot be run here, is failed by this agent. False: it is not ours.
    pub fn accept_to_fail(&self, job: &JobHandle) -> bool {
        let accepted = self.source.accept(&job.id, &self.offer) == AcceptOutcome::Accepted;
        if accepted {
            self.note_accepted(job);
        }
        accepted
    }

    /// What the journal keeps of it.
    pub fn record(&self) -> OfferRecord {
        OfferRecord { manager: self.manager.clone(), offer: self.offer.clone() }
    }
}
