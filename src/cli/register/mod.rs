//! `mayfly register`: registers a runner on the server and adds it to the configuration.
//!
//! An authentication token (`glrt-…`) belongs to an existing runner, which is only verified. A registration token
//! creates a runner in the deprecated way. A personal access token creates one for its user.

mod ask;
mod keys;
mod options;
mod table;

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use toml_edit::{Array, Item, Table, Value, value};

use super::output::print_line;
use super::{cloud_id, token_from};
use crate::agent;
use crate::config::edit::Editor;
use crate::config::{self, Config, ExecutorKind, system_id};
use crate::coordinator::gitlab::{GitLab, NewRunner, Registration, TokenStatus};
use crate::token::Token;

use ask::AskMode;
use options::Attributes;
pub use options::{RegisterArgs, conflict};

/// Where the runner comes from.
enum RunnerSource {
    /// The runner exists: verify its token.
    Existing(Token),
    /// Create the runner with a registration token.
    RegistrationToken(Token),
    /// Create the runner with a personal access token.
    AccessToken(Token),
}

/// Registers a runner. Fails if a value is missing or refused, or if the configuration cannot be written.
pub fn main(options: &RegisterArgs) -> Result<ExitCode, String> {
    let path = options.file.path();
    let mut editor = Editor::open(&path)?;
    let (mut table, source) = describe_runner(options)?;
    let config = check_table(&path, &table)?;
    let runner = config.runners.first().ok_or("the configuration of the new runner is invalid")?;
    let server = Server {
        gitlab: agent::gitlab(&config, runner)?,
        system_id: system_id(&path, &config),
        leave_runner: options.leave_runner,
    };
    let (registration, token) = server.obtain(&source, options, &runner.name)?;
    let is_new = !editor.has_runner(&runner.url, &token);
    if !is_new {
        eprintln!("mayfly: warning: {} already contains this runner; it will be there twice", path.display());
    }
    table::identify(&mut table, &registration, &token);
    if let Err(why) = save(&mut editor, table, &path) {
        if is_new {
            server.remove_from_server(&source, &token);
        }
        return Err(why);
    }
    print_line!("Runner registered successfully: `{}` is in {}", runner.name, path.display());
    Ok(ExitCode::SUCCESS)
}

/// The table of the new runner, without the data of the server, and the source of the runner. Asks for missing values
/// in the order of gitlab-runner.
fn describe_runner(options: &RegisterArgs) -> Result<(Table, RunnerSource), String> {
    let template = options.template_config.as_deref().map(table::template).transpose()?.unwrap_or_default();
    let mode = match options.non_interactive {
        true => AskMode::NonInteractive,
        false => AskMode::Interactive,
    };
    let or_template = |flag: &Option<String>, key: &str| flag.clone().or_else(|| table::text(&template, key));
    let question = "Enter the GitLab instance URL (for example, https://gitlab.com/)";
    let url = ask::given_or_asked(or_template(&options.url, "url"), mode, "url", question)?;
    let source = runner_source(options)?;
    let name = ask::name(or_template(&options.settings.name, "name"), mode)?;
    let executor = or_template(&options.settings.executor, "executor");
    let executor = ask::given_or_asked(executor, mode, "executor", "Enter an executor (shell, instance, docker)")?;
    let mut table = table::new_runner(options, &name, &url, &executor);
    table::fill_from(&mut table, &template);
    if config::executor(&executor).is_ok_and(ExecutorKind::has_containers) {
        complete_docker(&mut table, mode)?;
    }
    Ok((table, source))
}

/// Parses the table of the new runner. It must be valid before a runner is created on the server.
fn check_table(path: &Path, table: &Table) -> Result<Config, String> {
    let invalid = |why: &dyn Display| format!("the configuration of the new runner is invalid: {why}");
    let config = Config::parse(path, &table::document(table)).map_err(|error| invalid(&error))?;
    match config.unusable.first() {
        None => Ok(config),
        Some(unusable) => Err(invalid(&unusable.why)),
    }
}

/// The system id of this machine. The new runner's configuration stands in for a missing configuration file.
fn system_id(path: &Path, new: &Config) -> String {
    let existing = Config::load(path).ok();
    let config = existing.as_ref().map_or(new, |loaded| &loaded.config);
    system_id::load(path, cloud_id(config).as_deref())
}

/// Adds the runner to the file; an empty file also gets the usual global keys.
fn save(editor: &mut Editor, table: Table, path: &Path) -> Result<(), String> {
    if editor.is_empty() {
        editor.set_global("concurrent", 1);
        editor.set_global("check_interval", 0);
    }
    editor.add_runner(table)?;
    editor.save().map_err(|error| format!("{}: {error}", path.display()))
}

/// As gitlab-runner does, asks for the default image of an executor with containers, and adds a volume at `/cache`.
fn complete_docker(table: &mut Table, mode: AskMode) -> Result<(), String> {
    let docker = table.entry("docker").or_insert_with(|| Item::Table(Table::new()));
    let docker = docker.as_table_like_mut().ok_or("`docker` of the template is not a table")?;
    let image = docker.get("image").and_then(Item::as_str).unwrap_or_default().to_owned();
    let question = "Enter the default Docker image (for example, ruby:3.3)";
    docker.insert("image", value(ask::given_or_asked(Some(image), mode, "docker-image", question)?));
    let volumes = docker.entry("volumes").or_insert_with(|| value(Array::new()));
    let volumes = volumes.as_array_mut().ok_or("`docker.volumes` of the template is not a list")?;
    if !volumes.iter().filter_map(Value::as_str).any(|volume| volume.split(':').any(|part| part == "/cache")) {
        volumes.push("/cache");
    }
    Ok(())
}

