//! `mayfly register`: registers a runner on the server and adds it to the configuration.
//!
//! An authentication token (`glrt-…`) belongs to an existing runner, which is only verified. A registration token
//! creates a runner in the deprecated way. A personal access token creates one for its user.

mod ask;
mod keys;
mod options;
mod table;

use std::process::ExitCode;

use toml_edit::{Array, Item, Table, Value, value};

use super::{cloud_id, token_from};
use crate::agent;
use crate::config::edit::Editor;
use crate::config::{self, Config, ExecutorKind, system_id};
use crate::coordinator::gitlab::{GitLab, NewRunner, Registration, TokenStatus};
use crate::token::Token;

use options::Attributes;
pub use options::{Options, conflict};

/// How `register` obtains the runner.
enum Way {
    /// The runner exists: verify its token.
    Verify(Token),
    /// Create the runner with a registration token.
    Register(Token),
    /// Create the runner with a personal access token.
    Create(Token),
}

/// Registers a runner. Fails if a value is missing or refused, or if the configuration cannot be written.
pub fn main(options: &Options) -> Result<ExitCode, String> {
    let path = options.file.path();
    let mut editor = Editor::open(&path)?;
    let template = options.template_config.as_deref().map(table::template).transpose()?.unwrap_or_default();
    let non_interactive = options.non_interactive;
    let url = ask::given_or_asked(
        options.url.clone().or_else(|| table::text(&template, "url")),
        non_interactive,
        "url",
        "Enter the GitLab instance URL (for example, https://gitlab.com/)",
    )?;
    let way = way(options)?;
    let name = options.settings.name.clone().or_else(|| table::text(&template, "name"));
    let name = ask::name(name, non_interactive)?;
    let executor = ask::given_or_asked(
        options.settings.executor.clone().or_else(|| table::text(&template, "executor")),
        non_interactive,
        "executor",
        "Enter an executor (shell, instance, docker)",
    )?;
    let mut table = table::of(options, &name, &url, &executor);
    table::fill_from(&mut table, &template);
    if config::executor(&executor).is_ok_and(ExecutorKind::has_containers) {
        complete_docker(&mut table, non_interactive)?;
    }
    // Check that the new configuration is valid before a runner is created on the server.
    let config = Config::parse(&path, &table::document(&table))
        .map_err(|error| format!("the configuration of the new runner is invalid: {error}"))?;
    if let Some(unusable) = config.unusable.first() {
        return Err(format!("the configuration of the new runner is invalid: {}", unusable.why));
    }
    let runner = config.runners.first().ok_or("the configuration of the new runner is invalid")?;
    let gitlab = agent::gitlab(&config, runner)?;
    let existing = Config::load(&path).ok();
    let system_id =
        system_id::load(&path, cloud_id(existing.as_ref().map_or(&config, |loaded| &loaded.config)).as_deref());
    let (registration, token) = obtain(&gitlab, &way, options, &name, &system_id)?;
    let is_new = !editor.has(&runner.url, &token);
    if !is_new {
        eprintln!("mayfly: warning: {} already contains this runner; it will be there twice", path.display());
    }
    table::identify(&mut table, &registration, &token);
    if editor.is_empty() {
        editor.set_global("concurrent", 1);
        editor.set_global("check_interval", 0);
    }
    let saved =
        editor.add_runner(table).and_then(|()| editor.save().map_err(|error| format!("{}: {error}", path.display())));
    if let Err(why) = saved {
        if is_new && !options.leave_runner {
            take_back(&gitlab, &way, &token, &system_id);
        }
        return Err(why);
    }
    println!("Runner registered successfully: `{name}` is in {}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// As gitlab-runner does, asks for the default image of an executor with containers, and adds a volume at `/cache`.
fn complete_docker(table: &mut Table, non_interactive: bool) -> Result<(), String> {
    let docker = table.entry("docker").or_insert_with(|| Item::Table(Table::new()));
    let docker = docker.as_table_like_mut().ok_or("`docker` of the template is not a table")?;
    let image = docker.get("image").and_then(Item::as_str).unwrap_or_default().to_owned();
    let question = "Enter the default Docker image (for example, ruby:3.3)";
    docker.insert("image", value(ask::given_or_asked(Some(image), non_interactive, "docker-image", question)?));
    let volumes = docker.entry("volumes").or_insert_with(|| value(Array::new()));
    let volumes = volumes.as_array_mut().ok_or("`docker.volumes` of the template is not a list")?;
    if !volumes.iter().filter_map(Value::as_str).any(|volume| volume.split(':').any(|part| part == "/cache")) {
        volumes.push("/cache");
    }
    Ok(())
}

fn way(options: &Options) -> Result<Way, String> {
    let tokens = &options.tokens;
    if let Some(file) = &tokens.access_token_file {
        return Ok(Way::Create(token_from(file)?));
    }
    let given = |token: &Option<String>| token.clone().filter(|token| !token.trim().is_empty());
    let authentication = match &tokens.token_file {
        Some(file) => Some(token_from(file)?),
        None => given(&tokens.token).map(Token::new),
    };
    if let Some(token) = authentication {
        return match fixed_attributes(options) {
            fixed if fixed.is_empty() => Ok(Way::Verify(token)),
            fixed => Err(format!("{}: {FIXED}", fixed.join(", "))),
        };
    }
    let registration = match given(&tokens.registration_token) {
        Some(token) => token,
        None if options.non_interactive => {
            return Err(
                "a token is missing: --token-file FILE, or --access-token-file FILE to create a runner".to_owned()
            );
        }
        None => ask::ask("Enter the runner's token")?,
    };
    if registration.is_empty() {
        return Err("a token is missing".to_owned());
    }
    // `--registration-token` also accepts an authentication token. Old scripts then also pass attributes, which have no
    // effect.
    if !registration.starts_with("glrt-") {
        return Ok(Way::Register(Token::new(registration)));
    }
    let fixed = fixed_attributes(options);
    if !fixed.is_empty() {
        eprintln!("mayfly: warning: {} has no effect: {FIXED}", fixed.join(", "));
    }
    Ok(Way::Verify(Token::new(registration)))
}

const FIXED: &str = "an authentication token belongs to an existing runner; change its attributes on the server";

/// The given attributes that cannot be changed for an existing runner.
fn fixed_attributes(options: &Options) -> Vec<&'static str> {
    let attributes = &options.attributes;
    let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let given = [
        ("--tag-list", text(&attributes.tag_list)),
        ("--run-untagged", attributes.run_untagged == Some(true)),
        // gitlab-runner's default is true.
        ("--locked", attributes.locked == Some(false)),
        ("--paused", attributes.paused == Some(true)),
        ("--access-level", text(&attributes.access_level)),
        ("--maximum-timeout", attributes.maximum_timeout.is_some_and(|seconds| seconds > 0)),
        ("--maintenance-note", text(&attributes.maintenance_note)),
    ];
    given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name).collect()
}

