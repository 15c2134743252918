//! Starts the agent. The agent first resumes the jobs and the shutdown of an earlier agent, then applies the
//! configuration.
//!
//! The record of a job in the journal contains all that the agent needs to resume and report the job. So the agent does
//! this even if the configuration is not usable or a token cannot be fetched. Polling starts when both are available.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;

use super::reload::FetchReason;
use super::signals::StartPhase;
use super::{Agent, AgentEvent, AgentOptions, hand_over, job_manager, shutdown, signals, start_checks, watch};
use crate::config::{self, Config, LoadedConfig, carried};
use crate::instance::aws::secrets;
use crate::journal;
use crate::journal::shutdown as shutdown_state;

/// Runs the agent until it shuts down. `loaded` is the configuration, or why it is not usable. Errors: why the agent
/// cannot start, and what to do.
pub fn run(options: AgentOptions, loaded: Result<LoadedConfig, String>) -> Result<ExitCode, String> {
    let service_manager = super::ServiceManager::from_environment();
    let (mut config, loaded) = match loaded {
        Ok(loaded) => (loaded.config.clone(), Ok(loaded)),
        Err(why) => (settings_to_finish_with(&options.config).ok_or_else(|| why.clone())?, Err(why)),
    };
    let state = state_dir_with_jobs(&config);
    let unusable = |error: std::io::Error| {
        format!("the state directory {} cannot be used: {error}; set `state_dir` below [mayfly]", state.display())
    };
    job_manager::prepare_state(&state).map_err(unusable)?;
    let _lock = lock(&state)?;
    if let Err(error) = carried::remember_state_dir(&options.config, &state) {
        log::debug!(
            "cannot record the state directory beside the configuration path={} error={error}",
            options.config.display()
        );
    }
    let predecessor = hand_over::predecessor(&state);
    let (events, inbox) = mpsc::channel();
    let (on_signal, on_change) = (events.clone(), events.clone());
    let start = StartPhase::begin(service_manager.exit_notifier());
    if has_work(&state) {
        start.end();
    }
    signals::listen(&start, move |request| on_signal.send(AgentEvent::Signal(request)).is_ok())
        .map_err(|error| format!("signals cannot be handled: {error}"))?;
    watch::watch(&options.config, move || on_change.send(AgentEvent::ConfigurationChanged).is_ok());
    let instance = start_checks::find_instance(&config)?;
    config.leave.apply_default(instance.default_leave());
    let earlier = shutdown::load_shutdown(&state, &*instance, config.leave.strategy);
    let mut agent = Agent::new(instance, options, &config, state, service_manager, (events, inbox));
    if let Some(earlier) = earlier {
        agent.resume_shutdown(earlier);
    }
    agent.recover(&config, predecessor);
    agent.watch_instance();
    agent.start_with(loaded, &start)?;
    start.end();
    agent.run_loop()
}

/// The settings of an agent whose configuration is not usable; `None` if an earlier agent left no work to finish.
fn settings_to_finish_with(path: &Path) -> Option<Config> {
    let settings = carried::last_settings(path).ok()?;
    let state = config::state_dir(&settings);
    has_work(&state).then_some(settings)
}

/// Whether a state directory has jobs to finish or a shutdown to resume.
fn has_work(state: &Path) -> bool {
    !journal::slots(state).is_empty() || shutdown_state::path(state).exists()
}

/// The state directory to use: that of the last agent while it has work, otherwise that of the configuration. An
/// operator may have changed or emptied the configuration file while a job ran.
fn state_dir_with_jobs(config: &Config) -> PathBuf {
    let configured = config::state_dir(config);
    let absolute = std::path::absolute(&configured).unwrap_or_else(|_| configured.clone());
    match carried::remembered_state_dir(&config.path).filter(|last| *last != absolute && has_work(last)) {
        Some(last) => {
            log::warn!(
                "state_dir has changed, but the old directory has jobs; using it until the agent restarts without them \
                 configured={} in_use={}",
                configured.display(),
                last.display()
            );
            last
        }
        None => configured,
    }
}

impl Agent {
    /// Starts with the configuration, or without one if there are jobs to finish or a shutdown to resume. Errors: the
    /// configuration is not usable, and there is no work to finish.
    fn start_with(&mut self, loaded: Result<LoadedConfig, String>, start: &StartPhase) -> Result<(), String> {
        let must_finish = self.slots.jobs() > 0 || self.shutdown.is_some();
        let adopted = match loaded {
            Ok(loaded) if loaded.config.has_stored_tokens() && must_finish => {
                // Resumed jobs do not wait for AWS.
                self.await_configuration("the runner tokens are being fetched".to_owned());
                self.fetch_tokens(loaded, FetchReason::Reload);
                return Ok(());
            }
            Ok(mut loaded) => {
                secrets::fetch_tokens(&mut loaded.config, secrets::FETCH_TIMEOUT).and_then(|()| {
                    // Polling starts here.
                    start.end();
                    self.adopt_configuration(loaded)
                })
            }
            Err(why) => Err(why),
        };
        match adopted {
            Err(why) if must_finish => {
                log::error!(
                    "the configuration cannot be used; finishing the jobs of the journal, polling is stopped running={} \
                     error={why}",
                    self.slots.jobs()
                );
                self.await_configuration(why);
                Ok(())
            }
            adopted => adopted,
        }
    }
}

/// Locks the state directory and the file `lock` in it: two agents with the same state directory would run the same
/// jobs. Errors: another agent holds a lock.
fn lock(state: &Path) -> Result<(File, Option<File>), String> {
    let path = state.join("lock");
    let unusable = |error: std::io::Error| format!("{}: {error}", path.display());
    let taken = || {
        format!("another mayfly runs with the state directory {}; stop it, or set another `state_dir`", state.display())
    };
    let directory = File::open(state).map_err(unusable)?;
    directory.try_lock().map_err(|_| taken())?;
    match File::create(&path) {
        Ok(file) => file.try_lock().map_err(|_| taken()).map(|()| (directory, Some(file))),
        // A file system without a free inode must not keep the agent from resuming jobs and from reporting the problem.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Ok((directory, None))
        }
        Err(error) => Err(unusable(error)),
    }
}
