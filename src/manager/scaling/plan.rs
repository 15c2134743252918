//! The plan of a pool: the next steps of the scaler with their reasons, and messages for the operator.

use std::time::Duration;

use super::policy::Intake;
use super::wanted::WantedInstances;
use crate::instance::CapacityChange;

/// The next steps of the scaler, and their reasons.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScalingPlan {
    /// The number of instances that the pool needs.
    pub wanted: WantedInstances,
    /// The policy that applies.
    pub policy: String,
    /// The mode in which the pool polls for jobs.
    pub intake: Option<Intake>,
    /// The steps in order.
    pub steps: Vec<ScalingStep>,
    /// The number of jobs that may be held in addition to those for idle agents.
    pub hold_budget: u32,
    /// Messages for the operator.
    pub notes: Vec<Note>,
    /// The reason, if growth is stopped.
    pub stopped: Option<String>,
    /// The next decision is due after this time, even if nothing changes.
    pub next_decision_in: Option<Duration>,
    /// The boot times of instances that have just registered.
    pub boots: Vec<Duration>,
}

/// A step of the scaler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalingStep {
    /// The action.
    pub action: Action,
    /// The reason.
    pub reason: String,
}

/// An action on the group or on an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Set the desired capacity.
    SetDesiredCapacity {
        /// The previous desired capacity.
        from: u32,
        /// The new desired capacity.
        to: u32,
    },
    /// Order an idle agent to leave.
    Dismiss(String),
    /// Terminate an instance that has no agent.
    Terminate(String, CapacityChange),
}

/// A message for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// An expected change.
    Info(String),
    /// Something is wrong.
    Warning(String),
    /// The pool starts no more instances, with the cause.
    GrowthStopped(String),
}