/// The runner on the server, and its token. A created runner that cannot be verified is removed again.
fn obtain(
    gitlab: &GitLab,
    way: &Way,
    options: &Options,
    name: &str,
    system_id: &str,
) -> Result<(Registration, Token), String> {
    let made = match way {
        Way::Verify(_) => None,
        Way::Register(registration) => Some(
            gitlab
                .register(registration, &new_runner(options, name)?)
                .map_err(|error| format!("registering the runner: {error}"))?,
        ),
        Way::Create(access) => Some(
            gitlab
                .create_runner(access, &new_runner(options, name)?)
                .map_err(|error| format!("creating the runner: {error}"))?,
        ),
    };
    let token = match (way, &made) {
        (Way::Verify(token), _) => token.clone(),
        (_, made) => made.as_ref().and_then(|made| made.token.clone()).ok_or("the server sent no token")?,
    };
    if let (Way::Register(_), Some(made)) = (way, made.clone()) {
        return Ok((made, token));
    }
    let why = match gitlab.verify(&token, system_id) {
        Ok(TokenStatus::Valid(verified)) if made.is_some() || verified.id > 0 || verified.is_of_old_server => {
            return Ok((made.unwrap_or(verified), token));
        }
        Ok(TokenStatus::Valid(_)) => {
            "verifying the runner: the response contains no runner id; check that `url` is the address of GitLab"
                .to_owned()
        }
        Ok(TokenStatus::Invalid) => {
            "the server does not know this token; copy it again from the runner's page".to_owned()
        }
        Err(error) => format!("verifying the runner: {error}"),
    };
    if made.is_some() && !options.leave_runner {
        take_back(gitlab, way, &token, system_id);
    }
    Err(why)
}

/// Removes a created runner from the server.
fn take_back(gitlab: &GitLab, way: &Way, token: &Token, system_id: &str) {
    let undone = match way {
        Way::Verify(_) => gitlab.unregister_manager(token, system_id),
        Way::Register(_) | Way::Create(_) => gitlab.unregister(token),
    };
    if let Err(error) = undone {
        eprintln!("mayfly: cannot remove the new runner from the server; remove it there: {error}");
    }
}

/// The attributes of the runner to create. Fails if its scope is missing.
fn new_runner(options: &Options, name: &str) -> Result<NewRunner, String> {
    let attributes = &options.attributes;
    let tag_list = attributes.tag_list.clone().unwrap_or_default();
    let legacy = options.tokens.access_token_file.is_none();
    Ok(NewRunner {
        runner_type: if legacy { None } else { Some(runner_type(attributes)?) },
        group_id: attributes.group_id,
        project_id: attributes.project_id,
        description: name.to_owned(),
        maintenance_note: attributes.maintenance_note.clone().unwrap_or_default(),
        // A runner without tags that refuses untagged jobs would never get one.
        run_untagged: tag_list.is_empty() || attributes.run_untagged.unwrap_or(false),
        tag_list,
        locked: attributes.locked.unwrap_or(legacy),
        paused: attributes.paused.unwrap_or(false),
        access_level: attributes.access_level.clone().unwrap_or_default(),
        maximum_timeout: attributes.maximum_timeout.unwrap_or(0),
    })
}

/// The scope of the runner; a group or project id implies it. Fails if the scope is missing or contradictory.
fn runner_type(attributes: &Attributes) -> Result<String, String> {
    let by_id = match (attributes.group_id, attributes.project_id) {
        (Some(_), _) => Some("group_type"),
        (None, Some(_)) => Some("project_type"),
        (None, None) => None,
    };
    match (attributes.runner_type.as_deref(), by_id) {
        (Some("group_type"), None) => Err("--runner-type group_type needs --group-id".to_owned()),
        (Some("project_type"), None) => Err("--runner-type project_type needs --project-id".to_owned()),
        (Some(given), Some(by_id)) if given != by_id => {
            Err(format!("--runner-type {given} does not match the given id"))
        }
        (Some(given), _) => Ok(given.to_owned()),
        (None, Some(by_id)) => Ok(by_id.to_owned()),
        (None, None) => {
            Err("the scope of the runner is missing; add --runner-type instance_type, group_type or project_type"
                .to_owned())
        }
    }
}
