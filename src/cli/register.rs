//! `mayfly register`: a runner for this machine, on the server and in the configuration.
//!
//! With an authentication token (`glrt-…`) the runner is there already and is only verified; a registration token
//! makes one the old way; a personal access token creates one on behalf of a person.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args};
use toml_edit::{Array, DocumentMut, Item, Table, value};

use super::{ConfigFile, token_from};
use crate::agent;
use crate::config::edit::{Editor, time};
use crate::config::{self, Config, Runner, system_id};
use crate::coordinator::Token;
use crate::coordinator::gitlab::{GitLab, NewRunner, Registration, Verdict};

/// What `register` takes.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// A file with one runner, which fills in what no flag says
    #[arg(long, value_name = "FILE", env = "TEMPLATE_CONFIG_FILE")]
    template_config: Option<PathBuf>,
    /// Ask nothing
    #[arg(short, long, env = "REGISTER_NON_INTERACTIVE", action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    non_interactive: bool,
    /// Keep the runner on the server when a later step fails
    #[arg(long, env = "REGISTER_LEAVE_RUNNER", action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    leave_runner: bool,
    /// The server
    #[arg(short, long, env = "CI_SERVER_URL")]
    url: Option<String>,
    #[command(flatten)]
    tokens: Tokens,
    #[command(flatten)]
    attributes: Attributes,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args)]
struct Tokens {
    /// The runner's authentication token (better: --token-file)
    #[arg(short, long, env = "CI_SERVER_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file with the authentication token, - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<String>,
    /// A registration token, the old way
    #[arg(short, long, env = "REGISTRATION_TOKEN", hide_env_values = true)]
    registration_token: Option<String>,
    /// A file with a personal access token that may create runners, - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["token", "token_file", "registration_token"])]
    access_token_file: Option<String>,
}

/// Attributes of a runner that is made by this command.
#[derive(Args)]
struct Attributes {
    /// instance_type, group_type or project_type
    #[arg(long, value_name = "TYPE", requires = "access_token_file")]
    runner_type: Option<String>,
    /// The group, for group_type
    #[arg(long, value_name = "ID")]
    group_id: Option<i64>,
    /// The project, for project_type
    #[arg(long, value_name = "ID")]
    project_id: Option<i64>,
    /// Tags, separated by commas
    #[arg(long, env = "RUNNER_TAG_LIST")]
    tag_list: Option<String>,
    /// Take jobs without tags
    #[arg(long, env = "REGISTER_RUN_UNTAGGED", action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    run_untagged: Option<bool>,
    /// Not for other projects
    #[arg(long, env = "REGISTER_LOCKED", action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    locked: Option<bool>,
    /// Take no jobs yet
    #[arg(long, env = "REGISTER_PAUSED", action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    paused: Option<bool>,
    /// not_protected or ref_protected
    #[arg(long, env = "REGISTER_ACCESS_LEVEL")]
    access_level: Option<String>,
    /// Seconds that a job may take
    #[arg(long, env = "REGISTER_MAXIMUM_TIMEOUT")]
    maximum_timeout: Option<u32>,
    /// A note for people
    #[arg(long, env = "REGISTER_MAINTENANCE_NOTE")]
    maintenance_note: Option<String>,
}

