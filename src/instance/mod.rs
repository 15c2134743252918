//! The machine that the agent runs on: its identity, notices of its cloud, and its termination.
//!
//! This layer knows the machine and its cloud. It never runs a job, calls GitLab, or decides when to shut down.

pub mod aws;
pub mod metadata_block;
mod plain;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::aws::AwsConfig;
use crate::config::leave::{LeaveSettings, LeaveStrategy};
pub use plain::Plain;

/// The machine and the boot that the journal belongs to: an image of a used machine must not resume its jobs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// The instance id of the cloud, or the machine id of the operating system.
    pub instance: String,
    /// The boot id.
    pub boot: String,
}

/// Handles a notice. The watching thread calls it, so it must not block.
pub type NoticeHandler = Box<dyn Fn(Notice) + Send + Sync>;

/// A machine that an agent runs on. A method for a feature that the machine lacks does nothing.
pub trait Instance: Send + Sync {
    /// The machine and the current boot.
    fn identity(&self) -> Identity;

    /// The instance id of the cloud, if there is one. Unlike a machine id, it is never part of an image, so the system
    /// id is derived from it.
    fn cloud_id(&self) -> Option<String>;

    /// Whether the instance is in an Auto Scaling group, according to the metadata service at the start.
    fn is_in_group(&self) -> bool {
        false
    }

    /// The strategy if `leave` is not configured.
    fn default_leave(&self) -> LeaveStrategy {
        if self.is_in_group() { LeaveStrategy::AwsAsg } else { LeaveStrategy::Exit }
    }

    /// The cloud of the instance, if it is a known one: an instance that keeps running costs money.
    fn cloud(&self) -> Option<&'static str> {
        None
    }

    /// Checks the machine and its permissions for `mayfly check`; changes nothing.
    fn inspect(&self) -> Vec<CheckResult> {
        Vec::new()
    }

    /// Starts a thread that watches for notices until the process exits. The first [`Notice::Target`] comes with the
    /// first poll; each notice comes once. Call it once.
    fn watch(&self, handler: NoticeHandler);

    /// Reads the target lifecycle state. Errors: it cannot be read.
    fn target_state(&self) -> Result<TargetState, Refusal>;

    /// Protects the instance from scale-in while a job runs. Returns at once: a thread applies the last setting and
    /// logs the first failure.
    fn set_activity(&self, activity: Activity);

    /// The agent took a job, so the group may have to grow (`raise_on_job`). Returns at once: a thread makes the call
    /// and logs the first failure.
    fn job_taken(&self, _: JobDemand) {}

    /// Terminates the instance through its group, with at most one effective call, even if an answer is lost or an
    /// earlier agent has made the call. Retries for `timeout`, and calls `capacity` before each attempt, because a
    /// notice may change it. Errors: why the instance is not terminated.
    fn terminate(&self, capacity: &dyn Fn() -> CapacityChange, timeout: Duration) -> Result<TerminateResult, Refusal>;

    /// Extends the terminating lifecycle hooks of the group while jobs run: a thread sends heartbeats at once and then
    /// at half of each hook's timeout, until [`Instance::complete_hooks`].
    fn start_hook_heartbeats(&self);

    /// Completes every terminating lifecycle hook of the group, once it holds the instance; retries for `timeout`.
    /// Errors: why a hook may hold the instance until it times out.
    fn complete_hooks(&self, timeout: Duration) -> Result<(), Refusal>;
}

/// The requirement of the agent on its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Nothing.
    Nothing,
    /// Nothing; but if the instance is in an Auto Scaling group, the agent terminates it through the group.
    GroupIfMember,
    /// An Auto Scaling group, to terminate through it.
    AutoScaling,
}

impl Requirement {
    /// The requirement of an agent that shuts down in this way.
    pub fn new(leave: &LeaveSettings) -> Self {
        match leave.configured {
            None => Self::GroupIfMember,
            Some(LeaveStrategy::AwsAsg) => Self::AutoScaling,
            Some(LeaveStrategy::Exit | LeaveStrategy::Command | LeaveStrategy::Poweroff) => Self::Nothing,
        }
    }
}

