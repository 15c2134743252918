//! The status of an agent as data: `/status` at `listen_address`, and `mayfly status`.

use serde::{Deserialize, Serialize};

/// An agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// `agent`.
    pub kind: String,
    /// The version of the program.
    pub version: String,
    /// The system id by which GitLab or the manager knows the agent.
    pub system_id: String,
    /// The phase: `working`, or a phase of the shutdown.
    pub phase: String,
    /// Why the agent shuts down, if it does.
    pub reason: Option<String>,
    /// Why the machine cannot run jobs, by runner.
    pub unfit: Vec<String>,
    /// Jobs at once.
    pub concurrent: u32,
    /// Jobs that may still be taken before the instance shuts down; `None` for no limit.
    pub builds_left: Option<u32>,
    /// How long no job has been running; `None` while one is.
    pub idle_seconds: Option<u64>,
    /// The idle timeout in force; `None` for none.
    pub idle_timeout_seconds: Option<u64>,
    /// Until the instance may shut down as idle; `None` while a job runs or without an idle timeout.
    pub idle_left_seconds: Option<u64>,
    /// The period that decides the idle timeout, by runner.
    pub policies: Vec<String>,
    /// The running jobs.
    pub jobs: Vec<RunningJob>,
}

/// A running job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunningJob {
    /// Its number.
    pub id: String,
    /// The runner that took it.
    pub runner: String,
    /// How long it has been running.
    pub seconds: u64,
    /// The stage; empty before the first one.
    pub stage: String,
    /// How long the stage has been running.
    pub stage_seconds: u64,
}
