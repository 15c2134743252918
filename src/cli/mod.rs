//! The command line: one file per subcommand. Names follow gitlab-runner where it has an equivalent.
//!
//! A subcommand reads its options and prints results. It never runs a job itself: `agent`, `manager` and `local` do.

mod check;
mod check_pools;
mod exec;
mod job_args;
mod lint;
mod logging;
mod manage;
mod manager;
mod output;
mod permission;
mod register;
mod report;
mod run;
mod simulate;
mod start_failures;
mod status;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::{self, ExitCode};

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{self, Config, LoadedConfig, Role};
use crate::instance::aws::secrets;
use crate::instance::{self, Requirement};
use crate::job::agent_task;
use crate::local::guard;
use crate::monitor::address::check_address;
use crate::shim;
use crate::token::Token;

/// The version and the git revision of the build.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("MAYFLY_REVISION"), ")");

/// A CI agent for instances: polls GitLab for jobs and runs them on this machine.
#[derive(Parser)]
#[command(name = "mayfly", version = VERSION, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    logging: logging::LoggingArgs,
    #[command(subcommand)]
    command: Command,
}

/// The subcommand for local pipelines.
const EXEC: &str = "exec";

/// The instance id, if this machine is an instance of a supported cloud.
fn cloud_id(config: &Config) -> Option<String> {
    instance::find(config.mayfly.aws.as_ref(), Requirement::Nothing).ok()?.cloud_id()
}

#[derive(Subcommand)]
enum Command {
    /// Poll GitLab for jobs and run them
    Run(run::RunArgs),
    #[command(about = exec::ABOUT)]
    Exec(Box<exec::ExecArgs>),
    /// Add a runner to the configuration
    Register(Box<register::RegisterArgs>),
    /// Verify the tokens of the runners with GitLab
    Verify(manage::VerifyArgs),
    /// Unregister runners from GitLab and remove them from the configuration
    Unregister(manage::UnregisterArgs),
    /// List the runners of the configuration
    List(ConfigFile),
    /// Replace the token of a runner
    ResetToken(manage::ResetTokenArgs),
    /// Scale a fleet from zero: hand jobs of GitLab to agents on instances, and size their group
    Manager(Box<manager::ManagerArgs>),
    /// Show what the agent or the manager on this machine does
    Status(status::StatusArgs),
    /// Check that jobs can run on this machine; report each problem with its remedy
    Check(check::CheckArgs),
    /// Check the configuration file; fail on unknown keys and unusable runners
    Lint(ConfigFile),
}

/// Selects the configuration.
#[derive(Args, Clone, Debug)]
struct ConfigFile {
    /// The configuration file [default: /etc/mayfly/config.toml for root, else ~/.mayfly/config.toml]
    #[arg(short, long, value_name = "FILE", env = "CONFIG_FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn path(&self) -> PathBuf {
        let given = self.config.clone().filter(|path| !path.as_os_str().is_empty());
        let path = given.unwrap_or_else(config::default_path);
        std::path::absolute(&path).unwrap_or(path)
    }

    fn load(&self) -> Result<LoadedConfig, String> {
        Config::load(&self.path()).map_err(|error| error.to_string())
    }

    /// Loads the configuration; as a manager loads it, if the file has `[mayfly.manager]`.
    fn load_for_role(&self) -> Result<LoadedConfig, String> {
        let loaded = self.load()?;
        match loaded.config.mayfly.manager {
            None => Ok(loaded),
            Some(_) => Config::load_as(&self.path(), Role::Manager).map_err(|error| error.to_string()),
        }
    }

    /// The configuration, including tokens that are stored in AWS.
    fn load_with_tokens(&self) -> Result<Config, String> {
        let mut config = self.load()?.config;
        secrets::fetch_tokens(&mut config, secrets::COMMAND_FETCH_TIMEOUT)?;
        Ok(config)
    }
}

/// Parses the arguments and runs the subcommand.
pub fn main() -> ExitCode {
    // A shim is started for every step; parsing arguments with clap would slow it down.
    if std::env::args_os().nth(1).is_some_and(|word| word == "shim") {
        return shim::main(agent_task::run);
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == guard::SUBCOMMAND) {
        return guard::main();
    }
    let cli = parse();
    cli.logging.set_up(None);
    dispatch(cli).unwrap_or_else(|why| {
        eprintln!("mayfly: {why}");
        ExitCode::FAILURE
    })
}

fn dispatch(cli: Cli) -> Result<ExitCode, String> {
    match cli.command {
        Command::Run(options) => run::main(options, &cli.logging),
        Command::Exec(options) => exec::main(&options),
        Command::Register(options) => register::main(&options),
        Command::Verify(options) => manage::verify(&options),
        Command::Unregister(options) => manage::unregister(&options),
        Command::List(file) => manage::list(&file),
        Command::ResetToken(options) => manage::reset_token(&options),
        Command::Manager(options) => manager::main(*options, &cli.logging),
        Command::Status(options) => status::main(&options),
        Command::Check(options) => check::main(&options),
        Command::Lint(file) => lint::main(&file),
    }
}

fn parse() -> Cli {
    // Developers wait for `exec`, and describing all other subcommands takes as long as planning 30 jobs.
    if std::env::args_os().nth(1).is_some_and(|word| word == EXEC) {
        return from_matches(&matches_or_exit(command_for_exec()));
    }
    let matches = matches_or_exit(command());
    if let Some(why) = matches.subcommand_matches("register").and_then(register::conflict) {
        command().error(ErrorKind::ArgumentConflict, why).exit();
    }
    from_matches(&matches)
}

/// Parses the arguments of the process. Exits after an invalid argument, and after the output of `--help` or
/// `--version`; clap itself would ignore that standard output cannot be written.
fn matches_or_exit(command: clap::Command) -> ArgMatches {
    command.try_get_matches().unwrap_or_else(|error| {
        if error.use_stderr() {
            error.exit();
        }
        output::write(format_args!("{}", error.render()));
        process::exit(0)
    })
}

fn from_matches(matches: &ArgMatches) -> Cli {
    Cli::from_arg_matches(matches).unwrap_or_else(|error| error.format(&mut command()).exit())
}

/// The whole command line.
fn command() -> clap::Command {
    without_env_values(Cli::command())
}

/// The part of the command line that concerns `mayfly exec`.
fn command_for_exec() -> clap::Command {
    let exec = exec::ExecArgs::augment_args(clap::Command::new(EXEC)).about(exec::ABOUT);
    without_env_values(logging::LoggingArgs::augment_args(clap::Command::new("mayfly")).subcommand(exec))
}

/// Help never shows values of the environment: they may contain tokens and passwords.
fn without_env_values(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| arg.hide_env_values(true)).mut_subcommands(without_env_values)
}

/// Parses a boolean as gitlab-runner does.
fn boolean(text: &str) -> Result<bool, String> {
    match text.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn parse_listen_address(text: &str) -> Result<String, String> {
    check_address(text).map(|()| text.to_owned())
}

/// Reads a token from a file (`-` for standard input), so that it is not in the arguments of a process.
fn token_from(path: &str) -> Result<Token, String> {
    let text = if path == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    let text = text.map_err(|error| format!("the token file {path}: {error}"))?;
    let token = Token::new(text.trim());
    if token.is_empty() {
        return Err(format!("the token file {path} is empty"));
    }
    Ok(token)
}