/// Keys of the configuration.
#[derive(Args)]
struct Settings {
    /// The name of the runner
    #[arg(long, visible_alias = "description", env = "RUNNER_NAME")]
    name: Option<String>,
    /// shell or instance
    #[arg(long, env = "RUNNER_EXECUTOR")]
    executor: Option<String>,
    /// bash or sh
    #[arg(long, env = "RUNNER_SHELL")]
    shell: Option<String>,
    /// Jobs of this runner at once
    #[arg(long, env = "RUNNER_LIMIT")]
    limit: Option<u32>,
    /// Requests of this runner at once
    #[arg(long, env = "RUNNER_REQUEST_CONCURRENCY")]
    request_concurrency: Option<u32>,
    /// Kibibytes of a job's log
    #[arg(long, env = "RUNNER_OUTPUT_LIMIT")]
    output_limit: Option<u32>,
    /// Where builds are made
    #[arg(long, env = "RUNNER_BUILDS_DIR")]
    builds_dir: Option<String>,
    /// Overrides the server's URL for git
    #[arg(long, env = "CLONE_URL")]
    clone_url: Option<String>,
    /// KEY=VALUE for every job; may be given again
    #[arg(long = "env", value_name = "KEY=VALUE", env = "RUNNER_ENV")]
    environment: Vec<String>,
    /// Lines before the sources
    #[arg(long, env = "RUNNER_PRE_GET_SOURCES_SCRIPT")]
    pre_get_sources_script: Option<String>,
    /// Lines after the sources
    #[arg(long, env = "RUNNER_POST_GET_SOURCES_SCRIPT")]
    post_get_sources_script: Option<String>,
    /// Lines before each job's script
    #[arg(long, env = "RUNNER_PRE_BUILD_SCRIPT")]
    pre_build_script: Option<String>,
    /// Lines after each job's script
    #[arg(long, env = "RUNNER_POST_BUILD_SCRIPT")]
    post_build_script: Option<String>,
    /// Certificates to trust beside the system's
    #[arg(long, env = "CI_SERVER_TLS_CA_FILE")]
    tls_ca_file: Option<String>,
    /// The client's certificate
    #[arg(long, env = "CI_SERVER_TLS_CERT_FILE")]
    tls_cert_file: Option<String>,
    /// The client's key
    #[arg(long, env = "CI_SERVER_TLS_KEY_FILE")]
    tls_key_file: Option<String>,
}

/// How the runner comes to be.
enum Way {
    /// It is there: verify its token.
    Verify(Token),
    /// Make it with a registration token.
    Register(Token),
    /// Make it on behalf of a person.
    Create(Token),
}

/// Registers a runner. Errors: a value is missing or refused, or the configuration cannot be written.
pub fn main(options: &Options) -> Result<ExitCode, String> {
    let path = options.file.path();
    let mut editor = Editor::open(&path)?;
    let template = options.template_config.as_deref().map(template).transpose()?.unwrap_or_default();
    let url = given_or_asked(options, options.url.clone(), &template, "url", "Enter the GitLab instance URL")?;
    let way = way(options)?;
    refuse_attributes(options, &way)?;
    let hostname = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    let name = match &options.settings.name {
        Some(name) => name.clone(),
        None if options.non_interactive => hostname,
        None => Some(ask(&format!("Enter a name for the runner [{hostname}]"))?)
            .filter(|name| !name.is_empty())
            .unwrap_or(hostname),
    };
    let executor = given_or_asked(
        options,
        options.settings.executor.clone(),
        &template,
        "executor",
        "Enter an executor (shell, instance)",
    )?;
    config::executor(&executor)?;
    let mut table = table(options, &name, &url, &executor);
    fill_from(&mut table, &template);
    let runner = runner(options, &url);
    let gitlab = agent::gitlab(&Config::empty(&path), &runner)?;
    let system_id = system_id::load(&path);
    let (registration, token) = obtain(&gitlab, &way, options, &name, &system_id)?;
    table["id"] = value(registration.id);
    table["token"] = value(token.reveal());
    table["token_obtained_at"] =
        time(&jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_default().to_string());
    table["token_expires_at"] = time(registration.token_expires_at.as_deref().unwrap_or("0001-01-01T00:00:00Z"));
    if editor.is_empty() {
        editor.set_global("concurrent", 1);
        editor.set_global("check_interval", 0);
    }
    let saved =
        editor.add_runner(table).and_then(|()| editor.save().map_err(|error| format!("{}: {error}", path.display())));
    if let Err(why) = saved {
        take_back(&gitlab, &way, &token, &system_id, options.leave_runner);
        return Err(why);
    }
    println!("Runner registered successfully: `{name}` is in {}", path.display());
    Ok(ExitCode::SUCCESS)
}

