//! The result of a script, from the state of its container and the events of the engine.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use super::super::engine::containers::ContainerState;
use super::super::engine::{DockerEngine, DockerError};
use super::super::retry::StopRequest;
use super::{ContainerScript, RETURN_CHECK_INTERVAL, RETURN_TIMEOUT, ScriptFailure, engine_error};
use crate::failure::{FailureReason, JobError};
use crate::sync;

/// How long after the end of a process the engine may report that memory ran out.
const OOM_EVENT_TIMEOUT: Duration = Duration::from_secs(2);
const OOM_EVENT_INTERVAL: Duration = Duration::from_millis(50);
/// The exit status of a process killed by SIGKILL.
const EXIT_CODE_KILLED: i64 = 128 + 9;

/// The phase of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScriptPhase {
    /// The image's entrypoint has not started the shell yet.
    Entrypoint,
    /// The script runs.
    Script,
}

/// A script whose output has ended.
pub struct EndedScript<'a> {
    pub plan: &'a ContainerScript,
    pub engine: &'a DockerEngine,
    pub stop: StopRequest<'a>,
    pub phase: ScriptPhase,
    /// Whether the agent stopped the script.
    pub was_stopped: bool,
    /// The error of the last ping, if the agent has given up on the engine.
    pub engine_failure: Option<DockerError>,
    pub began: SystemTime,
    /// The error that ended the output, if the connection broke.
    pub output: io::Result<()>,
}

impl EndedScript<'_> {
    /// Waits for the end of the container and determines the result. Fails if the script failed, or if its result is
    /// unknown.
    pub fn result(&self) -> Result<(), ScriptFailure> {
        if let Some(error) = &self.engine_failure {
            return Err(
                JobError::system(format!("{error}; the result of the script is unknown; run the job again")).into()
            );
        }
        let name = &self.plan.container.name;
        let (state, was_away) = match self.wait_for_end() {
            Ok(known) => known,
            Err(error) if !self.was_stopped => return Err(ScriptFailure::of_engine(error)),
            // The agent stopped this script, so it must not run again.
            Err(error) => return Err(ScriptFailure::Job(engine_error(error))),
        };
        if state.is_being_removed() && !self.was_stopped {
            return Err(ScriptFailure::Vanished);
        }
        if state.running {
            let why =
                self.output.as_ref().err().map_or_else(|| "its output ended".to_owned(), |error| error.to_string());
            let _ = self.engine.kill_container(name, "KILL");
            return Err(JobError::system(format!(
                "the connection to the job's container was lost while the script ran ({why}): the container engine \
                 may have been restarted; run the job again"
            ))
            .into());
        }
        if !self.was_stopped && (self.output.is_err() || was_away || self.was_stopped_by_others(&state)) {
            return Err(JobError::system(
                "the job's container ended before its script: the container engine was stopped or restarted, or \
                 another program stopped or removed the container; run the job again",
            )
            .into());
        }
        Ok(self.exit_result(&state)?)
    }

    /// Whether a signal that neither the agent nor a process of the job sent ended the script.
    fn was_stopped_by_others(&self, state: &ContainerState) -> bool {
        // A script that handles SIGTERM may exit with any status.
        let failed = state.exit_code != 0 && !state.oom_killed;
        failed && self.engine.was_signalled(&self.plan.container.name, self.began).unwrap_or(false)
    }

    /// The state of the container after its end, and whether the engine was unreachable. Waits for an engine that is
    /// restarting, unless the job must stop.
    fn wait_for_end(&self) -> Result<(ContainerState, bool), DockerError> {
        let name = &self.plan.container.name;
        let (until, mut was_away) = (Instant::now() + RETURN_TIMEOUT, false);
        loop {
            // The streams end shortly before the container does.
            let _ = self.engine.wait_container_for(name, Duration::from_secs(5));
            let found = self.engine.container(name);
            let is_away = found.as_ref().is_err_and(DockerError::is_unreachable);
            was_away |= is_away;
            if !is_away || Instant::now() >= until || self.stop.arrives_within(RETURN_CHECK_INTERVAL) {
                return Ok((self.wait_for_oom_event(found?.state), was_away));
            }
        }
    }

    /// The engine may report exhausted memory later than the end of the container. So this function inspects a killed
    /// container with a memory limit again, for at most [`OOM_EVENT_TIMEOUT`].
    fn wait_for_oom_event(&self, mut state: ContainerState) -> ContainerState {
        let may_be_oom = !self.was_stopped && self.plan.container.memory_limit() > 0;
        sync::try_until(OOM_EVENT_TIMEOUT, OOM_EVENT_INTERVAL, || {
            if !may_be_oom || state.exit_code != EXIT_CODE_KILLED || state.oom_killed || state.running {
                return Some(());
            }
            match self.engine.container(&self.plan.container.name) {
                Ok(container) => state = container.state,
                Err(_) => return Some(()),
            }
            None
        });
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
                "exit code {code}: a process was killed because the container's memory{limit} was used up; use less, \
                 or raise `memory` below [runners.docker]"
            ));
        }
        match (self.phase, code) {
            (ScriptPhase::Script, 0) => Ok(()),
            (ScriptPhase::Script, code) => failed(format!("exit code {code}")),
            (ScriptPhase::Entrypoint, code) if !self.was_stopped => failed(format!(
                "exit code {code}: the container ended before the script began; the entrypoint of image {} must run \
                 the command it is given, and the image must have a shell (or set `image:entrypoint: [\"\"]`)",
                self.plan.container.image
            )),
            (ScriptPhase::Entrypoint, code) => failed(format!("exit code {code}")),
        }
    }
}
