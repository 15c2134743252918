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
    /// When it registered.
    pub registered: SystemTime,
    /// Its version.
    pub version: String,
    /// Jobs that it runs at once.
    pub capacity: u32,
    /// Jobs that it accepted since it registered.
    pub builds: u32,
    /// Its jobs.
    pub jobs: Vec<JobView>,
    /// When the manager last heard from it.
    pub last_heard: Instant,
}

/// What an agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    /// It has no job and no offer.
    Idle {
        /// Since when.
        since: Instant,
    },
    /// It has a job or an offer.
    Busy,
    /// The manager told it to leave, or it said that it leaves.
    Leaving,
}

/// A job of an agent.
#[derive(Clone, Debug)]
pub struct JobView {
    /// Its number in GitLab.
    pub id: String,
    /// The project: its name, or its URL where GitLab does not send a name.
    pub project_url_or_name: String,
    /// Its page in GitLab; empty if unknown.
    pub link: String,
    /// When the agent accepted it.
    pub since: SystemTime,
    /// Where it is: `accepted`, `preparing`, `script`, `finishing`.
    pub phase: &'static str,
}

/// A pool's workload; implemented by the broker.
pub trait Workload: Send + Sync {
    /// Jobs and agents now.
    fn snapshot(&self) -> Snapshot;

    /// Tells an idle agent to leave. False: it has a job or an offer by now (decided under the broker's lock).
    fn dismiss(&self, instance: &str, reason: &str) -> bool;

    /// The instance is gone for certain (the cloud says terminated): its jobs fail, its offers are made again.
    fn lost(&self, instance: &str);

    /// How many jobs the broker may take beyond what idle agents can start at once (hold-ahead). 0: relay only.
    fn set_hold_budget(&self, jobs: u32);

    /// Blocks until something changed since the last call, at most `timeout`.
    fn wait_for_change(&self, timeout: Duration);

    /// Makes [`Workload::wait_for_change`] return now.
    fn wake(&self);

    /// The instances that may register: members of the pool's group that run.
    fn set_members(&self, members: &[String]);
}
