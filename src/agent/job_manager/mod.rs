//! The jobs of this instance: counts them, writes them to the journal, runs each in a thread, and passes stop requests
//! to them.
//!
//! `intake` accepts a job from a poll or from the journal, `job_thread` runs it, and this file has the state that all
//! jobs share.

mod concurrent_ids;
mod intake;
mod job_thread;
mod reports;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard};

use self::concurrent_ids::{ConcurrentIdPool, IdScope};
use super::AgentEvent;
use super::fitness::FailureStreaks;
use super::slots::Permit;
use crate::executor::ConcurrentIds;
use crate::executor::roots;
use crate::instance::{Activity, Instance};
use crate::job::control::JobControl;
use crate::journal::JobCount;
use crate::sync;

/// The jobs of this instance.
pub struct JobManager {
    state_dir: PathBuf,
    instance: Arc<dyn Instance>,
    events: Sender<AgentEvent>,
    failures: FailureStreaks,
    jobs: Mutex<RunningJobs>,
}

/// The running jobs, and the requests that apply to all of them.
struct RunningJobs {
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
    pub fn new(
        state_dir: PathBuf,
        instance: Arc<dyn Instance>,
        count: JobCount,
        events: Sender<AgentEvent>,
    ) -> Arc<Self> {
        if let Err(error) = count.save(&state_dir) {
            log::error!("cannot save the job count error={error}");
        }
        let jobs = RunningJobs {
            count,
            controls: HashMap::new(),
            concurrent_ids: ConcurrentIdPool::default(),
            evicted: None,
            interrupted: None,
        };
        Arc::new(Self { state_dir, instance, events, failures: FailureStreaks::default(), jobs: Mutex::new(jobs) })
    }

    /// The system failures in a row.
    pub fn failures(&self) -> &FailureStreaks {
        &self.failures
    }

    /// Stops the scripts of all jobs, also of jobs that arrive later. The jobs still upload their artifacts.
    pub fn evict(&self, why: &str) {
        let mut jobs = self.lock();
        jobs.evicted = Some(why.to_owned());
        jobs.controls.values().for_each(|control| control.evict(why));
    }

    /// Ends the effect of [`JobManager::evict`] on jobs that arrive later. Jobs that it stopped stay stopped.
    pub fn cancel_eviction(&self) {
        self.lock().evicted = None;
    }

    /// Stops all jobs, also jobs that arrive later.
    pub fn interrupt(&self, why: &str) {
        let mut jobs = self.lock();
        jobs.interrupted = Some(why.to_owned());
        jobs.controls.values().for_each(|control| control.interrupt(why));
    }

    /// Stops waiting for the delivery of logs and states; the next agent delivers them.
    pub fn abandon_all(&self) {
        let controls: Vec<Arc<JobControl>> = self.lock().controls.values().cloned().collect();
        controls.iter().for_each(|control| control.abandon());
    }

    /// Registers a job that starts, and marks the instance as busy.
    fn register(&self, slot: usize, control: &Arc<JobControl>) {
        let mut jobs = self.lock();
        if let Some(why) = &jobs.evicted {
            control.evict(why);
        }
        if let Some(why) = &jobs.interrupted {
            control.interrupt(why);
        }
        jobs.controls.insert(slot, Arc::clone(control));
        // Called under the lock: otherwise two threads could call it in the wrong order, and the last call would not
        // reflect the current state.
        self.instance.set_activity(Activity::Busy);
    }

    /// Releases the slot of a job that has ended. The permit is dropped last, because the next job in the slot
    /// registers its own control.
    fn release(&self, permit: Permit, ids: ConcurrentIds, scope: &IdScope) {
        {
            let mut jobs = self.lock();
            jobs.controls.remove(&permit.slot);
            if jobs.controls.is_empty() {
                self.instance.set_activity(Activity::Idle);
            }
            jobs.concurrent_ids.release(scope, ids);
        }
        drop(permit);
        let _ = self.events.send(AgentEvent::Recheck);
    }

    /// Counts a job. Returns the new count.
    fn count_job(&self) -> u32 {
        let mut jobs = self.lock();
        jobs.count.jobs += 1;
        jobs.count.jobs
    }

    /// Subtracts from the job count an offered job that this agent did not get.
    fn uncount_job(&self) {
        {
            let mut jobs = self.lock();
            jobs.count.jobs = jobs.count.jobs.saturating_sub(1);
        }
        self.save_count();
    }

    fn save_count(&self) {
        if let Err(error) = self.lock().count.save(&self.state_dir) {
            log::error!("cannot save the job count error={error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, RunningJobs> {
        sync::lock(&self.jobs)
    }
}

/// Creates the state directory. Errors: it cannot be created or written.
pub fn prepare_state(state_dir: &Path) -> io::Result<()> {
    roots::create(state_dir, None, 0o700)
}
