//! The flags of `register`, by gitlab-runner's names where it has them.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args};

use super::keys::OtherKeys;
use crate::cli::{ConfigFile, boolean};

/// What `register` takes.
#[derive(Args)]
#[command(
    after_help = "gitlab-runner's flags for other keys (--cache-s3-bucket-name, --docker-image, …) are taken too, \
                        and written to the configuration."
)]
pub struct Options {
    #[command(flatten)]
    pub file: ConfigFile,
    /// A file with one runner, which fills in what no flag says
    #[arg(long, value_name = "FILE", env = "TEMPLATE_CONFIG_FILE")]
    pub template_config: Option<PathBuf>,
    /// Ask nothing
    #[arg(short, long, env = "REGISTER_NON_INTERACTIVE", action = ArgAction::Set,
          num_args = 0..=1, require_equals = true,
          value_name = "true|false",
          default_value = "false", default_missing_value = "true", hide_default_value = true, value_parser = boolean)]
    pub non_interactive: bool,
    /// Keep the runner on the server when a later step fails
    #[arg(long, env = "REGISTER_LEAVE_RUNNER", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          value_name = "true|false",
          default_value = "false", default_missing_value = "true", hide_default_value = true, value_parser = boolean)]
    pub leave_runner: bool,
    /// The server
    #[arg(short, long, env = "CI_SERVER_URL")]
    pub url: Option<String>,
    #[command(flatten)]
    pub tokens: Tokens,
    #[command(flatten)]
    pub attributes: Attributes,
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub others: OtherKeys,
}

/// Who vouches for the runner.
#[derive(Args)]
pub struct Tokens {
    /// The runner's authentication token (better: --token-file)
    #[arg(short, long, env = "CI_SERVER_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// A file with the authentication token, - for standard input
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<String>,
    /// A registration token, the old way
    #[arg(short, long, env = "REGISTRATION_TOKEN", hide_env_values = true)]
    pub registration_token: Option<String>,
    /// A file with a personal access token that may create runners, - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "token_file")]
    pub access_token_file: Option<String>,
}

/// Attributes of a runner that is made by this command.
#[derive(Args)]
pub struct Attributes {
    /// Whose runner it is
    #[arg(long, value_name = "TYPE", requires = "access_token_file",
          value_parser = ["instance_type", "group_type", "project_type"])]
    pub runner_type: Option<String>,
    /// The group, for group_type
    #[arg(long, value_name = "ID", requires = "access_token_file")]
    pub group_id: Option<i64>,
    /// The project, for project_type
    #[arg(long, value_name = "ID", requires = "access_token_file", conflicts_with = "group_id")]
    pub project_id: Option<i64>,
    /// Tags, separated by commas
    #[arg(long, env = "RUNNER_TAG_LIST")]
    pub tag_list: Option<String>,
    /// Take jobs without tags
    #[arg(long, env = "REGISTER_RUN_UNTAGGED", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          value_name = "true|false", default_missing_value = "true", value_parser = boolean)]
    pub run_untagged: Option<bool>,
    /// Not for other projects
    #[arg(long, env = "REGISTER_LOCKED", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          value_name = "true|false", default_missing_value = "true", value_parser = boolean)]
    pub locked: Option<bool>,
    /// Take no jobs yet
    #[arg(long, env = "REGISTER_PAUSED", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          value_name = "true|false", default_missing_value = "true", value_parser = boolean)]
    pub paused: Option<bool>,
    /// not_protected or ref_protected
    #[arg(long, env = "REGISTER_ACCESS_LEVEL")]
    pub access_level: Option<String>,
    /// Seconds that a job may take
    #[arg(long, env = "REGISTER_MAXIMUM_TIMEOUT")]
    pub maximum_timeout: Option<u32>,
    /// A note for people
    #[arg(long, env = "REGISTER_MAINTENANCE_NOTE")]
    pub maintenance_note: Option<String>,
}

/// Keys of the configuration.
#[derive(Args)]
pub struct Settings {
    /// The name of the runner
    #[arg(long, visible_alias = "description", env = "RUNNER_NAME")]
    pub name: Option<String>,
    /// shell or instance
    #[arg(long, env = "RUNNER_EXECUTOR")]
    pub executor: Option<String>,
    /// bash or sh
    #[arg(long, env = "RUNNER_SHELL")]
    pub shell: Option<String>,
    /// Jobs of this runner at once
    #[arg(long, env = "RUNNER_LIMIT")]
    pub limit: Option<u32>,
    /// Requests of this runner at once
    #[arg(long, env = "RUNNER_REQUEST_CONCURRENCY")]
    pub request_concurrency: Option<u32>,
    /// Kibibytes of a job's log
    #[arg(long, env = "RUNNER_OUTPUT_LIMIT")]
    pub output_limit: Option<u32>,
    /// Where builds are made
    #[arg(long, env = "RUNNER_BUILDS_DIR")]
    pub builds_dir: Option<String>,
    /// Overrides the server's URL for git
    #[arg(long, env = "CLONE_URL")]
    pub clone_url: Option<String>,
    /// KEY=VALUE for every job; may be given again
    #[arg(long = "env", value_name = "KEY=VALUE", env = "RUNNER_ENV")]
    pub environment: Vec<String>,
    /// Lines before the sources
    #[arg(long, env = "RUNNER_PRE_GET_SOURCES_SCRIPT")]
    pub pre_get_sources_script: Option<String>,
    /// Lines after the sources
    #[arg(long, env = "RUNNER_POST_GET_SOURCES_SCRIPT")]
    pub post_get_sources_script: Option<String>,
    /// Lines before each job's script
    #[arg(long, env = "RUNNER_PRE_BUILD_SCRIPT")]
    pub pre_build_script: Option<String>,
    /// Lines after each job's script
    #[arg(long, env = "RUNNER_POST_BUILD_SCRIPT")]
    pub post_build_script: Option<String>,
    /// Certificates to trust beside the system's
    #[arg(long, env = "CI_SERVER_TLS_CA_FILE")]
    pub tls_ca_file: Option<String>,
    /// The client's certificate
    #[arg(long, env = "CI_SERVER_TLS_CERT_FILE")]
    pub tls_cert_file: Option<String>,
    /// The client's key
    #[arg(long, env = "CI_SERVER_TLS_KEY_FILE")]
    pub tls_key_file: Option<String>,
}

/// Says which flags of a command line exclude each other. A token of the environment gives way to a file: what is typed
/// beats what is exported.
pub fn conflict(matches: &ArgMatches) -> Option<String> {
    let typed = |flag: &&str| matches.value_source(flag) == Some(ValueSource::CommandLine);
    let file = ["token_file", "access_token_file"].into_iter().find(typed)?;
    let token = ["token", "registration_token"].into_iter().find(typed)?;
    let flag = |id: &str| format!("--{}", id.replace('_', "-"));
    Some(format!("{} cannot be used with {}", flag(file), flag(token)))
}
