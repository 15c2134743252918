//! The hand-over (SIGUSR2): the program file on disk replaces the process, and resumes the jobs from the journal.
//!
//! The new program first validates the configuration. If that fails, the agent keeps running: otherwise an invalid file
//! would end a working agent at an upgrade.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use super::signals::{self, SignalRequest};
use super::{Agent, AgentEvent, STACK};
use crate::config::{self, Config};
use crate::journal::Predecessor;
use crate::sync;
use crate::sys;
use crate::timed_child;

/// Timeout of the validation, which also fetches tokens.
const VALIDATION_TIMEOUT: Duration = Duration::from_secs(60);

/// The file in the state directory that identifies the process which handed over.
const MARKER_FILE: &str = "handed-over";

/// The state of a hand-over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum HandOver {
    /// No hand-over was requested.
    #[default]
    None,
    /// The new program validates the configuration.
    Validating,
}

/// How the earlier agent ended. The first call removes the marker file.
pub(super) fn predecessor(state: &Path) -> Predecessor {
    let marker = state.join(MARKER_FILE);
    let text = fs::read_to_string(&marker).unwrap_or_default();
    let _ = fs::remove_file(&marker);
    // exec keeps the process id and the start time, so they are equal if the predecessor handed over.
    match !text.is_empty() && Some(text) == process() {
        true => Predecessor::HandedOver,
        false => Predecessor::Ended,
    }
}

/// Identifies this process until the machine reboots.
fn process() -> Option<String> {
    let pid = std::process::id();
    Some(format!("{pid} {}", sys::start_time(pid.cast_signed())?))
}

fn write_marker(state: &Path) {
    let written = process().map_or(Ok(()), |process| fs::write(state.join(MARKER_FILE), process));
    if let Err(error) = written {
        log::warn!("cannot record the hand-over; the new program counts it as a crash of the agent error={error}");
    }
}

/// Path of the program that this process was started from; an upgrade may have replaced the file.
pub fn program() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let text = program.display().to_string();
    text.strip_suffix(" (deleted)").map(PathBuf::from).unwrap_or(program)
}

impl Agent {
    /// Starts the validation by the new program.
    pub(super) fn prepare_hand_over(&mut self) {
        // The new program would not know about the shutdown.
        if let Some(shutdown) = &self.shutdown {
            log::info!(
                "no hand-over during a shutdown; the next start uses the new program reason={}",
                shutdown.reason()
            );
            return;
        }
        if self.hand_over == HandOver::Validating {
            return;
        }
        let events = self.events.clone();
        let validate = move || {
            let _ = events.send(AgentEvent::NewProgramValidated(validate(&program())));
        };
        match sync::spawn("validate", STACK, validate) {
            Ok(_) => self.hand_over = HandOver::Validating,
            Err(error) => {
                log::error!("hand-over refused: cannot start the thread that validates the new program error={error}")
            }
        }
    }

