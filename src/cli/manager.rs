//! `manager`: a fleet that scales from zero, and what it would do.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::simulate;

/// What `manager` takes.
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: ManagerCommand,
}

#[derive(Subcommand)]
enum ManagerCommand {
    /// Show what the fleet of a configuration would do over a day, without any instance
    Simulate(simulate::Options),
}

/// Runs the manager or one of its subcommands.
pub fn main(options: &Options) -> Result<ExitCode, String> {
    match &options.command {
        ManagerCommand::Simulate(options) => simulate::main(options),
    }
}
