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
    pub least: u32,
    /// The maximum number of instances; `None` for no limit.
    pub most: Option<u32>,
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
    pub state: State,
    /// Whether the group considers the instance healthy.
    pub healthy: bool,
    /// Whether the instance is protected from scale-in.
    pub protected: bool,
    /// The state as the engine names it, for display.
    pub detail: String,
}

/// The lifecycle state of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
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

/// The result of one check, for `mayfly check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examined {
    /// The subject of the check.
    pub what: &'static str,
    /// The result of the check.
    pub verdict: Verdict,
    /// The finding and the remedy.
    pub text: String,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No problem.
    Good,
    /// The pool works, with a disadvantage.
    Doubtful,
    /// The pool cannot work like this.
    Bad,
}

/// Why a call of an engine failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineError {
    /// The kind of error, on which the caller decides.
    pub kind: ErrorKind,
    /// The failed call: "autoscaling:SetDesiredCapacity", "set_target".
    pub call: String,
    /// Why, in one line, and what to do.
    pub why: String,
}

/// The kind of a failed call; decides about retries.
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
    Nonsense,
}

/// Lists, starts and terminates the instances of a pool.
pub trait Engine: Send + Sync {
    /// The group and its members.
    fn group(&self) -> Result<Group, EngineError>;

    /// Sets the desired number of instances.
    fn set_target(&self, instances: u32) -> Result<(), EngineError>;

    /// Terminates one instance.
    fn terminate(&self, instance: &str, capacity: CapacityChange) -> Result<(), EngineError>;

    /// Returns those of `instances`, which the group no longer lists, that are known to be terminated.
    fn ended(&self, instances: &[String]) -> Result<Vec<String>, EngineError>;

    /// The instances that could not be started since this time, the oldest first.
    fn failed_starts(&self, since: Timestamp) -> Result<Vec<FailedStart>, EngineError>;

    /// Delays the termination of an instance in [`State::TerminationDelayed`] while its job runs.
    fn keep_held(&self, instance: &str) -> Result<(), EngineError>;

    /// Lets an instance in [`State::TerminationDelayed`] terminate.
    fn release_held(&self, instance: &str) -> Result<(), EngineError>;

    /// Checks the group's settings for a pool of this size.
    fn examine(&self, max_instances: Option<u32>) -> Vec<Examined>;

    /// Checks the manager's permissions, as far as that is possible without an effect.
    fn examine_permissions(&self) -> Vec<Examined>;
}

/// The engine of a pool. An operator's program is started by the first call and receives the pool's name.
pub fn of(settings: &EngineSettings, pool: &str) -> Arc<dyn Engine> {
    match settings {
        EngineSettings::Aws(group) => Arc::new(aws::Aws::new(group)),
        EngineSettings::Command(program) => Arc::new(command::Command::new(program, pool)),
    }
}

impl State {
    /// Whether an instance in this state is part of the group's size.
    pub fn counts(self) -> bool {
        matches!(self, Self::Creating | Self::Running)
    }
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Quota, Self::Capacity, Self::LaunchTemplate, Self::Image, Self::Other];

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