    /// Replaces this process by the program file on disk, unless the program cannot start. Jobs keep running under
    /// their shims, and the new program resumes them from the journal, as after a crash. The agent waits for requests
    /// in flight first, because each may bring a job.
    pub(super) fn hand_over(&mut self, validated: Result<(), String>) -> Option<ExitCode> {
        self.hand_over = HandOver::None;
        if self.shutdown.is_some() {
            return None;
        }
        let refusal = match (validated, self.changed_state_dir()) {
            // A changed `state_dir` is reported first, because it may have caused the error of the validation.
            (_, Ok(Some(why))) | (Err(why), _) | (Ok(()), Err(why)) => Some(why),
            (Ok(()), Ok(None)) => None,
        };
        if let Some(why) = refusal {
            log::error!(
                "hand-over refused: the new program cannot start with this configuration; continuing with the old one \
                 path={} error={why}",
                program().display()
            );
            return None;
        }
        log::info!("handing over to the new program on disk running={}", self.slots.jobs());
        self.pollers.stop(&self.slots);
        self.managed_jobs_of_all().for_each(|jobs| jobs.end_readiness_waits());
        self.service_manager.reloading();
        let mut postponed = Vec::new();
        loop {
            let waits = self.slots.requests() > 0 || self.rotation.is_running();
            // The new program would not receive the notices and signals that have arrived, so they are handled now.
            let event = if waits { self.next_event(None).ok() } else { self.inbox.try_recv().ok() };
            match event {
                Some(AgentEvent::Notice(notice)) => self.handle_notice(notice),
                // A stop signal cancels the hand-over.
                Some(event @ AgentEvent::Signal(SignalRequest::Drain | SignalRequest::Stop)) => {
                    self.managed_jobs_of_all().for_each(|jobs| jobs.allow_readiness_waits());
                    self.service_manager.ready();
                    self.deliver(postponed);
                    return self.handle_event(event);
                }
                // This agent loads the configuration again if it cannot start the new program.
                Some(AgentEvent::ConfigurationChanged | AgentEvent::Signal(SignalRequest::Reload)) => {}
                Some(event) => postponed.push(event),
                None if !waits => break,
                None => {}
            }
        }
        let program = program();
        let mut next = Command::new(&program);
        next.args(std::env::args_os().skip(1)).envs(self.service_manager.variables());
        write_marker(&self.state_dir);
        let error = sys::exec_with_blocked(next, signals::handled());
        let _ = fs::remove_file(self.state_dir.join(MARKER_FILE));
        log::error!(
            "cannot start the new program on disk; continuing with this one path={} error={error}",
            program.display()
        );
        self.managed_jobs_of_all().for_each(|jobs| jobs.allow_readiness_waits());
        self.service_manager.ready();
        self.deliver(postponed);
        self.reload();
        None
    }

    /// Delivers the events that arrived during a hand-over which did not take place.
    fn deliver(&self, postponed: Vec<AgentEvent>) {
        for event in postponed {
            // The agent holds the receiver itself, so the channel is never disconnected.
            let _ = self.events.send(event);
        }
    }
}

impl Agent {
    /// Why the new program would not find the jobs: `state_dir` has changed since this agent started. Errors: the file
    /// cannot be loaded.
    fn changed_state_dir(&self) -> Result<Option<String>, String> {
        let loaded = Config::load(&self.options.config).map_err(|error| error.to_string())?;
        let next = config::state_dir(&loaded.config);
        match next == self.state_dir {
            true => Ok(None),
            false => Ok(Some(format!(
                "`state_dir` is now {}, but the jobs are in {}; restart the agent when it has no jobs",
                next.display(),
                self.state_dir.display()
            ))),
        }
    }
}

/// Runs `program` with the arguments of this process and `--validate`. Errors: why the program cannot start.
pub fn validate(program: &Path) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).arg("--validate");
    let output = timed_child::output(&mut command, VALIDATION_TIMEOUT)?;
    if output.status.success() {
        return Ok(());
    }
    let printed = output.stderr.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("; ");
    Err(if printed.is_empty() { output.status.to_string() } else { printed.trim_start_matches("mayfly: ").to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_became_another_program_is_distinguished_from_one_that_died() {
        let state = tempfile::tempdir().expect("a directory");
        assert_eq!(predecessor(state.path()), Predecessor::Ended);
        write_marker(state.path());
        assert_eq!(predecessor(state.path()), Predecessor::HandedOver);
        assert_eq!(predecessor(state.path()), Predecessor::Ended, "the marker counts once");
        fs::write(state.path().join(MARKER_FILE), "1 1").expect("write the file");
        assert_eq!(predecessor(state.path()), Predecessor::Ended, "the marker of another process");
    }

    #[test]
    fn the_reason_why_a_program_cannot_start_is_returned() {
        assert_eq!(validate(Path::new("/bin/true")), Ok(()));
        assert_eq!(validate(Path::new("/bin/false")), Err("exit status: 1".to_owned()));
        assert!(
            validate(Path::new("/nonexistent"))
                .expect_err("a missing program must be refused")
                .contains("cannot be started")
        );
    }
}
