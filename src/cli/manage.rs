//! `list`, `verify`, `unregister` and `reset-token`: the runners of the configuration and what the server makes of
//! them.

use std::process::ExitCode;

use clap::{ArgAction, Args};

use super::{ConfigFile, cloud_id, token_from};
use crate::agent;
use crate::config::edit::Editor;
use crate::config::{Config, Runner, system_id};
use crate::coordinator::gitlab::{ApiError, Verdict};
use crate::token::Token;

/// What `verify` takes.
#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    file: ConfigFile,
    /// Only the runner of this name
    #[arg(short, long)]
    name: Option<String>,
    /// Only runners of this server
    #[arg(short, long)]
    url: Option<String>,
    /// Only the runner with this token
    #[arg(short, long)]
    token: Option<String>,
    /// Remove runners that the server does not know any more
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, value_name = "true|false")]
    #[arg(default_value = "false", default_missing_value = "true", hide_default_value = true)]
    #[arg(value_parser = super::boolean)]
    delete: bool,
}

/// What `unregister` takes.
#[derive(Args)]
pub struct Unregister {
    #[command(flatten)]
    file: ConfigFile,
    /// The runner of this name
    #[arg(short, long)]
    name: Option<String>,
    /// Only runners of this server
    #[arg(short, long)]
    url: Option<String>,
    /// The runner with this token
    #[arg(short, long)]
    token: Option<String>,
    /// All runners
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, value_name = "true|false")]
    #[arg(default_value = "false", default_missing_value = "true", hide_default_value = true)]
    #[arg(value_parser = super::boolean)]
    all_runners: bool,
}

/// What `reset-token` takes.
#[derive(Args)]
pub struct ResetToken {
    #[command(flatten)]
    file: ConfigFile,
    /// The runner of this name
    #[arg(short, long)]
    name: Option<String>,
    /// Only runners of this server
    #[arg(short, long)]
    url: Option<String>,
    /// The runner with this number
    #[arg(short, long)]
    id: Option<i64>,
    /// All runners
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, value_name = "true|false")]
    #[arg(default_value = "false", default_missing_value = "true", hide_default_value = true)]
    #[arg(value_parser = super::boolean)]
    all_runners: bool,
    /// A personal access token to reset with (better: --access-token-file)
    #[arg(long, value_name = "TOKEN")]
    pat: Option<String>,
    /// A file with a personal access token to reset with, - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "pat")]
    access_token_file: Option<String>,
}

