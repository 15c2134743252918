//! The machine the agent lives on: who it is, what is coming, how to leave it.
//!
//! This layer knows the machine and its cloud. It never runs a job, speaks to GitLab, or decides when to leave.

pub mod aws;
pub mod metadata_block;
mod plain;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::aws::Aws;
use crate::config::leave::Strategy;
pub use plain::Plain;

/// What the journal is bound to: an image made from a used machine must not inherit its jobs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// The instance: its cloud id, or else the machine id of the operating system.
    pub instance: String,
    /// The boot it is in.
    pub boot: String,
}

/// Who hears of notices; called by the thread that watches, so it must not wait for anything.
pub type NoticeHandler = Box<dyn Fn(Notice) + Send + Sync>;

/// A machine that an agent can live on and leave. What a machine does not have is done at once and in silence.
pub trait Instance: Send + Sync {
    /// Who this machine is, and in which boot.
    fn identity(&self) -> Identity;

    /// The id that the cloud gave it, if it is known to one. Other than a machine id it is never part of an image, so
    /// what tells this machine from its siblings is derived from it.
    fn cloud_id(&self) -> Option<String>;

    /// Looks at what the machine is and may, for people; changes nothing.
    fn inspect(&self) -> Vec<CheckResult> {
        Vec::new()
    }

    /// Begins to watch what is coming, in a thread of its own and until the process ends. The first [`Notice::Target`]
    /// comes with the first look, each notice once. To be called once.
    fn watch(&self, handler: NoticeHandler);

    /// What the group wants of the instance, read afresh. Errors: nobody answers.
    fn target_state(&self) -> Result<TargetState, Refusal>;

    /// Keeps the group from choosing this instance when it shrinks, or lets it again. Returns at once: a thread tells
    /// the group, the latest word counts, and what goes wrong is logged once.
    fn set_activity(&self, work: Activity);

    /// A job was taken: a group that is to grow with its jobs grows. Returns at once: a thread tells the group, and what
    /// goes wrong is logged once.
    fn job_taken(&self, _: JobDemand) {}

    /// Ends the instance through its group, with at most one effective call, also when an answer is lost or an earlier
    /// agent has asked already. Tries for `timeout`; `capacity` is asked before each call, since more may come over the
    /// instance meanwhile. Errors: it goes on living, and why.
    fn terminate(&self, capacity: &dyn Fn() -> CapacityChange, timeout: Duration) -> Result<TerminateResult, Refusal>;

    /// Keeps the group's terminating hooks from running out while something still has to be finished: in a thread, at
    /// once and then at half of each hook's time-out, until [`Instance::complete_hooks`].
    fn start_hook_heartbeats(&self);

    /// Tells every terminating hook of the group that it may go on, once the instance is held by it; tries for
    /// `timeout`. Errors: a hook may hold the instance until its own time-out, and why.
    fn complete_hooks(&self, timeout: Duration) -> Result<(), Refusal>;
}

/// What the agent cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Nothing: any machine will do.
    Nothing,
    /// It leaves through its Auto Scaling group.
    AutoScaling,
}

impl Requirement {
    /// What an agent with this strategy needs of its machine.
    pub fn of(strategy: Strategy) -> Self {
        match strategy {
            Strategy::AwsAsg => Self::AutoScaling,
            Strategy::Exit | Strategy::Command | Strategy::Poweroff => Self::Nothing,
        }
    }
}

/// The machine that this is. `settings` is `[mayfly.aws]`, where it is there: that alone makes an instance of EC2 be
/// looked for. Takes no time on a machine that is none, and up to a minute on one that is to be and does not answer.
/// Errors: what is needed is not there; why, and what to do.
pub fn find(settings: Option<&Aws>, requirement: Requirement) -> Result<Arc<dyn Instance>, String> {
    Ok(match aws::find::member(settings, requirement)? {
        Some(member) => Arc::new(member),
        None => Arc::new(Plain),
    })
}

/// What becomes of the machine when it is switched off, among what is looked at.
pub const POWER_OFF: &str = "power-off";

/// Something that was looked at.
pub struct CheckResult {
    /// What it is.
    pub subject: &'static str,
    /// How it stands, or what is wrong with it.
    pub outcome: Result<String, String>,
}

/// What is coming.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The instance is likely to be taken soon: no more jobs, but those that run may go on.
    Rebalance,
    /// The instance is taken.
    Interruption {
        /// When.
        deadline: Instant,
        /// What is done to it.
        action: Interruption,
    },
    /// What the group wants of it: at first, and whenever that changes.
    Target(TargetState),
}

/// What a cloud does to an instance that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// It ends.
    Terminate,
    /// It stops, and may boot again.
    Stop,
    /// It is frozen, from the notice on, and may go on later.
    Hibernate,
}

impl Interruption {
    /// The word for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Terminate => "terminate",
            Self::Stop => "stop",
            Self::Hibernate => "hibernate",
        }
    }
}

/// The state that a group is bringing an instance into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetState {
    /// It is in no group.
    NoGroup,
    /// It works.
    InService,
    /// It rests beside the group, or in a warm pool: no work, and no end.
    Standby,
    /// It leaves the group and lives on.
    Detached,
    /// It ends.
    Terminated,
    /// Something that is not known here, as written.
    Other(String),
}

/// Whether there is a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// One at least.
    Busy,
    /// None.
    Idle,
}

/// What a job that was taken tells of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobDemand {
    /// Nothing: it was given to somebody who waited for it.
    One,
    /// It had to wait, and so may others.
    More,
}

/// What becomes of the group's size when an instance leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapacityChange {
    /// Another one takes its place.
    Keep,
    /// The group gets smaller.
    Decrement,
}

/// The instance ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TerminateResult {
    /// Because it was asked to.
    Requested,
    /// Somebody asked before: this agent, one before it, or the group itself.
    AlreadyTerminating,
}

/// Why something was not done. `action` is the permission that it takes (`autoscaling:CompleteLifecycleAction`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The group has its smallest size already.
    AtMinimum,
    /// It was said no: asking again is in vain.
    Denied {
        /// The permission.
        action: String,
        /// The code of the error, such as `AccessDenied`.
        code: String,
        /// What was said.
        message: String,
    },
    /// It was said "not now" until patience was over.
    Throttled {
        /// The permission.
        action: String,
        /// The code of the error.
        code: String,
    },
    /// Nobody answered.
    Unreachable {
        /// The permission.
        action: String,
        /// What went wrong.
        why: String,
    },
    /// This machine has no such thing.
    NotHere,
}

impl Refusal {
    /// Whether asking again may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unreachable { .. })
    }

    /// The word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::AtMinimum => "at_minimum",
            Self::Denied { .. } => "denied",
            Self::Throttled { .. } => "throttled",
            Self::Unreachable { .. } => "unreachable",
            Self::NotHere => "not_in_a_group",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMinimum => f.write_str("the Auto Scaling group has its minimum size already"),
            Self::Denied { action, code, message } => write!(f, "action={action} code={code} message={message}"),
            Self::Throttled { action, code } => write!(f, "action={action} code={code} message=refused for too long"),
            Self::Unreachable { action, why } => write!(f, "action={action} code=Unreachable message={why}"),
            Self::NotHere => f.write_str("this machine is in no Auto Scaling group"),
        }
    }
}

impl std::error::Error for Refusal {}