fn way(options: &Options) -> Result<Way, String> {
    let tokens = &options.tokens;
    if let Some(file) = &tokens.access_token_file {
        return Ok(Way::Create(token_from(file)?));
    }
    if let Some(file) = &tokens.token_file {
        return Ok(Way::Verify(token_from(file)?));
    }
    let token = tokens.token.clone().filter(|token| !token.is_empty());
    if let Some(token) = token {
        return Ok(Way::Verify(Token::new(token)));
    }
    let registration = match tokens.registration_token.clone().filter(|token| !token.is_empty()) {
        Some(token) => token,
        None if options.non_interactive => {
            return Err(
                "a token is missing: --token-file FILE, or --access-token-file FILE to create a runner".to_owned()
            );
        }
        None => ask("Enter the runner's token")?,
    };
    // An authentication token works in either place.
    match registration.starts_with("glrt-") {
        true => Ok(Way::Verify(Token::new(registration))),
        false if registration.is_empty() => Err("a token is missing".to_owned()),
        false => Ok(Way::Register(Token::new(registration))),
    }
}

/// What is set on the server for a runner that is there cannot be set here.
fn refuse_attributes(options: &Options, way: &Way) -> Result<(), String> {
    let attributes = &options.attributes;
    let given = [
        ("--tag-list", attributes.tag_list.is_some()),
        ("--run-untagged", attributes.run_untagged.is_some()),
        ("--locked", attributes.locked.is_some()),
        ("--paused", attributes.paused.is_some()),
        ("--access-level", attributes.access_level.is_some()),
        ("--maximum-timeout", attributes.maximum_timeout.is_some()),
        ("--maintenance-note", attributes.maintenance_note.is_some()),
    ];
    let given: Vec<&str> = given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name).collect();
    match way {
        Way::Verify(_) if !given.is_empty() => Err(format!(
            "{}: the runner of an authentication token is there already; change it on the server",
            given.join(", ")
        )),
        _ => Ok(()),
    }
}

fn obtain(
    gitlab: &GitLab,
    way: &Way,
    options: &Options,
    name: &str,
    system_id: &str,
) -> Result<(Registration, Token), String> {
    let (made, token) = match way {
        Way::Verify(token) => (None, token.clone()),
        Way::Register(registration) => {
            let made = gitlab.register(registration, &new_runner(options, name));
            let made = made.map_err(|error| format!("registering the runner: {error}"))?;
            let token = made.token.clone().ok_or("the server sent no token")?;
            return Ok((made, token));
        }
        Way::Create(access) => {
            let made = gitlab.create_runner(access, &new_runner(options, name));
            let made = made.map_err(|error| format!("creating the runner: {error}"))?;
            let token = made.token.clone().ok_or("the server sent no token")?;
            (Some(made), token)
        }
    };
    match gitlab.verify(&token, system_id) {
        Ok(Verdict::Valid(verified)) => Ok((made.unwrap_or(verified), token)),
        Ok(Verdict::Gone) => {
            take_back(gitlab, way, &token, system_id, options.leave_runner);
            Err("the server does not know this token; copy it again from the runner's page".to_owned())
        }
        Err(error) => {
            take_back(gitlab, way, &token, system_id, options.leave_runner);
            Err(format!("verifying the runner: {error}"))
        }
    }
}

/// Undoes what was done on the server.
fn take_back(gitlab: &GitLab, way: &Way, token: &Token, system_id: &str, leave: bool) {
    if leave {
        return;
    }
    let undone = match way {
        Way::Verify(_) => gitlab.unregister_manager(token, system_id),
        Way::Register(_) | Way::Create(_) => gitlab.unregister(token),
    };
    if let Err(error) = undone {
        eprintln!("mayfly: the runner stays on the server, remove it there: {error}");
    }
}

fn new_runner(options: &Options, name: &str) -> NewRunner {
    let attributes = &options.attributes;
    let tag_list = attributes.tag_list.clone().unwrap_or_default();
    let legacy = options.tokens.access_token_file.is_none();
    NewRunner {
        runner_type: attributes.runner_type.clone(),
        group_id: attributes.group_id,
        project_id: attributes.project_id,
        description: name.to_owned(),
        maintenance_note: attributes.maintenance_note.clone().unwrap_or_default(),
        // A runner without tags that takes no untagged jobs would never have one.
        run_untagged: tag_list.is_empty() || attributes.run_untagged.unwrap_or(false),
        tag_list,
        locked: attributes.locked.unwrap_or(legacy),
        paused: attributes.paused.unwrap_or(false),
        access_level: attributes.access_level.clone().unwrap_or_default(),
        maximum_timeout: attributes.maximum_timeout.unwrap_or(0),
    }
}

