//! The input of the planner: the state of a pool at one moment.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::wanted::JobCounts;
use crate::manager::engine::Group;
use crate::manager::workload::{AgentState, AgentView, RemainingJobs, Snapshot};

/// The current time, by the monotonic clock and by the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The time since the planner started.
    pub elapsed: Duration,
    /// The wall clock, for policies.
    pub time: Timestamp,
}

/// The input of a decision.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The time of the observation.
    pub now: Now,
    /// The pool's jobs.
    pub jobs: JobCounts,
    /// The registered agents.
    pub agents: ObservedAgents,
    /// The group; `None` while the engine does not answer.
    pub group: Option<Group>,
}

/// Agents, indexed by instance, because a fleet may have a thousand of them.
#[derive(Clone, Debug, Default)]
pub struct ObservedAgents {
    all: Vec<ObservedAgent>,
    by_instance: HashMap<String, usize>,
}

/// The data of an agent that the pool's size depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedAgent {
    /// The instance of the agent.
    pub instance: String,
    /// The activity of the agent.
    pub activity: Activity,
    /// The number of jobs that the agent has accepted.
    pub builds: u32,
    /// The time since the agent's last request.
    pub silent_for: Duration,
}

/// The activity of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// The agent has had no job for this time.
    Idle(Duration),
    /// The agent has a job.
    Busy,
    /// The agent leaves.
    Leaving(RemainingJobs),
}

impl Observation {
    /// Creates the observation from the workload at `at`, which is the instant of `now`.
    pub fn new(now: Now, at: Instant, snapshot: &Snapshot, group: Option<Group>) -> Self {
        let agent = |view: &AgentView| ObservedAgent {
            instance: view.instance.clone(),
            activity: match view.state {
                AgentState::Idle { since } => Activity::Idle(at.saturating_duration_since(since)),
                AgentState::Busy => Activity::Busy,
                AgentState::Leaving(jobs) => Activity::Leaving(jobs),
            },
            builds: view.builds,
            silent_for: at.saturating_duration_since(view.last_heard),
        };
        Self {
            now,
            jobs: JobCounts { held: snapshot.held, running: snapshot.running },
            agents: snapshot.agents.iter().map(agent).collect::<Vec<ObservedAgent>>().into(),
            group,
        }
    }

    /// An agent by its instance.
    pub fn agent(&self, instance: &str) -> Option<&ObservedAgent> {
        self.agents.by_instance.get(instance).and_then(|index| self.agents.all.get(*index))
    }
}

impl From<Vec<ObservedAgent>> for ObservedAgents {
    fn from(all: Vec<ObservedAgent>) -> Self {
        let by_instance = all.iter().enumerate().map(|(index, agent)| (agent.instance.clone(), index)).collect();
        Self { all, by_instance }
    }
}

impl ObservedAgents {
    /// All agents.
    pub fn iter(&self) -> impl Iterator<Item = &ObservedAgent> {
        self.all.iter()
    }

    /// The number of agents.
    pub fn len(&self) -> usize {
        self.all.len()
    }
}
