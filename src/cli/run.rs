//! `mayfly run`: polls for jobs and runs them until the agent shuts down.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::job_args::JobArgs;
use super::logging::LoggingArgs;
use super::start_failures::StartFailures;
use super::{ConfigFile, parse_listen_address};
use crate::agent;
use crate::config::duration;

/// The options of `run`.
#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    jobs: JobArgs,
    /// Serve metrics on this address, for example :9252
    #[arg(long, value_name = "ADDRESS", env = "LISTEN_ADDRESS", value_parser = parse_listen_address)]
    listen_address: Option<String>,
    /// Run one job, then shut down
    #[arg(long, conflicts_with = "max_builds")]
    once: bool,
    /// Shut down after this number of jobs
    #[arg(long, value_name = "JOBS")]
    max_builds: Option<u32>,
    /// Shut down after this time without a job, for example 10m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    idle_timeout: Option<Duration>,
    /// Shut down when the instance has run for this time, for example 24h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    max_age: Option<Duration>,
    /// Power the machine off if mayfly cannot start for this time under systemd, for example 30m
    #[arg(long, value_name = "TIME", value_parser = parse_duration, env = "GIVE_UP_AFTER")]
    give_up_after: Option<Duration>,
    /// Check that the agent can start with this configuration, then exit
    #[arg(long)]
    validate: bool,
}

/// Runs the agent. A start failure under systemd is reported and delayed by [`StartFailures`].
pub fn main(options: RunArgs, logging: &LoggingArgs) -> Result<ExitCode, String> {
    if options.validate {
        let loaded = options.file.load()?;
        return agent::validate(&options.agent_options()?, loaded).map(|()| ExitCode::SUCCESS);
    }
    let Some(failures) = StartFailures::detect_service() else { return run(options, logging) };
    let give_up_after = options.give_up_after.filter(|after| !after.is_zero());
    run(options, logging).or_else(|error| {
        failures.fail(&error, give_up_after);
        Ok(ExitCode::FAILURE)
    })
}

fn run(options: RunArgs, logging: &LoggingArgs) -> Result<ExitCode, String> {
    let loaded = options.file.load();
    logging.set_up(loaded.as_ref().ok().map(|loaded| &loaded.config));
    agent::run(options.agent_options()?, loaded)
}

impl RunArgs {
    /// Converts the options. Fails if the working directory does not exist.
    fn agent_options(&self) -> Result<agent::AgentOptions, String> {
        Ok(agent::AgentOptions {
            config: self.file.path(),
            user: self.jobs.user.clone(),
            max_builds: if self.once { Some(1) } else { self.max_builds.filter(|builds| *builds > 0) },
            idle_timeout: self.idle_timeout,
            max_age: self.max_age.filter(|age| !age.is_zero()),
            listen_address: self.listen_address.clone(),
            working_directory: self.jobs.working_directory()?,
        })
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| format!("`{text}` is not a duration; write for example 90s or 10m"))
}
