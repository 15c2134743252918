//! Validates whether an agent can start with a configuration (`mayfly run --validate`); the running agent calls it
//! before a hand-over.

use std::fs::File;

use super::runner_setup::executor_of;
use super::{AgentOptions, gitlab, job_manager, metadata_blocking, start_checks};
use crate::config::{self, LoadedConfig, Severity};
use crate::executor::cgroup::CgroupParents;
use crate::executor::docker::names::ContainerOwner;
use crate::executor::docker::removal::ContainerRemovals;
use crate::instance::aws::secrets;
use crate::instance::metadata_block::check_tool;

/// Checks everything that could prevent an agent from polling with this configuration. The only change is that it
/// creates the state directory. Skips the resources of the running agent: the lock of the state directory, and the
/// address of the metrics listener. Errors: why the agent cannot start.
pub fn validate(options: &AgentOptions, mut loaded: LoadedConfig) -> Result<(), String> {
    if let Some(unusable) = loaded.findings.iter().find(|finding| finding.severity == Severity::UnusableRunner) {
        log::warn!("problem in the configuration path={} problem={unusable}", loaded.config.path.display());
    }
    let config = &mut loaded.config;
    let state = config::state_dir(config);
    job_manager::prepare_state(&state)
        .and_then(|()| File::options().create(true).append(true).open(state.join("lock")).map(drop))
        .map_err(|error| format!("the state directory {} cannot be used: {error}; set `state_dir`", state.display()))?;
    start_checks::find_instance(config)?;
    secrets::fetch_tokens(config, secrets::COMMAND_FETCH_TIMEOUT)?;
    if config.mayfly.block_instance_metadata {
        metadata_blocking::job_users(config, options.user.as_deref())?;
        check_tool().map_err(|why| format!("`block_instance_metadata`: {why}"))?;
    }
    start_checks::check_listener(options.listen_address.as_deref(), config, &state)?;
    let user = options.user.as_deref().or(config.user.as_deref());
    let owner = ContainerOwner {
        instance: String::new(),
        state: config::state_dir(config).display().to_string(),
        agent_run: String::new(),
    };
    for runner in &config.runners {
        gitlab(config, runner)?;
        let containers = (owner.clone(), ContainerRemovals::default());
        executor_of(runner, user, config.concurrent, CgroupParents::default(), containers)
            .map_err(|why| format!("runner `{}`: {why}", runner.name))?;
    }
    Ok(())
}
