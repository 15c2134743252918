//! What a shim is told, and what it leaves behind: the contract between the agent and the small process that
//! holds one running step.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::trace::FilterSpec;

/// Everything a shim needs for one step. It goes over a sealed memory file as standard input, never over arguments:
/// it holds the job's secrets (never the runner's token).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepSpec {
    /// Unique name of this step's run; also marks its processes (`MAYFLY_STEP` in their environment).
    pub id: String,
    /// The job's spool file, to which filtered output is appended.
    pub spool: PathBuf,
    /// Where the [`Status`] is written, by rename, as the shim's last act.
    pub status: PathBuf,
    /// Masking, stamping and limits of the output.
    pub filters: FilterSpec,
    /// Whom the step runs as; `None` for the agent's own user.
    pub user: Option<User>,
    /// Control group directories to create for the step (one a hierarchy) and to empty at its end; where there is none
    /// the subreaper alone keeps the processes together.
    pub cgroups: Vec<PathBuf>,
    /// From TERM to KILL.
    #[serde(with = "crate::shim::spec::seconds")]
    pub grace: Duration,
    /// When the step must be over, in nanoseconds of `CLOCK_BOOTTIME`; the shim holds it even when the agent is gone.
    pub deadline: Option<u64>,
    /// The step is stopped when this process, the agent, ends; `None` for a step that outlives the agent.
    #[serde(default)]
    pub stop_with_pid: Option<i32>,
    /// What to run.
    pub task: Task,
}

impl StepSpec {
    /// What the step's control groups may take.
    pub fn limits(&self) -> Limits {
        match &self.task {
            Task::File { rights: Rights::Sandboxed(sandbox), .. } => sandbox.limits,
            _ => Limits::default(),
        }
    }
}

/// What a step does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Task {
    /// A program, mostly a shell that reads the script from standard input.
    Process {
        /// The program (absolute path) and its arguments.
        argv: Vec<String>,
        /// The whole environment.
        env: Vec<(String, String)>,
        /// Working directory.
        cwd: PathBuf,
        /// What the program reads from standard input (kept in memory, seekable).
        stdin: String,
        /// Send standard error down the pipe of standard output, so that their order is exact.
        merge_stderr: bool,
    },
    /// Work of the agent's own (sources, caches, artifacts; what a container needs and does), done by a child of the shim
    /// with the user's rights: a plan that the layer above understands.
    File {
        /// The plan as JSON.
        task: String,
        /// What the work may do.
        rights: Rights,
        /// Named pipes through which its output comes as well, from whoever finds them.
        output_fifos: Option<OutputFifos>,
    },
}

/// What a child that works may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rights {
    /// What its user may do.
    #[default]
    User,
    /// What it takes to work on files that a container has left, and no more.
    Sandboxed(Sandbox),
    /// Everything, to speak with a container engine.
    All,
}

/// What work behind walls sees of the machine beside its programs, and what it may take of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Directories that it may change.
    pub writable: Vec<PathBuf>,
    /// Files that it may read.
    pub readable: Vec<PathBuf>,
    /// What it makes is for everybody, since nobody knows whom the container runs as (gitlab-runner: umask 0).
    pub world_writable: bool,
    /// The user that it is.
    pub uid: u32,
    /// How it reaches servers; `None` where it works with none.
    pub network: Option<Network>,
    /// Programs that it starts may change the files of others, as it may itself.
    pub ambient_capabilities: bool,
    /// What its control group may take.
    pub limits: Limits,
}

/// Which servers confined work reaches: all but those of the machine itself and of its link, and of these what is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Hosts and ports that the configuration names, wherever they are.
    pub allowed: Vec<(String, u16)>,
    /// Variables by which programs would choose a proxy.
    pub proxies: Vec<(String, String)>,
}

/// What a control group may take; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_millis: Option<u64>,
}

/// Named pipes that are made for a step, below a directory in which anything may have been planted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFifos {
    /// The directory that nothing is to be reached outside of.
    pub root: PathBuf,
    /// Standard output, below it.
    pub output: PathBuf,
    /// Standard error; `None` when that goes through the same.
    pub error: Option<PathBuf>,
}

/// The user a step runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Numeric user.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The [`StepSpec::id`] it belongs to.
    pub id: String,
    /// How the main process ended.
    pub end: End,
    /// Why the shim stopped the step, if it did.
    pub stopped: Option<Stop>,
    /// Processes that were still there after the main process had ended, and were killed.
    pub killed_processes: u32,
    /// What the work has to report beside its exit status, for the layer above; empty for nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub report: String,
}

/// How work came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskResult {
    /// The exit status of the step.
    pub code: i32,
    /// See [`Status::read_report`].
    pub report: String,
}

/// How the main process of a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// It could not be started (missing program, argument list too long, no such directory): why.
    NotStarted(String),
}

/// Why a shim stopped its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// The deadline passed.
    Deadline,
    /// The agent asked for it (SIGTERM to the shim).
    Requested,
}

/// Durations as seconds on the wire.
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
