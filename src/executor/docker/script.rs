//! Runs one script in the job's container, in a child process of the shim: starts the container, sends the script to
//! its standard input, and ends with it.
//!
//! The script's output does not go through the engine, which is slow and mixes up the order of the two streams. Instead
//! the script opens named pipes in the job's directory, which the shim reads. Output before that, such as that of an
//! entrypoint, comes over the engine's socket; so does all output if the pipes cannot be opened.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};

use super::console::{JobConsole, StdoutConsole};
use super::engine::attached::{Attached, ContainerStream, FrameReader};
use super::engine::containers::ContainerState;
use super::engine::{Engine, Error};
use super::prepared::PreparedContainer;
use super::retry::retry_when_disk_full;
use super::safe_dirs;
use crate::failure::{FailureReason, JobError};
use crate::http::conversation::ReadEvent;

/// The buffer size for reading from the engine.
const READ_SIZE: usize = 256 * 1024;
/// An engine without output is pinged after this time,
const PING_AFTER_SILENCE: Duration = Duration::from_secs(20);
/// must respond within this time,
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// is pinged again after this time if it does not,
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// and is given up after this number of pings.
const PINGS_MAX: u32 = 3;
/// The time limit for an engine to end a container after a kill.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);
/// The time limit for an engine to come back after a restart.
const RETURN_TIMEOUT: Duration = Duration::from_secs(20);
/// The engine may report that memory ran out this much later than the end of the process.
const OOM_EVENT_TIMEOUT: Duration = Duration::from_secs(2);
/// The exit status of a process killed by SIGKILL.
const EXIT_CODE_KILLED: i64 = 128 + 9;

/// Finds and starts the best shell of the image.
const FIND_SHELL: &str = "for shell in /usr/local/bin/bash /usr/bin/bash /bin/bash /usr/local/bin/sh /usr/bin/sh \
                          /bin/sh /busybox/sh; do if [ -x $shell ]; then exec $shell; fi; done; echo shell not found; \
                          exit 1";
/// The same without bash, for runners with `shell = "sh"`.
const FIND_SH: &str = "for shell in /usr/local/bin/sh /usr/bin/sh /bin/sh /busybox/sh; do if [ -x $shell ]; then exec \
                       $shell; fi; done; echo shell not found; exit 1";

/// The command of a job's container.
pub fn command(shell: Option<&str>) -> Vec<String> {
    let find = if shell == Some("sh") { FIND_SH } else { FIND_SHELL };
    ["sh", "-c", find].map(str::to_owned).to_vec()
}

/// A script and its container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerScript {
    pub container: PreparedContainer,
    /// Recreate the container: an earlier run of it was interrupted.
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
    /// Directories to give to the container's user first (`FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR`).
    pub chown: Option<ChownDirs>,
}

/// Directories whose owner changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChownDirs {
    /// The directory outside which nothing may be changed.
    pub root: PathBuf,
    pub directories: Vec<PathBuf>,
}

/// Runs the script. The error has the script's exit status, or says why it did not run.
pub fn run(plan: &ContainerScript) -> Result<(), JobError> {
    let signals = term_signals().map_err(|error| JobError::system(format!("cannot create a signalfd: {error}")))?;
    let engine = Engine::at(&plan.container.engine).map_err(engine_error)?;
    wait_for_engine(&engine).map_err(engine_error)?;
    let (name, attempts) = (&plan.container.name, plan.attempts);
    let mut renew = plan.recreate_container;
    for attempt in 2..=attempts {
        match run_once(plan, renew, &engine, &signals) {
            Err(ScriptFailure::Vanished) => StdoutConsole.warning(&format!(
                "the job's container {name} is gone; the script is run again in a new one (attempt {attempt} of \
                 {attempts})"
            )),
            outcome => return outcome.map_err(|failure| failure.into_job_error(name)),
        }
        renew = true;
    }
    run_once(plan, renew, &engine, &signals).map_err(|failure| failure.into_job_error(name))
}

