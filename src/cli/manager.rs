//! `mayfly manager`: a fleet that scales from zero.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::logging::LoggingArgs;
use super::{ConfigFile, parse_listen_address, simulate};
use crate::config::{Config, Role};
use crate::manager;

/// The options of `manager`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ManagerArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Serve the status page and metrics on this address, for example :9252
    #[arg(long, value_name = "ADDRESS", env = "LISTEN_ADDRESS", value_parser = parse_listen_address)]
    listen_address: Option<String>,
    /// Check that the manager can start with this configuration, then exit
    #[arg(long)]
    validate: bool,
    #[command(subcommand)]
    command: Option<ManagerCommand>,
}

#[derive(Subcommand)]
enum ManagerCommand {
    /// Simulate a day of the pools in a configuration, without starting an instance
    Simulate(simulate::SimulateArgs),
}

/// Runs the manager or one of its subcommands.
pub fn main(options: ManagerArgs, logging: &LoggingArgs) -> Result<ExitCode, String> {
    if let Some(ManagerCommand::Simulate(options)) = &options.command {
        return simulate::main(options);
    }
    let path = options.file.path();
    let loaded = Config::load_as(&path, Role::Manager).map_err(|error| error.to_string())?;
    let is_validation = options.validate;
    let options = manager::ManagerOptions { config: path, listen_address: options.listen_address };
    if is_validation {
        return manager::validate(&options, loaded).map(|()| ExitCode::SUCCESS);
    }
    logging.set_up(Some(&loaded.config));
    manager::run(options, loaded)
}
