//! Runs a script whose container has started: sends the script, relays the output, stops the script on SIGTERM.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signalfd::SignalFd;

use super::super::engine::attached::{Attached, ContainerStream, FrameReader};
use super::super::engine::{DockerEngine, DockerError};
use super::super::retry::StopRequest;
use super::super::safe_dirs;
use super::marker::MarkerFilter;
use super::result::{EndedScript, ScriptPhase};
use super::{ContainerScript, PING_TIMEOUT, shell};
use crate::http::upgraded::ReadEvent;

/// The buffer size for reading from the engine.
const READ_SIZE: usize = 256 * 1024;
/// The engine is pinged after this time without output.
const PING_AFTER_SILENCE: Duration = Duration::from_secs(20);
/// The engine is pinged again after this time if it did not respond.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// The agent gives up on the engine after this number of pings without a response.
const MAX_FAILED_PINGS: u32 = 3;
/// The time limit for an engine to end a container after a kill.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);

/// The progress of stopping a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopPhase {
    NotStopping,
    TermSent { kill_at: Instant },
    KillSent { give_up_at: Instant },
}

/// A running script, and the connection to its container.
pub struct ScriptRun<'a> {
    plan: &'a ContainerScript,
    engine: &'a DockerEngine,
    attached: Attached,
    signals: &'a SignalFd,
    frames: FrameReader,
    marker: MarkerFilter,
    phase: ScriptPhase,
    stopping: StopPhase,
    /// Consecutive pings without a response.
    failed_pings: u32,
    /// The error of the last ping, if the agent has given up on the engine.
    engine_failure: Option<DockerError>,
    began: SystemTime,
}

impl<'a> ScriptRun<'a> {
    pub fn new(
        plan: &'a ContainerScript,
        engine: &'a DockerEngine,
        mut attached: Attached,
        signals: &'a SignalFd,
    ) -> Self {
        attached.write(shell::prologue(&plan.start_marker).as_bytes());
        Self {
            plan,
            engine,
            attached,
            signals,
            frames: FrameReader::default(),
            marker: MarkerFilter::new(&plan.start_marker),
            phase: ScriptPhase::Entrypoint,
            stopping: StopPhase::NotStopping,
            failed_pings: 0,
            engine_failure: None,
            began: SystemTime::now(),
        }
    }

    /// Relays output until the container ends, the connection breaks, or the agent gives up on the engine.
    pub fn relay_output(mut self) -> EndedScript<'a> {
        let output = self.try_relay();
        EndedScript {
            plan: self.plan,
            engine: self.engine,
            stop: StopRequest::Readable(self.signals.as_fd()),
            phase: self.phase,
            was_stopped: self.stopping != StopPhase::NotStopping,
            engine_failure: self.engine_failure,
            began: self.began,
            output,
        }
    }

    /// Fails if the connection breaks or the agent gives up on the engine.
    fn try_relay(&mut self) -> io::Result<()> {
        let mut block = vec![0; READ_SIZE];
        loop {
            let wake = (self.stopping == StopPhase::NotStopping).then(|| self.signals.as_fd());
            match self.attached.read(&mut block, wake, Some(self.read_timeout()))? {
                ReadEvent::Bytes(length) => self.handle_output(&block[..length])?,
                ReadEvent::End => return Ok(()),
                ReadEvent::Woken => self.send_term(),
                ReadEvent::TimedOut if self.stopping == StopPhase::NotStopping => self.ping_engine()?,
                ReadEvent::TimedOut => {}
            }
            self.enforce_stop()?;
        }
    }

    fn read_timeout(&self) -> Duration {
        match self.stopping {
            StopPhase::NotStopping if self.failed_pings == 0 => PING_AFTER_SILENCE,
            StopPhase::NotStopping => PING_INTERVAL,
            StopPhase::TermSent { kill_at: at } | StopPhase::KillSent { give_up_at: at } => {
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
        if self.phase == ScriptPhase::Entrypoint
            && let Some(ids) = self.marker.found()
        {
            self.phase = ScriptPhase::Script;
            self.send_script(&ids);
        }
        Ok(())
    }

    /// Sends the script to the shell, which has started. If the agent has stopped the script meanwhile, the shell gets no
    /// input: the first process of a container ignores SIGTERM until the script sets a trap, so the script would run
    /// until SIGKILL.
    fn send_script(&mut self, ids: &str) {
        if self.stopping != StopPhase::NotStopping {
            return self.attached.write_last(b"");
        }
        self.chown_directories(ids);
        self.attached.write_last(shell::script(self.plan).as_bytes());
    }

    /// Changes the owner of the job's files to the container's user; `ids` is the output of the prologue.
    fn chown_directories(&self, ids: &str) {
        let mut numbers = ids.split_ascii_whitespace().map(|text| text.parse::<u32>().ok());
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

    /// Pings the engine. Without this check, a hanging engine would delay the job until its timeout. Fails when the
    /// agent gives up on the engine.
    fn ping_engine(&mut self) -> io::Result<()> {
        match self.engine.ping(PING_TIMEOUT) {
            // An error response also shows that the engine responds.
            Ok(()) | Err(DockerError::ErrorResponse { .. }) => self.failed_pings = 0,
            Err(error) => {
                self.failed_pings += 1;
                if self.failed_pings >= MAX_FAILED_PINGS {
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
        self.stopping = StopPhase::TermSent { kill_at: Instant::now() + self.plan.grace };
        let (container, name) = (&self.plan.container, &self.plan.container.name);
        // The engine signals only the first process; `kill -1` reaches all others, unless the container shares the
        // machine's PID namespace.
        if container.has_own_processes && !container.native_stop {
            for user in ["0", ""] {
                let sent = self.engine.exec_detached(name, user, &["sh", "-c", "kill -s TERM -1"]);
                if sent.is_err_and(|error| error.is_unreachable()) {
                    return;
                }
            }
        }
        let _ = self.engine.kill_container(name, "TERM");
    }

    /// Sends SIGKILL after the grace period. Fails if the container still runs [`KILL_TIMEOUT`] later.
    fn enforce_stop(&mut self) -> io::Result<()> {
        let now = Instant::now();
        match self.stopping {
            StopPhase::TermSent { kill_at } if now >= kill_at => {
                self.stopping = StopPhase::KillSent { give_up_at: now + KILL_TIMEOUT };
                let _ = self.engine.kill_container(&self.plan.container.name, "KILL");
                Ok(())
            }
            StopPhase::KillSent { give_up_at } if now >= give_up_at => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the engine does not stop the container"))
            }
            _ => Ok(()),
        }
    }
}
