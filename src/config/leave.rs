//! How an instance goes.

use std::time::Duration;

use serde::Deserialize;

/// What an agent does with its instance in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// It ends, and the instance lives on.
    #[default]
    Exit,
    /// It runs a command that sees to it.
    Command,
    /// It switches the instance off.
    Poweroff,
    /// It has its Auto Scaling group end the instance.
    AwsAsg,
}

impl Strategy {
    /// The word in the configuration and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Command => "command",
            Self::Poweroff => "poweroff",
            Self::AwsAsg => "aws-asg",
        }
    }
}

/// How an instance goes.
#[derive(Clone, Debug)]
pub struct Leave {
    /// What is done in the end.
    pub strategy: Strategy,
    /// A line for a shell, for [`Strategy::Command`].
    pub command: Option<String>,
    /// A line for a shell that switches the machine off.
    pub poweroff_command: String,
    /// How long after it was taken off its runners an instance that still lives is switched off.
    pub fallback_after: Duration,
}

impl Default for Leave {
    fn default() -> Self {
        Self {
            strategy: Strategy::Exit,
            command: None,
            poweroff_command: "systemctl poweroff".to_owned(),
            fallback_after: Duration::from_secs(300),
        }
    }
}
