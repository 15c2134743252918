//! The engines that manage the instances of a pool: AWS Auto Scaling, or an operator's program.
//!
//! An engine lists instances, sets their number and terminates them. It makes no decisions and has no access to jobs.

mod aws;
mod command;

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use super::pool::EngineSettings;
use crate::instance::CapacityChange;

/// The instances of a pool, and their desired number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The group's name, or the program.
    pub name: String,
    /// The desired number of instances.
    pub desired: u32,
    /// The engine stores no desired number; `desired` is the number of members.
    pub desired_is_counted: bool,
    /// The minimum number of instances.
    pub min_size: u32,
    /// The maximum number of instances; `None` for no limit.
    pub max_size: Option<u32>,
    /// New instances are protected from scale-in, so the group does not choose instances to terminate when its desired
    /// capacity is lowered.
    pub protects_new: bool,
    /// The instances.
    pub members: Vec<Member>,
}

/// An instance of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The id of the instance.
    pub instance: String,
    /// The lifecycle state of the instance.
    pub state: MemberState,
    /// Whether the group considers the instance healthy.
    pub healthy: bool,
    /// Whether the instance is protected from scale-in.
    pub protected: bool,
    /// The state as the engine names it, for display.
    pub detail: String,
}

/// The lifecycle state of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// The instance is starting.
    Creating,
    /// The instance runs.
    Running,
    /// The instance is terminating.
    Terminating,
    /// The instance is terminating, and a lifecycle hook waits for the manager.
    TerminationDelayed,
    /// The instance exists but is not part of the desired capacity: in a warm pool, on standby, or detached.
    Aside,
}

/// An instance that a group could not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedStart {
    /// The time of the failure.
    pub at: Timestamp,
    /// The cause, in one line.
    pub cause: String,
    /// The kind of the cause.
    pub kind: FailureKind,
}

/// Why an instance cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// A quota of the account is reached.
    Quota,
    /// The cloud has no capacity for this instance type at this time.
    Capacity,
    /// The launch template cannot be used.
    LaunchTemplate,
    /// The image is missing or not allowed.
    Image,
    /// Another cause.
    Other,
}

/// One check of a pool's group, for `mayfly check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The subject of the check.
    pub subject: &'static str,
    /// The result of the check.
    pub result: CheckResult,
    /// The finding, and the remedy.
    pub text: String,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// No problem.
    Passed,
    /// The pool works, with a disadvantage.
    Warning,
    /// The pool cannot work like this.
    Failed,
}

/// Why a call of an engine failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineError {
    /// The kind of error.
    pub kind: ErrorKind,
    /// The failed call: `autoscaling:SetDesiredCapacity`, or the program and its call.
    pub call: String,
    /// Why, in one line, and what to do.
    pub why: String,
}

/// The kind of a failed call, on which the reaction depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The same call may succeed later.
    Temporary,
    /// The group does not exist.
    NoGroup,
    /// The group is at its minimum size.
    AtMinimum,
    /// The instance does not exist any more.
    NoInstance,
    /// The call was refused; an operator must change something.
    Refused,
    /// The response is invalid.
    InvalidResponse,
}

/// Lists, starts and terminates the instances of a pool.
pub trait Engine: Send + Sync {
    /// The group and its members.
    fn group(&self) -> Result<Group, EngineError>;

    /// Sets the desired number of instances.
    fn set_desired_capacity(&self, instances: u32) -> Result<(), EngineError>;

    /// Terminates one instance.
    fn terminate(&self, instance: &str, capacity: CapacityChange) -> Result<(), EngineError>;

    /// Returns the terminated ones among instances that the group no longer lists.
    fn terminated_among(&self, instances: &[String]) -> Result<Vec<String>, EngineError>;

    /// The instances that could not be started since this time, the oldest first.
    fn failed_starts(&self, since: Timestamp) -> Result<Vec<FailedStart>, EngineError>;

    /// Delays the termination of an instance in [`MemberState::TerminationDelayed`] while its job runs.
    fn extend_termination_delay(&self, instance: &str) -> Result<(), EngineError>;

    /// Lets an instance in [`MemberState::TerminationDelayed`] terminate.
    fn end_termination_delay(&self, instance: &str) -> Result<(), EngineError>;

    /// Checks the settings of the group for a pool of this size.
    fn check(&self, max_instances: Option<u32>) -> Vec<Check>;

    /// Checks the manager's permissions, as far as that is possible without an effect.
    fn check_permissions(&self) -> Vec<Check>;
}

/// The engine of a pool. The first call starts an operator's program and sends it the pool's name.
pub fn for_pool(settings: &EngineSettings, pool: &str) -> Arc<dyn Engine> {
    match settings {
        EngineSettings::Aws(group) => Arc::new(aws::Aws::new(group)),
        EngineSettings::Command(program) => Arc::new(command::EngineProgram::new(program, pool)),
    }
}

impl MemberState {
    /// Whether an instance in this state is part of the group's size.
    pub fn counts(self) -> bool {
        matches!(self, Self::Creating | Self::Running)
    }
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Quota, Self::Capacity, Self::LaunchTemplate, Self::Image, Self::Other];

    /// Whether retries of the group fail until an operator has changed something.
    pub fn needs_operator(self) -> bool {
        !matches!(self, Self::Capacity | Self::Other)
    }

    /// The name in metrics and on the status page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Capacity => "capacity",
            Self::LaunchTemplate => "launch_template",
            Self::Image => "image",
            Self::Other => "other",
        }
    }

    /// The remedy for an operator.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Quota => "raise the quota of the account, or lower max_instances",
            Self::Capacity => "allow more instance types or availability zones",
            Self::LaunchTemplate => "correct the group's launch template",
            Self::Image => "correct the image of the launch template, and the account's right to use it",
            Self::Other => "see the scaling activities of the group",
        }
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.why)
    }
}

impl std::error::Error for EngineError {}
