//! `leave`: what the agent does with the instance after the drain.

use std::time::Duration;

use serde::Deserialize;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaveStrategy {
    /// The agent exits; the instance keeps running.
    #[default]
    Exit,
    /// The agent runs a command that terminates the instance.
    Command,
    /// The agent powers the instance off.
    Poweroff,
    /// The agent terminates the instance through its Auto Scaling group.
    AwsAsg,
}

impl LeaveStrategy {
    /// The value in the configuration and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Command => "command",
            Self::Poweroff => "poweroff",
            Self::AwsAsg => "aws-asg",
        }
    }
}

/// The settings of `leave`.
#[derive(Clone, Debug)]
pub struct LeaveSettings {
    /// The strategy as configured; `None` for the default, which depends on the instance.
    pub configured: Option<LeaveStrategy>,
    /// The strategy that applies; see [`LeaveSettings::apply_default`].
    pub strategy: LeaveStrategy,
    /// The shell command for [`LeaveStrategy::Command`].
    pub command: Option<String>,
    /// The shell command that powers the machine off.
    pub poweroff_command: String,
    /// How long after unregistering the agent powers off an instance that still runs.
    pub fallback_after: Duration,
}

impl Default for LeaveSettings {
    fn default() -> Self {
        Self {
            configured: None,
            strategy: LeaveStrategy::Exit,
            command: None,
            poweroff_command: "systemctl poweroff".to_owned(),
            fallback_after: Duration::from_secs(300),
        }
    }
}

impl LeaveSettings {
    /// Applies the default of the instance if no strategy is configured.
    pub fn apply_default(&mut self, default: LeaveStrategy) {
        self.strategy = self.configured.unwrap_or(default);
    }
}