fn table(options: &Options, name: &str, url: &str, executor: &str) -> Table {
    let settings = &options.settings;
    let mut table = Table::new();
    table["name"] = value(name);
    table["url"] = value(url);
    for key in ["id", "token", "token_obtained_at", "token_expires_at"] {
        table[key] = value("");
    }
    table["executor"] = value(executor);
    let texts = [
        ("shell", &settings.shell),
        ("builds_dir", &settings.builds_dir),
        ("clone_url", &settings.clone_url),
        ("pre_get_sources_script", &settings.pre_get_sources_script),
        ("post_get_sources_script", &settings.post_get_sources_script),
        ("pre_build_script", &settings.pre_build_script),
        ("post_build_script", &settings.post_build_script),
        ("tls-ca-file", &settings.tls_ca_file),
        ("tls-cert-file", &settings.tls_cert_file),
        ("tls-key-file", &settings.tls_key_file),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            table[key] = value(text);
        }
    }
    let numbers = [
        ("limit", settings.limit),
        ("request_concurrency", settings.request_concurrency),
        ("output_limit", settings.output_limit),
    ];
    for (key, number) in numbers {
        if let Some(number) = number {
            table[key] = value(i64::from(number));
        }
    }
    if !settings.environment.is_empty() {
        table["environment"] = value(settings.environment.iter().collect::<Array>());
    }
    table
}

/// The one runner of a template. Errors: unreadable, or not exactly one.
fn template(path: &std::path::Path) -> Result<Table, String> {
    let describe = |why: String| format!("template {}: {why}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| describe(error.to_string()))?;
    let document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| describe(error.to_string()))?;
    let runners = document.get("runners").and_then(Item::as_array_of_tables);
    match runners.map(|runners| (runners.len(), runners.get(0))) {
        Some((1, Some(table))) => Ok(table.clone()),
        _ => Err(describe("it must have exactly one [[runners]]".to_owned())),
    }
}

/// Fills in what is not there yet; never a token.
fn fill_from(table: &mut Table, template: &Table) {
    for (key, item) in template.iter().filter(|(key, _)| *key != "token") {
        if !table.contains_key(key) {
            table.insert(key, item.clone());
        }
    }
}

fn given_or_asked(
    options: &Options,
    given: Option<String>,
    template: &Table,
    key: &str,
    question: &str,
) -> Result<String, String> {
    let template = template.get(key).and_then(Item::as_str).map(str::to_owned);
    if let Some(given) = given.or(template).filter(|given| !given.is_empty()) {
        return Ok(given);
    }
    if options.non_interactive {
        return Err(format!("--{key} is missing"));
    }
    Some(ask(question)?).filter(|answer| !answer.is_empty()).ok_or_else(|| format!("--{key} is missing"))
}

/// A line from whoever sits there.
fn ask(question: &str) -> Result<String, String> {
    if io::stdin().is_terminal() {
        print!("{question}: ");
    } else {
        println!("{question}:");
    }
    let flushed = io::stdout().flush();
    let mut line = String::new();
    flushed.and_then(|()| io::stdin().lock().read_line(&mut line)).map_err(|error| format!("no answer: {error}"))?;
    if line.is_empty() {
        return Err(format!("no answer to `{question}`; use --non-interactive with flags"));
    }
    Ok(line.trim().to_owned())
}

/// The runner as far as talking to its server goes.
fn runner(options: &Options, url: &str) -> Runner {
    let mut runner = Runner::unnamed(url, Token::new(""));
    let settings = &options.settings;
    let file = |text: &Option<String>| text.as_ref().map(PathBuf::from);
    runner.tls = config::tls_files(
        &options.file.path(),
        url,
        file(&settings.tls_ca_file),
        file(&settings.tls_cert_file),
        file(&settings.tls_key_file),
    );
    runner
}