/// Waits for an engine that is restarting. Fails if it stays unreachable or hangs.
fn wait_for_engine(engine: &Engine) -> Result<(), Error> {
    let until = Instant::now() + RETURN_TIMEOUT;
    loop {
        match engine.ping(PING_TIMEOUT) {
            Err(error) if error.is_unreachable() && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(500))
            }
            outcome => return outcome,
        }
    }
}

fn run_once(plan: &ContainerScript, renew: bool, engine: &Engine, signals: &SignalFd) -> Result<(), ScriptFailure> {
    let container = &plan.container;
    if renew {
        container.remove(engine).map_err(engine_error)?;
        container.create(engine)?;
    }
    // Podman creates the process here, Docker when the container starts.
    let attached = engine.attach(&container.name).map_err(|error| match lacks_program(&error) {
        true => start_error(&error, container).into(),
        false => ScriptFailure::of_engine(error),
    })?;
    retry_when_disk_full(|| engine.start_container(&container.name)).map_err(|error| start_error(&error, container))?;
    let mut step = ScriptRun::new(plan, engine, attached, signals);
    let end = step.relay_output();
    step.result(end)
}

/// Why a script did not succeed.
enum ScriptFailure {
    /// Its container has disappeared.
    Vanished,
    /// Any other failure.
    Job(JobError),
}

impl ScriptFailure {
    fn of_engine(error: Error) -> Self {
        if error.is_missing() { Self::Vanished } else { Self::Job(engine_error(error)) }
    }

