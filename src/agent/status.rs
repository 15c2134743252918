//! The status of an agent as JSON: `/status` at `listen_address`, and `mayfly status`.

use serde::{Deserialize, Serialize};

/// The status of an agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The kind of process: `agent`.
    pub kind: String,
    /// Version of the program.
    pub version: String,
    /// The system id of the agent.
    pub system_id: String,
    /// `working`, or the phase of the shutdown.
    pub phase: String,
    /// The reason of the shutdown.
    pub reason: Option<String>,
    /// Why the machine is unfit, by runner.
    pub unfit: Vec<String>,
    /// Maximum number of concurrent jobs.
    pub concurrent: u32,
    /// Jobs that the agent may still take; `None` for no limit.
    pub builds_left: Option<u32>,
    /// Idle time; `None` while a job runs.
    pub idle_seconds: Option<u64>,
    /// The current idle timeout.
    pub idle_timeout_seconds: Option<u64>,
    /// Time until the idle timeout; `None` while a job runs or without an idle timeout.
    pub idle_left_seconds: Option<u64>,
    /// The period of each runner that determines the idle timeout.
    pub policies: Vec<String>,
    /// The running jobs.
    pub jobs: Vec<RunningJob>,
}

/// A running job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunningJob {
    /// Id of the job.
    pub id: String,
    /// Name of the runner.
    pub runner: String,
    /// Time since the job started.
    pub seconds: u64,
    /// The current stage; empty before the first one.
    pub stage: String,
    /// Time since the stage started.
    pub stage_seconds: u64,
}
