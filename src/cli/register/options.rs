//! The flags of `register`, with gitlab-runner's names where it has an equivalent.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args};

use super::keys::OtherKeys;
use crate::cli::{ConfigFile, boolean};

#[derive(Args)]
#[command(
    after_help = "gitlab-runner's flags for other keys (--cache-s3-bucket-name, --docker-image, …) are also accepted, \
                        and written to the configuration."
)]
pub struct RegisterArgs {
    #[command(flatten)]
    pub file: ConfigFile,
    /// A configuration file with one runner, whose keys apply where no flag sets them
    #[arg(long, value_name = "FILE", env = "TEMPLATE_CONFIG_FILE")]
    pub template_config: Option<PathBuf>,
    /// Do not ask for missing values
    #[arg(short, long, env = "REGISTER_NON_INTERACTIVE", action = ArgAction::Set,
          num_args = 0..=1, require_equals = true,
          value_name = "true|false",
          default_value = "false", default_missing_value = "true", hide_default_value = true, value_parser = boolean)]
    pub non_interactive: bool,
    /// Keep the runner in GitLab if a later step fails
    #[arg(long, env = "REGISTER_LEAVE_RUNNER", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          value_name = "true|false",
          default_value = "false", default_missing_value = "true", hide_default_value = true, value_parser = boolean)]
    pub leave_runner: bool,
    /// The URL of GitLab
    #[arg(short, long, env = "CI_SERVER_URL")]
    pub url: Option<String>,
    #[command(flatten)]
    pub tokens: GivenTokens,
    #[command(flatten)]
    pub attributes: Attributes,
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub others: OtherKeys,
}

/// The token to register with.
#[derive(Args)]
pub struct GivenTokens {
    /// The runner's authentication token (prefer --token-file)
    #[arg(short, long, env = "CI_SERVER_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// A file with the authentication token; - for standard input
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<String>,
    /// A registration token (deprecated by GitLab)
    #[arg(short, long, value_name = "TOKEN", env = "REGISTRATION_TOKEN", hide_env_values = true)]
    pub registration_token: Option<String>,
    /// A file with a personal access token that may create runners; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "token_file")]
    pub access_token_file: Option<String>,
}

/// Attributes of a runner to create.
#[derive(Args)]
pub struct Attributes {
    /// The scope of the new runner
    #[arg(long, value_name = "TYPE", requires = "access_token_file",
          value_parser = ["instance_type", "group_type", "project_type"])]
    pub runner_type: Option<String>,
    /// The id of the group, for group_type
    #[arg(long, value_name = "ID", requires = "access_token_file")]
    pub group_id: Option<i64>,
    /// The id of the project, for project_type
    #[arg(long, value_name = "ID", requires = "access_token_file", conflicts_with = "group_id")]
    pub project_id: Option<i64>,
    /// The tags of the runner, separated by commas
    #[arg(long, value_name = "TAGS", env = "RUNNER_TAG_LIST")]
    pub tag_list: Option<String>,
    /// Run jobs without tags
    #[arg(long, env = "REGISTER_RUN_UNTAGGED", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          value_name = "true|false", default_missing_value = "true", value_parser = boolean)]
    pub run_untagged: Option<bool>,
    /// Lock the runner to its project
    #[arg(long, env = "REGISTER_LOCKED", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          value_name = "true|false", default_missing_value = "true", value_parser = boolean)]
    pub locked: Option<bool>,
    /// Register the runner as paused
    #[arg(long, env = "REGISTER_PAUSED", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          value_name = "true|false", default_missing_value = "true", value_parser = boolean)]
    pub paused: Option<bool>,
    /// The jobs that the runner runs: not_protected (all) or ref_protected (those of protected refs)
    #[arg(long, value_name = "LEVEL", env = "REGISTER_ACCESS_LEVEL")]
    pub access_level: Option<String>,
    /// The maximum timeout of a job, in seconds
    #[arg(long, value_name = "SECONDS", env = "REGISTER_MAXIMUM_TIMEOUT")]
    pub maximum_timeout: Option<u32>,
    /// The maintenance note of the runner in GitLab
    #[arg(long, value_name = "TEXT", env = "REGISTER_MAINTENANCE_NOTE")]
    pub maintenance_note: Option<String>,
}

#[derive(Args)]
pub struct Settings {
    /// The name of the runner
    #[arg(long, visible_alias = "description", env = "RUNNER_NAME")]
    pub name: Option<String>,
    /// The executor: shell, instance, docker, docker-autoscaler or docker+machine
    #[arg(long, env = "RUNNER_EXECUTOR")]
    pub executor: Option<String>,
}

/// The first pair of conflicting flags. A token in the environment is ignored if a file is given: the command line
/// takes precedence.
pub fn conflict(matches: &ArgMatches) -> Option<String> {
    let typed = |flag: &&str| matches.value_source(flag) == Some(ValueSource::CommandLine);
    let file = ["token_file", "access_token_file"].into_iter().find(typed)?;
    let token = ["token", "registration_token"].into_iter().find(typed)?;
    let flag = |id: &str| format!("--{}", id.replace('_', "-"));
    Some(format!("{} cannot be used with {}", flag(file), flag(token)))
}
