//! The interface between the agent and the shim: the input of the shim, and the files that it writes.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sys::BootTime;
use crate::trace::FilterSpec;

/// Everything that a shim needs for one step. Passed as standard input from a sealed memory file, never in arguments,
/// because it contains the job's secrets (but never the runner's token).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepSpec {
    /// Unique name of the step; also in the environment of its processes (`MAYFLY_STEP`).
    pub id: String,
    /// The spool file of the job, which gets the filtered output.
    pub spool: PathBuf,
    /// The file to which the shim writes the [`StepStatus`] as its last action.
    pub status: PathBuf,
    /// Masking, timestamps and size limit of the output.
    pub filters: FilterSpec,
    /// The user of the step; `None` for the agent's user.
    pub user: Option<User>,
    /// Control groups to create for the step, one per hierarchy, and to empty at its end. Without control groups, the
    /// shim finds the step's processes only as their subreaper.
    pub cgroups: Vec<PathBuf>,
    /// Time from TERM to KILL.
    #[serde(with = "crate::shim::spec::seconds")]
    pub grace: Duration,
    /// When the shim stops the step, even if the agent does not run.
    pub deadline: Option<BootTime>,
    /// The shim stops the step when this process ends; `None` for a step that outlives the agent.
    #[serde(default)]
    pub stop_with_pid: Option<i32>,
    pub task: StepProgram,
}

impl StepSpec {
    /// The limits of the step's control groups.
    pub fn limits(&self) -> Limits {
        match &self.task {
            StepProgram::AgentTask { rights: Rights::Sandboxed(sandbox), .. } => sandbox.limits,
            _ => Limits::default(),
        }
    }
}

/// How the log receives the two output streams of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputStreams {
    /// Standard error goes to the pipe of standard output, so that their order is exact.
    Merged,
    /// Each stream has its own pipe, so that the log shows the stream of each line.
    Separate,
}

/// The program or task of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum StepProgram {
    /// A program of the machine, usually a shell that reads the script from standard input.
    Process {
        /// The program (absolute path) and its arguments.
        argv: Vec<String>,
        /// The whole environment.
        env: Vec<(String, String)>,
        /// Working directory.
        cwd: PathBuf,
        /// Standard input, a seekable memory file.
        stdin: String,
        streams: OutputStreams,
    },
    /// A task of the agent's program: a file task, or the preparation of a container. A child of the shim runs it.
    AgentTask {
        /// The task as JSON, which the layer above decodes.
        task: String,
        rights: Rights,
    },
    /// A script in a container. A child of the shim represents it: the child runs the agent's program, with all rights
    /// of the agent, and communicates with the container engine.
    ContainerScript {
        /// The task of the agent's program, as in [`StepProgram::AgentTask`].
        task: String,
        /// The named pipes for the script's output.
        output_fifos: OutputFifos,
    },
}

impl StepProgram {
    /// The rights of the process that runs the program.
    pub fn rights(&self) -> &Rights {
        match self {
            Self::Process { .. } => &Rights::User,
            Self::AgentTask { rights, .. } => rights,
            Self::ContainerScript { .. } => &Rights::All,
        }
    }
}

/// The rights of the process that runs a step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rights {
    /// The rights of the step's user.
    #[default]
    User,
    /// Only access to the job's files, in the sandbox.
    Sandboxed(Sandbox),
    /// All rights of the agent, to use the container engine.
    All,
}

/// The access of a sandboxed task, in addition to the machine's programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Directories that the task may change.
    pub writable: Vec<PathBuf>,
    /// Files that the task may read.
    pub readable: Vec<PathBuf>,
    /// Whether every user may write the files that the task creates (umask 0, as gitlab-runner does), because the user
    /// of the container is unknown.
    pub world_writable: bool,
    /// The sandbox user.
    pub uid: u32,
    /// Access to servers; `None` for a task without network.
    pub network: Option<NetworkAccess>,
    /// Whether programs that the task starts may change files of other users.
    pub ambient_capabilities: bool,
    /// Limits of the control group.
    pub limits: Limits,
}

/// The servers that a sandboxed task may reach: the allowed ones, and all others except the addresses of the machine
/// and its link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAccess {
    /// Hosts and ports from the configuration, at any address.
    pub allowed: Vec<(String, u16)>,
    /// Proxy variables of the job.
    pub proxies: Vec<(String, String)>,
}

/// Limits of a control group; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u64>,
}

/// Named pipes that are created for a step, in a directory where the job may have created anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFifos {
    /// No path may lead out of this directory.
    pub root: PathBuf,
    /// Standard output, below `root`.
    pub output: PathBuf,
    /// Standard error; `None` if it is merged into standard output.
    pub error: Option<PathBuf>,
}

/// The user of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Login name.
    pub name: String,
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepStatus {
    /// The [`StepSpec::id`] of the step.
    pub id: String,
    pub end: StepEnd,
    /// Why the shim stopped the step, if it did.
    pub stopped: Option<Stop>,
    /// Processes that outlived the main process and were killed.
    pub killed_processes: u32,
    /// The report of a task of the agent's program besides its exit status; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub report: String,
}

impl StepStatus {
    /// The status of a step that could not be started for this reason.
    pub fn not_started(id: &str, why: String) -> Self {
        let end = StepEnd::NotStarted(why);
        Self { id: id.to_owned(), end, stopped: None, killed_processes: 0, report: String::new() }
    }
}

/// The result of a task of the agent's program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskResult {
    /// The exit status of the step.
    pub code: i32,
    /// See [`StepStatus::report`].
    pub report: String,
}

/// How the main process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepEnd {
    /// Exit status.
    Exited(i32),
    /// Number of the signal.
    Signaled(i32),
    /// The process could not be started (missing program, argument list too long, no such directory): the reason.
    NotStarted(String),
}

/// Why a shim stopped its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// The deadline has passed.
    Deadline,
    /// The agent requested it (SIGTERM to the shim).
    Requested,
}

/// Serializes durations as seconds.
pub(crate) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(value.as_secs_f64())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
    }
}
