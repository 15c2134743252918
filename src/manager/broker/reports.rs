//! Processes the reports of agents about their jobs (heartbeats).

use std::time::Instant;

use super::job::{Phase, PoolJob};
use super::state::PoolState;
use crate::coordinator::manager::protocol::JobReport;

/// A job that is missing in this number of consecutive heartbeats of its agent no longer exists there.
const MAX_MISSING: u32 = 3;

/// The changes that a heartbeat causes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatChanges {
    /// Jobs that ended.
    pub ended: Vec<String>,
    /// Jobs that were unknown, because the manager has lost its state.
    pub adopted: Vec<String>,
    /// Jobs that the agent has accepted but no longer has.
    pub vanished: Vec<String>,
    /// Whether the heartbeat lacks jobs that do not count as vanished yet.
    pub lacks_jobs: bool,
    /// The reason, if the agent must leave.
    pub leave: Option<String>,
}

impl PoolState {
    /// Processes a heartbeat, which arrived at `now`.
    pub fn heartbeat(
        &mut self,
        instance: &str,
        reports: &[JobReport],
        ended: &[String],
        now: Instant,
    ) -> HeartbeatChanges {
        let mut changes = HeartbeatChanges::default();
        for id in ended {
            if self.jobs.get(id).is_some_and(|job| job.is_run_by(instance)) && !changes.ended.contains(id) {
                changes.ended.push(id.clone());
            }
        }
        self.process_reports(instance, reports, ended, &mut changes);
        self.find_missing_jobs(instance, reports, &mut changes);
        if let Some(agent) = self.agents.get_mut(instance) {
            agent.last_heard = now;
        }
        changes.leave = self.leave_reason(instance);
        changes
    }

    /// Processes the jobs that an agent reports to have.
    fn process_reports(
        &mut self,
        instance: &str,
        reports: &[JobReport],
        ended: &[String],
        changes: &mut HeartbeatChanges,
    ) {
        // The manager adopts no more jobs than the agent can run: additional ones would make the group grow without
        // need.
        let capacity = self.agents.get(instance).map_or(0, |agent| agent.record.capacity as usize);
        let mut jobs = self.jobs_of(instance).saturating_sub(changes.ended.len());
        for report in reports {
            match self.jobs.get_mut(&report.id) {
                Some(PoolJob { phase: Phase::Running { by, stage, missing }, .. }) if by.offer == report.offer => {
                    *stage = stage_of(&report.phase);
                    *missing = 0;
                }
                // The manager has lost the job and has not failed it yet.
                Some(PoolJob { phase: Phase::Failing { attempts: 0, .. }, payload: None, .. }) => {
                    changes.adopted.push(report.id.clone());
                }
                // The job is held again, or belongs to another agent: GitLab will reject this agent's requests for it.
                Some(_) => {}
                None if !ended.contains(&report.id) && jobs < capacity => {
                    jobs += 1;
                    changes.adopted.push(report.id.clone());
                }
                None => {}
            }
        }
    }

    /// Finds the jobs that an agent has accepted and does not report any more.
    fn find_missing_jobs(&mut self, instance: &str, reports: &[JobReport], changes: &mut HeartbeatChanges) {
        for (id, job) in &mut self.jobs {
            if let Phase::Running { by, missing, .. } = &mut job.phase
                && by.instance == instance
                && !reports.iter().any(|report| report.id == *id)
                && !changes.ended.contains(id)
            {
                *missing += 1;
                match *missing >= MAX_MISSING {
                    true => changes.vanished.push(id.clone()),
                    false => changes.lacks_jobs = true,
                }
            }
        }
    }
}

fn stage_of(phase: &str) -> &'static str {
    ["preparing", "script", "finishing"].into_iter().find(|known| *known == phase).unwrap_or("accepted")
}
