//! What a shim is told, and what it leaves behind: the contract between the agent and the small process that
//! holds one running step.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::trace::FilterSpec;

/// Everything a shim needs for one step. It goes over a sealed memory file as standard input, never over arguments:
/// it holds the job's secrets (never the runner's token).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
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
    /// What to run.
    pub task: Task,
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
    /// File work of the agent's own (sources, caches, artifacts), done by a child of the shim with the user's rights:
    /// a plan that the layer above understands.
    Work {
        /// The plan as JSON.
        plan: String,
    },
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
    /// The [`Spec::id`] it belongs to.
    pub id: String,
    /// How the main process ended.
    pub end: End,
    /// Why the shim stopped the step, if it did.
    pub stopped: Option<Stop>,
    /// Processes that were still there after the main process had ended, and were killed.
    pub leftovers: u32,
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
