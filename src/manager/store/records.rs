//! The records that must survive a crash of the manager.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A registered agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// The instance of the agent.
    pub instance: String,
    /// The boot id of the instance at the registration.
    pub boot: String,
    /// SHA-256 of the agent's token.
    pub token_hash: String,
    /// The version of the agent.
    pub version: String,
    /// The number of concurrent jobs.
    pub capacity: u32,
    /// The agent's own configuration sets the capacity, so a change of the manager's configuration does not.
    #[serde(default)]
    pub has_own_capacity: bool,
    /// The time of the registration, in seconds since the epoch.
    pub registered: u64,
    /// The number of jobs that the agent has accepted.
    pub builds: u32,
}

/// A job that was taken from GitLab and has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The id of the job in GitLab.
    pub id: String,
    /// The time at which the job was received, in seconds since the epoch.
    pub taken: u64,
    /// The token of the job, encrypted.
    pub token: String,
    /// The payload of the job, encrypted; `None` after an agent accepted it.
    pub payload: Option<String>,
    /// The project of the job, for display.
    pub project: String,
    /// The URL of the job's page, for display.
    pub link: String,
    /// The id of the request that returned the job.
    pub request_id: String,
    /// Whether the lines of the job's log begin with a time.
    #[serde(default)]
    pub timestamps: bool,
    /// The lines that the manager wrote to the job's log.
    #[serde(default)]
    pub trace: String,
    /// The number of bytes of the log that GitLab has acknowledged.
    #[serde(default)]
    pub trace_sent: u64,
    /// The agent that accepted the job.
    #[serde(default)]
    pub accepted: Option<Accepted>,
    /// The reason, if the manager must fail the job at GitLab.
    #[serde(default)]
    pub failed: Option<String>,
    /// The last line of the job's log, if the manager must fail the job.
    #[serde(default)]
    pub last_line: String,
}

/// The agent that accepted a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The id of the offer.
    pub offer: String,
    /// The instance of the agent.
    pub instance: String,
    /// The time of the acceptance, in seconds since the epoch.
    pub at: u64,
}

/// A change: one line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum StoreEvent {
    /// An agent registered, or its data changed.
    Agent { pool: String, agent: AgentRecord },
    /// An agent left or was lost.
    AgentGone { pool: String, instance: String },
    /// The manager received a job, or learned of one from an agent.
    Job { pool: String, job: Box<JobRecord> },
    /// The manager wrote into a job's log.
    Trace { pool: String, id: String, trace: String, sent: u64 },
    /// An agent accepted a job.
    Accepted { pool: String, id: String, by: Accepted },
    /// The manager must fail a job at GitLab.
    Failed { pool: String, id: String, why: String, line: String },
    /// A job ended, or no longer belongs to the manager.
    JobGone { pool: String, id: String },
}

/// The state after all changes, by pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Agents by pool and instance.
    pub agents: BTreeMap<(String, String), AgentRecord>,
    /// Jobs by pool and id.
    pub jobs: BTreeMap<(String, String), JobRecord>,
}

impl Records {
    /// Applies a change.
    pub fn apply(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Agent { pool, agent } => drop(self.agents.insert((pool, agent.instance.clone()), agent)),
            StoreEvent::AgentGone { pool, instance } => drop(self.agents.remove(&(pool, instance))),
            StoreEvent::Job { pool, job } => drop(self.jobs.insert((pool, job.id.clone()), *job)),
            StoreEvent::Trace { pool, id, trace, sent } => {
                self.change(pool, id, |job| (job.trace, job.trace_sent) = (trace, sent));
            }
            StoreEvent::Accepted { pool, id, by } => {
                if let Some(agent) = self.agents.get_mut(&(pool.clone(), by.instance.clone())) {
                    agent.builds += 1;
                }
                self.change(pool, id, |job| (job.payload, job.accepted) = (None, Some(by)));
            }
            StoreEvent::Failed { pool, id, why, line } => {
                self.change(pool, id, |job| (job.failed, job.last_line) = (Some(why), line));
            }
            StoreEvent::JobGone { pool, id } => drop(self.jobs.remove(&(pool, id))),
        }
    }

    fn change(&mut self, pool: String, id: String, change: impl FnOnce(&mut JobRecord)) {
        if let Some(job) = self.jobs.get_mut(&(pool, id)) {
            change(job);
        }
    }

    /// The changes that produce this state.
    pub fn events(&self) -> impl Iterator<Item = StoreEvent> + '_ {
        let agents =
            self.agents.iter().map(|((pool, _), agent)| StoreEvent::Agent { pool: pool.clone(), agent: agent.clone() });
        let jobs =
            self.jobs.iter().map(|((pool, _), job)| StoreEvent::Job { pool: pool.clone(), job: Box::new(job.clone()) });
        agents.chain(jobs)
    }
}
