//! `list`, `verify`, `unregister` and `reset-token`: commands for the runners in the configuration.

use std::process::ExitCode;

use clap::{ArgAction, Args};

use super::output::print_line;
use super::report::plural;
use super::{ConfigFile, cloud_id, token_from};
use crate::agent;
use crate::config::edit::Editor;
use crate::config::{Config, Runner, system_id};
use crate::coordinator::gitlab::{ApiError, GitLab, TokenStatus};
use crate::token::Token;

/// The options of `verify`.
#[derive(Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Verify only the runner with this name
    #[arg(short, long)]
    name: Option<String>,
    /// Verify only the runners of this server
    #[arg(short, long)]
    url: Option<String>,
    /// Verify only the runner with this token
    #[arg(short, long)]
    token: Option<String>,
    /// Remove runners from the file if GitLab does not know their token
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, value_name = "true|false")]
    #[arg(default_value = "false", default_missing_value = "true", hide_default_value = true)]
    #[arg(value_parser = super::boolean)]
    delete: bool,
}

/// The options of `unregister`.
#[derive(Args)]
pub struct UnregisterArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Unregister the runner with this name
    #[arg(short, long)]
    name: Option<String>,
    /// Consider only the runners of this server
    #[arg(short, long)]
    url: Option<String>,
    /// Unregister the runner with this token [default: CI_SERVER_TOKEN, if no runner is named]
    #[arg(short, long)]
    token: Option<String>,
    /// Unregister all runners
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, value_name = "true|false")]
    #[arg(default_value = "false", default_missing_value = "true", hide_default_value = true)]
    #[arg(value_parser = super::boolean)]
    all_runners: bool,
}

/// The options of `reset-token`.
#[derive(Args)]
pub struct ResetTokenArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Replace the token of the runner with this name
    #[arg(short, long)]
    name: Option<String>,
    /// Consider only the runners of this server
    #[arg(short, long)]
    url: Option<String>,
    /// Replace the token of the runner with this id
    #[arg(short, long)]
    id: Option<i64>,
    /// Replace the tokens of all runners
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, value_name = "true|false")]
    #[arg(default_value = "false", default_missing_value = "true", hide_default_value = true)]
    #[arg(value_parser = super::boolean)]
    all_runners: bool,
    /// A personal access token that may reset tokens (prefer --access-token-file)
    #[arg(long, value_name = "TOKEN")]
    pat: Option<String>,
    /// A file with that personal access token; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "pat")]
    access_token_file: Option<String>,
}

/// Lists the runners. Fails if the configuration cannot be read.
pub fn list(file: &ConfigFile) -> Result<ExitCode, String> {
    let config = file.load()?.config;
    for runner in &config.runners {
        let (name, executor, token) = (&runner.name, runner.executor.as_str(), runner.token.short());
        print_line!("{name}\texecutor={executor} token={token}… url={}", runner.url);
    }
    Ok(ExitCode::SUCCESS)
}