/// Identifies the machine. `settings` is `[mayfly.aws]`; with it the agent looks for an EC2 instance. Takes no time on
/// other machines, and up to a minute if the metadata service should answer but does not. Errors: the requirement is
/// not met: why, and what to do.
pub fn find(settings: Option<&AwsConfig>, requirement: Requirement) -> Result<Arc<dyn Instance>, String> {
    find_with(settings, requirement, aws::find::Retries::WhileBooting)
}

/// As [`find`], but asks a metadata service that does not answer only once.
pub fn find_at_once(settings: Option<&AwsConfig>, requirement: Requirement) -> Result<Arc<dyn Instance>, String> {
    find_with(settings, requirement, aws::find::Retries::None)
}

fn find_with(
    settings: Option<&AwsConfig>,
    requirement: Requirement,
    retries: aws::find::Retries,
) -> Result<Arc<dyn Instance>, String> {
    Ok(match aws::find::ec2_instance(settings, requirement, retries)? {
        Some(member) => Arc::new(member),
        None => Arc::new(Plain),
    })
}

/// The subject of the check that reports the effect of a power off.
pub const POWER_OFF: &str = "power-off";

/// The result of a check.
pub struct CheckResult {
    /// The subject of the check.
    pub subject: &'static str,
    /// The state, or the problem.
    pub outcome: Result<String, String>,
}

/// A notice of the cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Rebalance recommendation: the instance is likely to be interrupted. The agent drains.
    Rebalance,
    /// The cloud interrupts the instance.
    Interruption { deadline: Instant, action: Interruption },
    /// The target lifecycle state: the first one, and each change.
    Target(TargetState),
}

/// The effect of an interruption on the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    Terminate,
    /// The instance may boot again.
    Stop,
    /// The instance hibernates right after the notice, and may wake later.
    Hibernate,
}

impl Interruption {
    /// The action, as a word for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Terminate => "terminate",
            Self::Stop => "stop",
            Self::Hibernate => "hibernate",
        }
    }
}

/// The target lifecycle state of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetState {
    /// The instance is in no group.
    NoGroup,
    /// The instance works.
    InService,
    /// Standby, or in a warm pool: no work, and no shutdown.
    Standby,
    /// The instance leaves the group and keeps running.
    Detached,
    /// The group terminates the instance.
    Terminated,
    /// Another state, as the service writes it.
    Other(String),
}

/// Whether the agent has jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    Busy,
    Idle,
}

/// The state of the queue, derived from how long a job waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobDemand {
    /// The job did not wait: an agent was polling for it.
    One,
    /// The job waited in the queue, so other jobs may wait too.
    More,
}

/// The effect of a termination on the desired capacity of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapacityChange {
    /// The group replaces the instance.
    Keep,
    /// The group shrinks.
    Decrement,
}

/// Why the instance terminates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TerminateResult {
    /// This call terminated it.
    Requested,
    /// An earlier call or the group had started the termination.
    AlreadyTerminating,
}

/// Why a call had no effect. `action` is its IAM permission (`autoscaling:CompleteLifecycleAction`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The group is at its minimum size.
    AtMinimum,
    /// The call was denied; a retry is useless.
    Denied {
        action: String,
        /// The error code, such as `AccessDenied`.
        code: String,
        message: String,
    },
    /// The call was throttled until the timeout.
    Throttled {
        action: String,
        /// The error code.
        code: String,
    },
    /// The service did not answer.
    Unreachable { action: String, why: String },
    /// The machine is in no group.
    NotInGroup,
}

impl Refusal {
    /// Whether a retry may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unreachable { .. })
    }

    /// The kind, as a label for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::AtMinimum => "at_minimum",
            Self::Denied { .. } => "denied",
            Self::Throttled { .. } => "throttled",
            Self::Unreachable { .. } => "unreachable",
            Self::NotInGroup => "not_in_a_group",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMinimum => f.write_str("message=the Auto Scaling group is at its minimum size"),
            Self::Denied { action, code, message } => write!(f, "action={action} code={code} message={message}"),
            Self::Throttled { action, code } => {
                write!(f, "action={action} code={code} message=throttled until the timeout")
            }
            Self::Unreachable { action, why } => write!(f, "action={action} code=Unreachable message={why}"),
            Self::NotInGroup => f.write_str("message=this machine is not in an Auto Scaling group"),
        }
    }
}

impl std::error::Error for Refusal {}