fn runner_source(options: &RegisterArgs) -> Result<RunnerSource, String> {
    let tokens = &options.tokens;
    if let Some(file) = &tokens.access_token_file {
        return Ok(RunnerSource::AccessToken(token_from(file)?));
    }
    let given = |token: &Option<String>| token.clone().filter(|token| !token.trim().is_empty());
    let authentication = match &tokens.token_file {
        Some(file) => Some(token_from(file)?),
        None => given(&tokens.token).map(Token::new),
    };
    if let Some(token) = authentication {
        return match fixed_attributes(options) {
            fixed if fixed.is_empty() => Ok(RunnerSource::Existing(token)),
            fixed => Err(format!("{}: {ATTRIBUTES_ARE_FIXED}", fixed.join(", "))),
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
        return Ok(RunnerSource::RegistrationToken(Token::new(registration)));
    }
    let fixed = fixed_attributes(options);
    if !fixed.is_empty() {
        eprintln!("mayfly: warning: {} has no effect: {ATTRIBUTES_ARE_FIXED}", fixed.join(", "));
    }
    Ok(RunnerSource::Existing(Token::new(registration)))
}

const ATTRIBUTES_ARE_FIXED: &str =
    "an authentication token belongs to an existing runner; change its attributes on the server";

/// The given attributes that cannot be changed for an existing runner.
fn fixed_attributes(options: &RegisterArgs) -> Vec<&'static str> {
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

/// GitLab, as the new runner and this machine see it.
struct Server {
    gitlab: GitLab,
    system_id: String,
    /// Keep a created runner if a later step fails.
    leave_runner: bool,
}

impl Server {
    /// The runner on the server, and its token. A created runner that cannot be verified is removed again.
    fn obtain(
        &self,
        source: &RunnerSource,
        options: &RegisterArgs,
        name: &str,
    ) -> Result<(Registration, Token), String> {
        let created = self.create(source, options, name)?;
        let token = match (source, &created) {
            (RunnerSource::Existing(token), _) => token.clone(),
            (_, created) => {
                created.as_ref().and_then(|created| created.token.clone()).ok_or("the server sent no token")?
            }
        };
        match (source, created) {
            (RunnerSource::RegistrationToken(_), Some(created)) => Ok((created, token)),
            (_, created) => match self.verify(&token, created.as_ref()) {
                Ok(verified) => Ok((created.unwrap_or(verified), token)),
                Err(why) => {
                    if created.is_some() {
                        self.remove_from_server(source, &token);
                    }
                    Err(why)
                }
            },
        }
    }

    /// Creates the runner; `None` if it exists already.
    fn create(
        &self,
        source: &RunnerSource,
        options: &RegisterArgs,
        name: &str,
    ) -> Result<Option<Registration>, String> {
        match source {
            RunnerSource::Existing(_) => Ok(None),
            RunnerSource::RegistrationToken(token) => {
                let created = self.gitlab.register(token, &new_runner(options, name)?);
                created.map(Some).map_err(|error| format!("registering the runner: {error}"))
            }
            RunnerSource::AccessToken(token) => {
                let created = self.gitlab.create_runner(token, &new_runner(options, name)?);
                created.map(Some).map_err(|error| format!("creating the runner: {error}"))
            }
        }
    }

    /// Checks that the server knows the token. For a runner that `register` did not create, the response must name the
    /// runner, because servers other than GitLab may answer with a success too.
    fn verify(&self, token: &Token, created: Option<&Registration>) -> Result<Registration, String> {
        match self.gitlab.verify(token, &self.system_id) {
            Ok(TokenStatus::Valid(verified)) if created.is_some() || verified.id > 0 || verified.is_of_old_server => {
                Ok(verified)
            }
            Ok(TokenStatus::Valid(_)) => Err(
                "verifying the runner: the response contains no runner id; check that `url` is the address of GitLab"
                    .to_owned(),
            ),
            Ok(TokenStatus::Invalid) => {
                Err("the server does not know this token; copy it again from the runner's page".to_owned())
            }
            Err(error) => Err(format!("verifying the runner: {error}")),
        }
    }

    /// Removes the runner, or this machine's runner manager, from the server, unless `--leave-runner` is given.
    fn remove_from_server(&self, source: &RunnerSource, token: &Token) {
        let undone = match source {
            _ if self.leave_runner => return,
            RunnerSource::Existing(_) => self.gitlab.unregister_manager(token, &self.system_id),
            RunnerSource::RegistrationToken(_) | RunnerSource::AccessToken(_) => self.gitlab.unregister(token),
        };
        if let Err(error) = undone {
            eprintln!("mayfly: cannot remove the new runner from the server; remove it there: {error}");
        }
    }
}

/// The attributes of the runner to create. Fails if its scope is missing.
fn new_runner(options: &RegisterArgs, name: &str) -> Result<NewRunner, String> {
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