/// Shows the runners. Errors: the configuration cannot be read.
pub fn list(file: &ConfigFile) -> Result<ExitCode, String> {
    let config = file.load()?.config;
    for runner in &config.runners {
        let (name, executor, token) = (&runner.name, runner.executor.as_str(), runner.token.short());
        println!("{name}\texecutor={executor} token={token}… url={}", runner.url);
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks the servers. Errors: the configuration cannot be read or written.
pub fn verify(options: &Verify) -> Result<ExitCode, String> {
    let config = options.file.load_with_tokens()?;
    let wanted = |runner: &&Runner| {
        options.name.as_ref().is_none_or(|name| *name == runner.name)
            && is_at(runner, options.url.as_deref())
            && options.token.as_ref().is_none_or(|token| token == runner.token.reveal())
    };
    let chosen: Vec<&Runner> = config.runners.iter().filter(wanted).collect();
    if chosen.is_empty() && (options.name.is_some() || options.url.is_some() || options.token.is_some()) {
        return Err(none_fits(&config));
    }
    let system_id = system_id::load(&config.path, cloud_id(&config).as_deref());
    let (mut gone, mut unknown) = (Vec::new(), 0);
    for runner in chosen {
        let place = format!("{} ({}…)", runner.name, runner.token.short());
        let verdict = agent::gitlab(&config, runner)?.verify(&runner.token, &system_id);
        match verdict {
            Ok(Verdict::Valid(_)) => println!("{place}: is valid"),
            Ok(Verdict::Gone) => {
                eprintln!("{place}: is not known to {} any more", runner.url);
                gone.push(runner);
            }
            Err(error) => {
                eprintln!("{place}: cannot be verified now: {error}");
                unknown += 1;
            }
        }
    }
    if options.delete && !gone.is_empty() {
        remove(&config, &gone)?;
        println!("removed {} runner(s) from {}", gone.len(), config.path.display());
        gone.clear();
    }
    Ok(if gone.is_empty() && unknown == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Takes runners off. Errors: no runner fits, or the configuration cannot be written.
pub fn unregister(options: &Unregister) -> Result<ExitCode, String> {
    if options.name.is_none() && options.token.is_none() && !options.all_runners {
        return Err("say which runner: --name NAME, --token TOKEN or --all-runners".to_owned());
    }
    let config = options.file.load_with_tokens()?;
    let wanted = |runner: &&Runner| {
        let chosen = options.name.as_ref().is_none_or(|name| *name == runner.name)
            && options.token.as_ref().is_none_or(|token| token == runner.token.reveal());
        chosen && is_at(runner, options.url.as_deref())
    };
    let chosen: Vec<&Runner> = config.runners.iter().filter(wanted).collect();
    if chosen.is_empty() {
        return Err(none_fits(&config));
    }
    let system_id = system_id::load(&config.path, cloud_id(&config).as_deref());
    let (mut done, mut failed) = (Vec::new(), false);
    for runner in chosen {
        let gitlab = agent::gitlab(&config, runner)?;
        let outcome = match runner.token.reveal().starts_with("glrt-") {
            true => gitlab.unregister_manager(&runner.token, &system_id),
            false => gitlab.unregister(&runner.token),
        };
        match outcome {
            // What the server does not know any more is as good as taken off.
            Ok(()) | Err(ApiError::Answer(404, _) | ApiError::Refused(_)) => done.push(runner),
            Err(error) => {
                eprintln!("{}: cannot be unregistered now, and stays in the configuration: {error}", runner.name);
                failed = true;
            }
        }
    }
    remove(&config, &done)?;
    println!("unregistered {} runner(s)", done.len());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// True for any server, or this one: a slash at the end does not make it another.
fn is_at(runner: &Runner, url: Option<&str>) -> bool {
    url.is_none_or(|url| url.trim_end_matches('/') == runner.url.trim_end_matches('/'))
}

fn none_fits(config: &Config) -> String {
    format!("no such runner in {}; see `mayfly list`", config.path.display())
}

fn remove(config: &Config, gone: &[&Runner]) -> Result<(), String> {
    let mut editor = Editor::open(&config.path)?;
    editor.remove_runners(gone);
    editor.save().map_err(|error| format!("{}: {error}", config.path.display()))
}

/// Replaces tokens. Errors: no runner fits, the server refuses, or the configuration cannot be written.
pub fn reset_token(options: &ResetToken) -> Result<ExitCode, String> {
    if options.name.is_none() && options.id.is_none() && !options.all_runners {
        return Err("say which runner: --name NAME, --id NUMBER or --all-runners".to_owned());
    }
    let config = options.file.load()?.config;
    let access = match &options.access_token_file {
        Some(file) => Some(token_from(file)?),
        None => options.pat.as_deref().map(Token::new),
    };
    let wanted = |runner: &&Runner| {
        let chosen = options.name.as_ref().is_none_or(|name| *name == runner.name)
            && options.id.is_none_or(|id| runner.id == Some(id));
        chosen && is_at(runner, options.url.as_deref())
    };
    let chosen: Vec<&Runner> = config.runners.iter().filter(wanted).collect();
    if chosen.is_empty() {
        return Err(none_fits(&config));
    }
    for runner in chosen {
        if let Some(reference) = &runner.token_reference {
            return Err(format!("{}: its token is kept as {reference}; put a new one there", runner.name));
        }
        let mut editor = Editor::open(&config.path)?;
        if !editor.has(&runner.url, &runner.token) {
            return Err(format!("{}: is not in {} any more", runner.name, config.path.display()));
        }
        // The old token is dead once the server has answered: be sure that the new one can be kept.
        editor.save().map_err(|error| format!("{}: {error}", config.path.display()))?;
        let gitlab = agent::gitlab(&config, runner)?;
        let registration = match (&access, runner.id) {
            (Some(access), Some(id)) => gitlab.reset_token_of(id, access),
            (Some(_), None) => return Err(format!("{}: its number (`id`) is not in the configuration", runner.name)),
            (None, _) => gitlab.reset_token(&runner.token),
        };
        let registration = registration.map_err(|error| format!("{}: {error}", runner.name))?;
        let token = registration.token.ok_or_else(|| format!("{}: the server sent no token", runner.name))?;
        let now = jiff::Timestamp::now().to_string();
        editor.replace_token(&runner.token, &token, &now, registration.token_expires_at.as_deref());
        editor.save().map_err(|error| format!("{}: {error}", config.path.display()))?;
        println!("{}: the token was replaced", runner.name);
    }
    Ok(ExitCode::SUCCESS)
}