    fn into_job_error(self, name: &str) -> JobError {
        match self {
            Self::Job(error) => error,
            Self::Vanished => JobError::system(format!(
                "the job's container {name} was removed; another program on this machine removes containers while jobs run"
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

/// The phase of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The image's entrypoint has not started the shell yet.
    Entrypoint,
    /// The script runs.
    Script,
}

/// How far the stop of a script is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopPhase {
    No,
    TermSent { insist: Instant },
    KillSent { give_up: Instant },
}

struct ScriptRun<'a> {
    plan: &'a ContainerScript,
    engine: &'a Engine,
    attached: Attached,
    signals: &'a SignalFd,
    frames: FrameReader,
    marker: MarkerFilter,
    phase: Phase,
    stopping: StopPhase,
    /// Consecutive pings without a response.
    failed_pings: u32,
    /// The error of the last ping, when the engine was given up.
    engine_failure: Option<Error>,
    began: SystemTime,
}

impl<'a> ScriptRun<'a> {
    fn new(plan: &'a ContainerScript, engine: &'a Engine, mut attached: Attached, signals: &'a SignalFd) -> Self {
        attached.write(prologue(&plan.start_marker).as_bytes());
        Self {
            plan,
            engine,
            attached,
            signals,
            frames: FrameReader::default(),
            marker: MarkerFilter::new(&plan.start_marker),
            phase: Phase::Entrypoint,
            stopping: StopPhase::No,
            failed_pings: 0,
            engine_failure: None,
            began: SystemTime::now(),
        }
    }

    /// Relays output until the container ends. Fails if the connection breaks or the engine is given up.
    fn relay_output(&mut self) -> io::Result<()> {
        let mut block = vec![0; READ_SIZE];
        loop {
            let wake = (self.stopping == StopPhase::No).then(|| self.signals.as_fd());
            match self.attached.read(&mut block, wake, Some(self.read_timeout()))? {
                ReadEvent::Bytes(length) => self.handle_output(&block[..length])?,
                ReadEvent::End => return Ok(()),
                ReadEvent::Woken => self.send_term(),
                ReadEvent::TimedOut if self.stopping == StopPhase::No => self.ping_engine()?,
                ReadEvent::TimedOut => {}
            }
            self.enforce_stop()?;
        }
    }

    fn read_timeout(&self) -> Duration {
        match self.stopping {
            StopPhase::No if self.failed_pings == 0 => PING_AFTER_SILENCE,
            StopPhase::No => PING_INTERVAL,
            StopPhase::TermSent { insist: at } | StopPhase::KillSent { give_up: at } => {
                at.saturating_duration_since(Instant::now())
            }
        }
    }

    fn handle_output(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.failed_pings = 0;
        let (marker, mut out, mut error) = (&mut self.marker, Vec::new(), Vec::new());
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let mut written = Ok(());
        self.frames.push(bytes, &mut |output, text| {
            let outcome = match output {
                ContainerStream::Out => {
                    out.clear();
                    marker.filter(text, &mut out);
                    stdout.lock().write_all(&out).and_then(|()| stdout.lock().flush())
                }
                ContainerStream::Error => {
                    error.clear();
                    error.extend_from_slice(text);
                    stderr.lock().write_all(&error)
                }
            };
            if outcome.is_err() {
                written = outcome;
            }
        })?;
        written?;
        if self.phase == Phase::Entrypoint
            && let Some(told) = self.marker.found()
        {
            self.phase = Phase::Script;
            self.chown_directories(&told);
            self.attached.write_last(script(self.plan).as_bytes());
        }
        Ok(())
    }

    /// Changes the owner of the job's files to the container's user.
    fn chown_directories(&self, told: &str) {
        let mut numbers = told.split_ascii_whitespace().map(|text| text.parse::<u32>().ok());
        let (Some(Some(user)), Some(Some(group))) = (numbers.next(), numbers.next()) else { return };
        if user == 0 {
            return;
        }
        let Some(chown) = &self.plan.chown else { return };
        for path in &chown.directories {
            if let Err(error) = safe_dirs::change_owner(&chown.root, path, user, group) {
                eprintln!(
                    "WARNING: cannot change the owner of all files in {} to {user}:{group}: {error}",
                    path.display()
                );
            }
        }
    }

    /// Without this check, a hanging engine would delay the job until its timeout.
    fn ping_engine(&mut self) -> io::Result<()> {
        match self.engine.ping(PING_TIMEOUT) {
            // An error response is also a sign of life.
            Ok(()) | Err(Error::Answer { .. }) => self.failed_pings = 0,
            Err(error) => {
                self.failed_pings += 1;
                if self.failed_pings >= PINGS_MAX {
                    self.engine_failure = Some(error);
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
        Ok(())
    }

    /// Sends SIGTERM to all processes in the container.
    fn send_term(&mut self) {
        let _ = self.signals.read_signal();
        self.stopping = StopPhase::TermSent { insist: Instant::now() + self.plan.grace };
        let (container, name) = (&self.plan.container, &self.plan.container.name);
        // The engine signals only the first process; `kill -1` reaches all others, unless the container shares the
        // machine's PID namespace.
        if container.has_own_processes && !container.native_stop {
            for user in ["0", ""] {
                let asked = self.engine.exec_detached(name, user, &["sh", "-c", "kill -s TERM -1"]);
                if asked.is_err_and(|error| error.is_unreachable()) {
                    return;
                }
            }
        }
        let _ = self.engine.kill_container(name, "TERM");
    }

    /// Sends SIGKILL after the grace period, and gives up if that does not help.
    fn enforce_stop(&mut self) -> io::Result<()> {
        let now = Instant::now();
        match self.stopping {
            StopPhase::TermSent { insist } if now >= insist => {
                self.stopping = StopPhase::KillSent { give_up: now + KILL_TIMEOUT };
                let _ = self.engine.kill_container(&self.plan.container.name, "KILL");
                Ok(())
            }
            StopPhase::KillSent { give_up } if now >= give_up => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the engine does not stop the container"))
            }
            _ => Ok(()),
        }
    }

    /// Derives the result from the end of the output.
    fn result(&mut self, end: io::Result<()>) -> Result<(), ScriptFailure> {
        if let Some(error) = self.engine_failure.take() {
            return Err(
                JobError::system(format!("{error}; the result of the script is unknown; run the job again")).into()
            );
        }
        let name = &self.plan.container.name;
        let (state, was_away) = match self.wait_for_end() {
            Ok(known) => known,
            Err(error) if self.stopping == StopPhase::No => return Err(ScriptFailure::of_engine(error)),
            // A script that is being stopped is not run again.
            Err(error) => return Err(ScriptFailure::Job(engine_error(error))),
        };
        if state.is_being_removed() && self.stopping == StopPhase::No {
            return Err(ScriptFailure::Vanished);
        }
        if state.running {
            let why = end.err().map_or_else(|| "its output ended".to_owned(), |error| error.to_string());
            let _ = self.engine.kill_container(name, "KILL");
            return Err(JobError::system(format!(
                "the connection to the job's container was lost while the script ran ({why}): was the container engine \
                 restarted? Run the job again"
            ))
            .into());
        }
        if self.stopping == StopPhase::No && (end.is_err() || was_away || self.was_stopped_by_others(&state)) {
            return Err(JobError::system(
                "the job's container was ended from outside: the container engine was stopped or restarted, or somebody \
                 stopped or removed the container; run the job again",
            )
            .into());
        }
        Ok(self.exit_result(&state)?)
    }

    /// Whether a signal ended it that neither the agent nor its own processes sent.
    fn was_stopped_by_others(&self, state: &ContainerState) -> bool {
        // A script that handles SIGTERM may exit with any status.
        let failed = state.exit_code != 0 && !state.oom_killed;
        failed && self.engine.was_signalled(&self.plan.container.name, self.began).unwrap_or(false)
    }

    /// The state after the end, and whether the engine was unreachable; waits for an engine that is restarting.
    fn wait_for_end(&self) -> Result<(ContainerState, bool), Error> {
        let name = &self.plan.container.name;
        let until = Instant::now() + RETURN_TIMEOUT;
        let mut was_away = false;
        loop {
            // The streams end shortly before the container does.
            let _ = self.engine.wait_container_for(name, Duration::from_secs(5));
            match self.engine.container(name) {
                Ok(container) => return Ok((self.wait_for_oom_event(container.state), was_away)),
                Err(error) if error.is_unreachable() && Instant::now() < until => {
                    was_away = true;
                    std::thread::sleep(Duration::from_millis(500));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The engine learns of exhausted memory and of the end separately, so the former may arrive later: a killed
    /// container with a memory limit is inspected again for a moment.
    fn wait_for_oom_event(&self, mut state: ContainerState) -> ContainerState {
        let until = Instant::now() + OOM_EVENT_TIMEOUT;
        let may_be = self.stopping == StopPhase::No && self.plan.container.memory_limit() > 0;
        while may_be
            && state.exit_code == EXIT_CODE_KILLED
            && !state.oom_killed
            && !state.running
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(50));
            match self.engine.container(&self.plan.container.name) {
                Ok(container) => state = container.state,
                Err(_) => break,
            }
        }
        state
    }

    fn exit_result(&self, state: &ContainerState) -> Result<(), JobError> {
        let code = i32::try_from(state.exit_code).unwrap_or(-1);
        let failed =
            |why: String| Err(JobError { reason: FailureReason::ScriptFailure, exit_code: Some(code), message: why });
        if state.oom_killed && code != 0 {
            let limit = match self.plan.container.memory_limit() {
                0 => String::new(),
                bytes => format!(" of {} MiB", bytes >> 20),
            };
            return failed(format!(
                "exit code {code}: a process was killed because the container's memory{limit} was used up; use less, or \
                 raise `memory` below [runners.docker]"
            ));
        }
        match (self.phase, code) {
            (Phase::Script, 0) => Ok(()),
            (Phase::Script, code) => failed(format!("exit code {code}")),
            (Phase::Entrypoint, code) if self.stopping == StopPhase::No => failed(format!(
                "exit code {code}: the container ended before the script began; the entrypoint of image {} must run the \
                 command it is given, and the image must have a shell (or set `image:entrypoint: [\"\"]`)",
                self.plan.container.image
            )),
            (Phase::Entrypoint, code) => failed(format!("exit code {code}")),
        }
    }
}

/// A command that reports the shell and its user before the script is sent.
fn prologue(marker: &str) -> String {
    format!("printf '\\036%s %s\\036\\n' {marker} \"$(id -u 2>/dev/null) $(id -g 2>/dev/null)\"\n")
}

fn script(plan: &ContainerScript) -> String {
    use crate::executor::shell::quote;
    let (output, error) = (quote(&plan.output_fifos.0), plan.output_fifos.1.as_deref().map(quote));
    let (opened, error) = match error {
        Some(error) => (format!("[ -p {output} ] && [ -w {output} ] && [ -p {error} ] && [ -w {error} ]"), error),
        None => (format!("[ -p {output} ] && [ -w {output} ]"), "&1".to_owned()),
    };
    let redirect = if error == "&1" { "2>&1".to_owned() } else { format!("2>{error}") };
    let merged = if error == "&1" { "exec 2>&1" } else { ":" };
    format!("if {opened}; then exec >{output} {redirect}; else {merged}; fi\n{}", plan.script)
}

/// Finds the marker in the output, in any pieces, and removes it.
struct MarkerFilter {
    begin: Vec<u8>,
    held: Vec<u8>,
    found: Option<String>,
    /// Whether the marker's line has been removed.
    over: bool,
}

impl MarkerFilter {
    fn new(marker: &str) -> Self {
        Self { begin: format!("\x1e{marker} ").into_bytes(), held: Vec::new(), found: None, over: false }
    }

    fn found(&self) -> Option<String> {
        self.found.clone()
    }

    /// Passes on everything that cannot be part of the marker.
    fn filter(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.over {
            out.extend_from_slice(bytes);
            return;
        }
        self.held.extend_from_slice(bytes);
        loop {
            let Some(at) = self.held.iter().position(|byte| *byte == 0x1e) else {
                out.append(&mut self.held);
                return;
            };
            out.extend(self.held.drain(..at));
            let known = self.held.len().min(self.begin.len());
            if self.held[..known] != self.begin[..known] {
                out.push(self.held.remove(0));
                continue;
            }
            let Some(end) = self.held.iter().position(|byte| *byte == b'\n') else { return };
            let line = String::from_utf8_lossy(&self.held[known..end]).into_owned();
            self.found = Some(line.trim_end_matches('\x1e').to_owned());
            self.over = true;
            self.held.drain(..=end);
            out.append(&mut self.held);
            return;
        }
    }
}

fn engine_error(error: Error) -> JobError {
    JobError::system(error.to_string())
}

/// Whether the engine did not find the shell or the entrypoint in the image.
fn lacks_program(error: &Error) -> bool {
    let text = error.to_string();
    text.contains("executable file not found") || text.contains("no such file or directory")
}

/// The failure if a container cannot be started: an image without a shell is the job's fault.
fn start_error(error: &Error, container: &PreparedContainer) -> JobError {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_and_hides_the_marker_in_any_pieces() {
        let text = b"banner \x1e of\x1emark-2 nothing\n\x1emark-1 1000 50\x1e\nfirst\x1emark-1 again\n";
        for cut in 0..text.len() {
            let (mut marker, mut out) = (MarkerFilter::new("mark-1"), Vec::new());
            marker.filter(&text[..cut], &mut out);
            marker.filter(&text[cut..], &mut out);
            assert_eq!(marker.found().as_deref(), Some("1000 50"));
            assert_eq!(out, b"banner \x1e of\x1emark-2 nothing\nfirst\x1emark-1 again\n", "{cut}");
        }
    }
}
