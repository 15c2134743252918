//! The interface between a pool's scaler and its broker: the jobs and agents of the pool, and the orders to agents.

use std::time::{Duration, Instant, SystemTime};

/// A pool's jobs and agents at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Jobs that the manager holds: taken from GitLab, accepted by no agent yet.
    pub held: u32,
    /// Jobs that agents accepted and that have not ended.
    pub running: u32,
    /// Agents that are registered.
    pub agents: Vec<AgentView>,
}

/// One agent.
#[derive(Clone, Debug)]
pub struct AgentView {
    /// The instance id.
    pub instance: String,
    /// The activity of the agent.
    pub state: AgentState,
    /// The time of the registration.
    pub registered: SystemTime,
    /// The version of the agent.
    pub version: String,
    /// The number of concurrent jobs.
    pub capacity: u32,
    /// The number of jobs that the agent has accepted since its registration.
    pub builds: u32,
    /// The jobs of the agent.
    pub jobs: Vec<AgentJob>,
    /// The time of the agent's last request.
    pub last_heard: Instant,
}

/// The activity of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    /// The agent has no job and no offer.
    Idle {
        /// The time since which it has had none.
        since: Instant,
    },
    /// The agent has a job or an offer.
    Busy,
    /// The manager ordered the agent to leave, or the agent reported that it leaves.
    Leaving(RemainingJobs),
}

/// The jobs that an agent finishes before it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemainingJobs {
    /// The agent has a job or an offer of this manager.
    Known,
    /// The agent reports that it leaves. It may have jobs of other servers.
    Possible,
    None,
}

impl AgentState {
    /// Whether the agent may have a job, so that its instance must not be terminated.
    pub fn may_have_job(self) -> bool {
        match self {
            Self::Busy | Self::Leaving(RemainingJobs::Known | RemainingJobs::Possible) => true,
            Self::Idle { .. } | Self::Leaving(RemainingJobs::None) => false,
        }
    }
}

/// A job of an agent.
#[derive(Clone, Debug)]
pub struct AgentJob {
    /// The id of the job in GitLab.
    pub id: String,
    /// The name of the project, or its URL if GitLab sends no name.
    pub project_url_or_name: String,
    /// The URL of the job's page in GitLab; empty if unknown.
    pub link: String,
    /// The time at which the agent accepted the job.
    pub since: SystemTime,
    /// The phase of the job: `accepted`, `preparing`, `script`, `finishing`.
    pub phase: &'static str,
}

/// A pool's workload; implemented by the broker.
pub trait Workload: Send + Sync {
    /// Jobs and agents now.
    fn snapshot(&self) -> Snapshot;

    /// Orders an idle agent to leave. Returns false if the agent has got a job or an offer meanwhile (checked under the
    /// broker's lock).
    fn dismiss(&self, instance: &str, reason: &str) -> bool;

    /// Closes an instance before it is terminated: it gets no more jobs, and cannot register. Returns false if its agent
    /// has a job or an offer, or has sent a request after `decided_at` (checked under the broker's lock): then the
    /// decision to terminate the instance is obsolete.
    fn close_instance(&self, instance: &str, reason: &str, decided_at: Instant) -> bool;

    /// Called when the cloud reports that the instance is terminated: its jobs fail, and its offers are withdrawn.
    fn lost(&self, instance: &str);

    /// Sets the number of jobs that the broker may hold in addition to those for idle agents (hold-ahead); 0 for none.
    fn set_hold_budget(&self, jobs: u32);

    /// Blocks until the workload has changed since the last call, at most for `timeout`.
    fn wait_for_change(&self, timeout: Duration);

    /// Makes [`Workload::wait_for_change`] return now.
    fn wake(&self);

    /// Sets the instances that may register: the running members of the pool's group.
    fn set_members(&self, members: &[String]);
}
