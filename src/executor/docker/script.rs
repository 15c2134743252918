//! Runs one script in the job's container, in a child process of the shim: starts the container, sends the script to
//! its standard input, and exits when the container has ended.
//!
//! The script's output does not go through the engine, which is slow and mixes up the order of the two streams. Instead
//! the script opens named pipes in the job's directory, which the shim reads. Earlier output, such as that of an
//! entrypoint, arrives over the engine's socket; so does all output if the script cannot open the pipes.

mod marker;
mod result;
mod running;
mod shell;

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};

use running::ScriptRun;
pub use shell::command;

use super::console::{JobConsole, StdoutConsole};
use super::engine::{DockerEngine, DockerError};
use super::prepared::PreparedContainer;
use super::retry::{StopRequest, retry_when_disk_full};
use crate::failure::{FailureReason, JobError};

/// The time limit for the response to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The time limit for an engine to respond again after a restart.
const RETURN_TIMEOUT: Duration = Duration::from_secs(20);
/// The interval of pings of an engine that restarts.
const RETURN_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// A script and its container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerScript {
    pub container: PreparedContainer,
    /// Whether to replace the container by a new one, because its last run was interrupted.
    pub recreate_container: bool,
    /// How often the script may run if its container disappears (`EXECUTOR_JOB_SECTION_ATTEMPTS`).
    pub attempts: u32,
    /// Identifies this run of the script; random, so that no output contains it.
    pub start_marker: String,
    pub script: String,
    /// The named pipes for output and, if separate, error output, as the container sees them.
    pub output_fifos: (String, Option<String>),
    /// The time between SIGTERM and SIGKILL.
    #[serde(with = "crate::shim::spec::seconds")]
    pub grace: Duration,
    /// Directories whose owner is first changed to the container's user (`FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR`).
    pub chown: Option<ChownDirs>,
}

/// Directories whose owner changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChownDirs {
    /// The directory outside of which no owner may be changed.
    pub root: PathBuf,
    pub directories: Vec<PathBuf>,
}

/// Runs the script. The error has the script's exit status, or says why it did not run.
pub fn run(plan: &ContainerScript) -> Result<(), JobError> {
    let signals = term_signals().map_err(|error| JobError::system(format!("cannot create a signalfd: {error}")))?;
    let engine = DockerEngine::at(&plan.container.engine).map_err(engine_error)?;
    let stop = StopRequest::Readable(signals.as_fd());
    wait_for_engine(&engine, stop).map_err(engine_error)?;
    let (name, attempts) = (&plan.container.name, plan.attempts);
    let mut renew = if plan.recreate_container { Renewal::NewContainer } else { Renewal::SameContainer };
    for attempt in 2..=attempts {
        match run_once(plan, renew, &engine, &signals) {
            Err(ScriptFailure::Vanished) => StdoutConsole.warning(&format!(
                "the job's container {name} is gone; the script is run again in a new one (attempt {attempt} of \
                 {attempts})"
            )),
            outcome => return outcome.map_err(|failure| failure.into_job_error(name)),
        }
        renew = Renewal::NewContainer;
    }
    run_once(plan, renew, &engine, &signals).map_err(|failure| failure.into_job_error(name))
}

/// Waits for an engine that is restarting. Fails if it stays unreachable or hangs, or if the job must stop meanwhile.
fn wait_for_engine(engine: &DockerEngine, stop: StopRequest<'_>) -> Result<(), DockerError> {
    let until = Instant::now() + RETURN_TIMEOUT;
    loop {
        let outcome = engine.ping(PING_TIMEOUT);
        let is_away = outcome.as_ref().is_err_and(DockerError::is_unreachable);
        if !is_away || Instant::now() >= until || stop.arrives_within(RETURN_CHECK_INTERVAL) {
            return outcome;
        }
    }
}

fn run_once(
    plan: &ContainerScript,
    renew: Renewal,
    engine: &DockerEngine,
    signals: &SignalFd,
) -> Result<(), ScriptFailure> {
    let container = &plan.container;
    let stop = StopRequest::Readable(signals.as_fd());
    if renew == Renewal::NewContainer {
        container.remove(engine).map_err(engine_error)?;
        container.create(engine, stop)?;
    }
    // Podman creates the process at this request, Docker when the container starts.
    let attached = engine.attach(&container.name).map_err(|error| match lacks_program(&error) {
        true => start_error(&error, container).into(),
        false => ScriptFailure::of_engine(error),
    })?;
    retry_when_disk_full(stop, || engine.start_container(&container.name))
        .map_err(|error| start_error(&error, container))?;
    ScriptRun::new(plan, engine, attached, signals).relay_output().result()
}

/// The container of an attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Renewal {
    /// The one that the preparation created.
    SameContainer,
    /// A new one in its place.
    NewContainer,
}

/// Why a script did not succeed.
enum ScriptFailure {
    /// The container has disappeared.
    Vanished,
    /// Any other failure.
    Job(JobError),
}

impl ScriptFailure {
    fn of_engine(error: DockerError) -> Self {
        if error.is_missing() { Self::Vanished } else { Self::Job(engine_error(error)) }
    }

    fn into_job_error(self, name: &str) -> JobError {
        match self {
            Self::Job(error) => error,
            Self::Vanished => JobError::system(format!(
                "the job's container {name} was removed; another program on this machine removes containers while jobs \
                 run"
            )),
        }
    }
}

impl From<JobError> for ScriptFailure {
    fn from(error: JobError) -> Self {
        Self::Job(error)
    }
}

/// A descriptor that becomes readable on SIGTERM.
fn term_signals() -> io::Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

fn engine_error(error: DockerError) -> JobError {
    JobError::system(error.to_string())
}

/// Whether the engine did not find the shell or the entrypoint in the image.
fn lacks_program(error: &DockerError) -> bool {
    let text = error.to_string();
    text.contains("executable file not found") || text.contains("no such file or directory")
}

/// The failure if a container cannot be started: an image without a shell is the job's fault.
fn start_error(error: &DockerError, container: &PreparedContainer) -> JobError {
    let text = error.to_string();
    if lacks_program(error) {
        return JobError::new(
            FailureReason::ScriptFailure,
            format!(
                "image {} cannot run scripts: it has no shell `sh`, or its entrypoint is missing; use an image with a \
                 shell, or set `image:entrypoint` ({})",
                container.image,
                text.trim()
            ),
        );
    }
    JobError::system(format!("cannot start the job's container: {}", text.trim()))
}
