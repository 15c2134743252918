//! The jobs and agents of a pool as the scaler and the status page see them.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use super::agents::Agent;
use super::job::Phase;
use super::state::PoolState;
use crate::manager::workload::{AgentJob, AgentState, AgentView, RemainingJobs, Snapshot};

impl PoolState {
    /// Jobs and agents, for the scaler.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut jobs: HashMap<&str, Vec<AgentJob>> = HashMap::new();
        let mut busy: HashSet<&str> = HashSet::new();
        for (id, job) in &self.jobs {
            busy.extend(job.phase.instance());
            match &job.phase {
                Phase::Held | Phase::Offered(_) => snapshot.held += 1,
                Phase::Accepting(_) => snapshot.running += 1,
                Phase::Running { by, stage, .. } => {
                    snapshot.running += 1;
                    jobs.entry(&by.instance).or_default().push(AgentJob {
                        id: id.clone(),
                        project_url_or_name: job.project.clone(),
                        link: job.link.clone(),
                        since: SystemTime::UNIX_EPOCH + Duration::from_secs(by.at),
                        phase: stage,
                    });
                }
                Phase::Failing { .. } => {}
            }
        }
        snapshot.agents = self
            .agents
            .iter()
            .map(|agent| AgentView {
                instance: agent.record.instance.clone(),
                state: state_of(agent, busy.contains(agent.record.instance.as_str())),
                registered: SystemTime::UNIX_EPOCH + Duration::from_secs(agent.record.registered),
                version: agent.record.version.clone(),
                capacity: agent.record.capacity,
                builds: agent.record.builds,
                jobs: jobs.remove(agent.record.instance.as_str()).unwrap_or_default(),
                last_heard: agent.last_heard,
            })
            .collect();
        snapshot
    }
}

/// The state of an agent. `has_job` is true if the agent has a job or an offer.
fn state_of(agent: &Agent, has_job: bool) -> AgentState {
    match (&agent.leave, has_job) {
        (Some(_), true) => AgentState::Leaving(RemainingJobs::Known),
        (Some(_), false) if agent.drains => AgentState::Leaving(RemainingJobs::Possible),
        (Some(_), false) => AgentState::Leaving(RemainingJobs::None),
        (None, true) => AgentState::Busy,
        (None, false) => AgentState::Idle { since: agent.idle_since },
    }
}