/// Verifies the tokens with GitLab. Fails if the configuration cannot be read or written.
pub fn verify(options: &VerifyArgs) -> Result<ExitCode, String> {
    let config = options.file.load_with_tokens()?;
    let filter =
        RunnerFilter { name: options.name.clone(), url: options.url.clone(), token: options.token.clone(), id: None };
    let chosen: Vec<&Runner> = config.runners.iter().filter(|runner| filter.matches(runner)).collect();
    if chosen.is_empty() && (options.name.is_some() || options.url.is_some() || options.token.is_some()) {
        return Err(filter.not_found(&config));
    }
    let system_id = system_id::load(&config.path, cloud_id(&config).as_deref());
    let (mut gone, mut unverified) = (Vec::new(), 0);
    for runner in chosen {
        let label = format!("{} ({}…)", runner.name, runner.token.short());
        match agent::gitlab(&config, runner)?.verify(&runner.token, &system_id) {
            Ok(TokenStatus::Valid(_)) => print_line!("{label}: the token is valid"),
            Ok(TokenStatus::Invalid) => {
                eprintln!("{label}: {} does not know the token", runner.url);
                gone.push(runner);
            }
            Err(error) => {
                eprintln!("{label}: the token cannot be verified: {error}");
                unverified += 1;
            }
        }
    }
    if options.delete && !gone.is_empty() {
        remove(&config, &gone)?;
        print_line!("removed {} from {}", plural(gone.len(), "runner"), config.path.display());
        gone.clear();
    }
    Ok(if gone.is_empty() && unverified == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Unregisters runners. A runner stays in the file unless GitLab confirms. Fails if no runner matches, or if the
/// configuration cannot be written.
pub fn unregister(options: &UnregisterArgs) -> Result<ExitCode, String> {
    let is_named = options.name.is_some() || options.token.is_some() || options.all_runners;
    let of_environment = |name: &str| std::env::var(name).ok().filter(|value| !is_named && !value.is_empty());
    let token = options.token.clone().or_else(|| of_environment("CI_SERVER_TOKEN"));
    if !is_named && token.is_none() {
        return Err("select a runner with --name NAME, --token TOKEN (or CI_SERVER_TOKEN), or --all-runners".to_owned());
    }
    let filter = RunnerFilter { name: options.name.clone(), url: options.url.clone(), token, id: None };
    let config = options.file.load_with_tokens()?;
    let chosen: Vec<&Runner> = config.runners.iter().filter(|runner| filter.matches(runner)).collect();
    if chosen.is_empty() {
        return Err(filter.not_found(&config));
    }
    let system_id = system_id::load(&config.path, cloud_id(&config).as_deref());
    let (mut unregistered, mut is_failed) = (Vec::new(), false);
    for runner in chosen {
        match unregister_from_gitlab(&agent::gitlab(&config, runner)?, runner, &system_id) {
            Ok(()) => unregistered.push(runner),
            Err(error) => {
                report_kept_runner(&runner.name, &error);
                is_failed = true;
            }
        }
    }
    remove(&config, &unregistered)?;
    print_line!("unregistered {}", plural(unregistered.len(), "runner"));
    Ok(if is_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Unregisters this machine's runner manager; a runner of the deprecated registration has none, and is deleted.
fn unregister_from_gitlab(gitlab: &GitLab, runner: &Runner, system_id: &str) -> Result<(), ApiError> {
    let outcome = match runner.token.reveal().starts_with("glrt-") {
        true => gitlab.unregister_manager(&runner.token, system_id),
        false => gitlab.unregister(&runner.token),
    };
    match outcome {
        // 404: this machine is already unregistered.
        Err(ApiError::Status(404, _)) => Ok(()),
        outcome => outcome,
    }
}

fn report_kept_runner(name: &str, error: &ApiError) {
    eprintln!("{name}: not unregistered, and kept in the configuration: {error}");
    if matches!(error, ApiError::Refused(_)) {
        eprintln!(
            "{name}: if the runner was deleted in GitLab, run `mayfly verify --delete` to remove it from the file"
        );
    }
}

/// Selects runners. An empty field matches every runner.
#[derive(Default)]
struct RunnerFilter {
    name: Option<String>,
    url: Option<String>,
    token: Option<String>,
    id: Option<i64>,
}

impl RunnerFilter {
    fn matches(&self, runner: &Runner) -> bool {
        self.name.as_ref().is_none_or(|name| *name == runner.name)
            && self.token.as_ref().is_none_or(|token| token == runner.token.reveal())
            && self.id.is_none_or(|id| runner.id == Some(id))
            && is_at(runner, self.url.as_deref())
    }

    /// The error when no runner matches: the criteria and the file.
    fn not_found(&self, config: &Config) -> String {
        let parts = [
            self.name.as_ref().map(|name| format!("the name `{name}`")),
            self.id.map(|id| format!("the id {id}")),
            self.token.as_ref().map(|token| format!("the token `{}…`", Token::new(token.as_str()).short())),
            self.url.as_ref().map(|url| format!("the url `{url}`")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        let with = if parts.is_empty() { String::new() } else { format!(" with {}", parts.join(" and ")) };
        format!("{} has no runner{with}; `mayfly list` shows its runners", config.path.display())
    }
}

/// Whether a runner belongs to this server; without a URL, every server matches. A trailing slash is ignored.
fn is_at(runner: &Runner, url: Option<&str>) -> bool {
    url.is_none_or(|url| url.trim_end_matches('/') == runner.url.trim_end_matches('/'))
}

fn remove(config: &Config, gone: &[&Runner]) -> Result<(), String> {
    let mut editor = Editor::open(&config.path)?;
    editor.remove_runners(gone);
    save(&mut editor, config)
}

fn save(editor: &mut Editor, config: &Config) -> Result<(), String> {
    editor.save().map_err(|error| format!("{}: {error}", config.path.display()))
}

/// Replaces tokens. Fails if no runner matches, if the server refuses, or if the configuration cannot be written.
pub fn reset_token(options: &ResetTokenArgs) -> Result<ExitCode, String> {
    if options.name.is_none() && options.id.is_none() && !options.all_runners {
        return Err("select a runner with --name NAME, --id NUMBER or --all-runners".to_owned());
    }
    let config = options.file.load()?.config;
    let access = match &options.access_token_file {
        Some(file) => Some(token_from(file)?),
        None => options.pat.as_deref().map(Token::new),
    };
    let filter = RunnerFilter { name: options.name.clone(), url: options.url.clone(), token: None, id: options.id };
    let chosen: Vec<&Runner> = config.runners.iter().filter(|runner| filter.matches(runner)).collect();
    if chosen.is_empty() {
        return Err(filter.not_found(&config));
    }
    for runner in chosen {
        replace_token(&config, runner, access.as_ref()).map_err(|why| format!("{}: {why}", runner.name))?;
        print_line!("{}: the token was replaced", runner.name);
    }
    Ok(ExitCode::SUCCESS)
}

/// Resets the token of a runner in GitLab, with a personal access token (`access`) or with the token itself, and writes
/// the new one to the file.
fn replace_token(config: &Config, runner: &Runner, access: Option<&Token>) -> Result<(), String> {
    if let Some(reference) = &runner.token_reference {
        return Err(format!("the token is stored as {reference}; store a new token there"));
    }
    let mut editor = Editor::open(&config.path)?;
    if !editor.has_runner(&runner.url, &runner.token) {
        return Err(format!("the runner is no longer in {}", config.path.display()));
    }
    // The server's response invalidates the old token: check first that the file can be written.
    save(&mut editor, config)?;
    let gitlab = agent::gitlab(config, runner)?;
    let registration = match (access, runner.id) {
        (Some(access), Some(id)) => gitlab.reset_token_of(id, access),
        (Some(_), None) => return Err("the configuration has no `id` of this runner".to_owned()),
        (None, _) => gitlab.reset_token(&runner.token),
    };
    let registration = registration.map_err(|error| error.to_string())?;
    let token = registration.token.ok_or("the server sent no token")?;
    let now = jiff::Timestamp::now().to_string();
    editor.replace_token(&runner.token, &token, &now, registration.token_expires_at.as_deref());
    save(&mut editor, config)
}
