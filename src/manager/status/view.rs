//! The status of a manager as data, for the page, the JSON and the terminal.

use serde::{Deserialize, Serialize};

/// The status of a manager.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ManagerView {
    /// Always `manager`.
    pub kind: String,
    /// The version of the program.
    pub version: String,
    /// The time of the status (RFC 3339).
    pub time: String,
    /// The start of the manager (RFC 3339).
    pub started: String,
    /// The pools.
    pub pools: Vec<PoolView>,
}

/// The status of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolView {
    /// The name of the pool.
    pub name: String,
    /// The policy in force.
    pub policy: String,
    /// `relay` or `hold-ahead`.
    pub intake: String,
    /// The wanted number of instances.
    pub wanted: u32,
    /// The reason for that number.
    pub reason: String,
    /// The number of jobs that may be held in addition to those for idle agents.
    pub hold_budget: u32,
    /// The reason, if growth is stopped.
    pub stopped: Option<String>,
    /// Jobs that wait for an instance.
    pub held: u32,
    /// Jobs that run.
    pub running: u32,
    /// The group; `None` until it has been read.
    pub group: Option<GroupView>,
    /// The error of the last engine call, if it failed.
    pub engine_error: Option<String>,
    /// The instances.
    pub instances: Vec<InstanceView>,
    /// Decisions and events, the newest first.
    pub decisions: Vec<DecisionView>,
    /// The history of the last hours.
    pub history: HistoryView,
}

/// The status of a group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupView {
    /// The name of the group.
    pub name: String,
    /// The desired capacity.
    pub desired: u32,
    /// The minimum size.
    pub minimum: u32,
    /// The maximum size, if there is one.
    pub maximum: Option<u32>,
}

/// The status of an instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceView {
    /// The id of the instance.
    pub instance: String,
    /// `creating`, `starting`, `idle`, `busy`, `shutting_down`, `terminating`, `held`, `aside`, `missing`.
    pub state: String,
    /// The time since the manager first listed the instance.
    pub age_seconds: u64,
    /// The time since the last job; `None` while the agent has one.
    pub idle_seconds: Option<u64>,
    /// The version of the agent.
    pub version: String,
    /// The number of concurrent jobs.
    pub capacity: u32,
    /// The number of jobs that the agent has accepted.
    pub builds: u32,
    /// The time since the agent's last request.
    pub silent_seconds: Option<u64>,
    /// The jobs of the agent.
    pub jobs: Vec<JobView>,
}

/// The status of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// The id of the job in GitLab.
    pub id: String,
    /// The path of the project.
    pub project: String,
    /// The URL of the job's page in GitLab; empty if unknown.
    pub link: String,
    /// The time since the job started.
    pub seconds: u64,
    /// The phase of the job.
    pub phase: String,
}

/// A decision or an event.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DecisionView {
    /// The time of the event (RFC 3339).
    pub time: String,
    /// The event and its reason.
    pub text: String,
}

/// Jobs and instances over time, at equal intervals, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryView {
    /// The interval.
    pub interval_seconds: u64,
    /// The start of the last point, in seconds since the epoch.
    pub end: i64,
    /// Jobs that wait.
    pub waiting: Vec<u32>,
    /// Jobs that run.
    pub running: Vec<u32>,
    /// Instances without a job.
    pub idle: Vec<u32>,
    /// Instances with a job.
    pub busy: Vec<u32>,
}

/// Formats a duration: `45s`, `12m`, `3h 20m`, `2d 4h`.
pub fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if seconds < 60 => format!("{seconds}s"),
        () if minutes < 60 => format!("{minutes}m"),
        () if hours < 24 => format!("{hours}h {}m", minutes % 60),
        () => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_have_two_units_at_most() {
        let texts = [0, 59, 60, 3599, 3600, 86399, 90_000].map(super::duration);
        assert_eq!(texts, ["0s", "59s", "1m", "59m", "1h 0m", "23h 59m", "1d 1h"]);
    }
}
