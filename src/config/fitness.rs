//! The requirements for a machine to run jobs, and the reaction if it does not meet them.

use std::time::Duration;

use serde::Deserialize;

/// The default for required free space: this fraction of the file system, but at most [`MAX_DEFAULT_SPACE`].
const SPACE_DIVISOR: u64 = 20;
/// The largest default, in bytes. An 8 GB disk keeps 400 MB free, a 500 GB disk 1 GiB.
const MAX_DEFAULT_SPACE: u64 = 1 << 30;
/// The default for required free inodes: this fraction of the file system's inodes, but at most [`MAX_DEFAULT_INODES`].
const INODES_DIVISOR: u64 = 100;
/// The largest default number of inodes.
const MAX_DEFAULT_INODES: u64 = 10_000;

/// The reaction to a machine that stays unfit (`[mayfly] unfit`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenUnfit {
    /// Wait until the machine is fit again.
    #[default]
    Wait,
    /// After `unfit_timeout`, shut the instance down as `leave` configures; a group replaces it.
    Leave,
}

/// The default timeout of the readiness commands.
pub const READY_TIMEOUT: Duration = Duration::from_secs(600);

/// The readiness commands, which must succeed before the first poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadinessCommands {
    /// Shell commands in order: `ready_command`, then each runner's `instance_ready_command`.
    pub commands: Vec<String>,
    /// How long the agent repeats the commands before the machine counts as unfit.
    pub timeout: Duration,
}

/// The fitness keys of `[mayfly]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fitness {
    /// Free bytes required in the state, builds and cache directories; `None` for the default by file system size.
    pub min_free_space: Option<u64>,
    /// Free inodes required in these directories; `None` for the default.
    pub min_free_inodes: Option<u64>,
    /// The number of system failures in a row before a runner pauses; `None` for no pause.
    pub max_system_failures: Option<u32>,
    pub when_unfit: WhenUnfit,
    /// The time before [`WhenUnfit::Leave`] takes effect.
    pub unfit_timeout: Duration,
}

impl Default for Fitness {
    fn default() -> Self {
        Self {
            min_free_space: None,
            min_free_inodes: None,
            max_system_failures: Some(3),
            when_unfit: WhenUnfit::Wait,
            unfit_timeout: Duration::from_secs(600),
        }
    }
}

impl Fitness {
    /// The free bytes required on a file system of `total` bytes.
    pub fn required_space(&self, total: u64) -> u64 {
        self.min_free_space.unwrap_or_else(|| (total / SPACE_DIVISOR).min(MAX_DEFAULT_SPACE))
    }

    /// The free inodes required on a file system with `total` inodes; 0 if the file system has no fixed number.
    pub fn required_inodes(&self, total: u64) -> u64 {
        match total {
            0 => 0,
            total => self.min_free_inodes.unwrap_or_else(|| (total / INODES_DIVISOR).min(MAX_DEFAULT_INODES)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_suit_small_and_large_disks() {
        let fitness = Fitness::default();
        assert_eq!(fitness.required_space(8_000_000_000), 400_000_000);
        assert_eq!(fitness.required_space(500_000_000_000), 1 << 30);
        assert_eq!((fitness.required_inodes(0), fitness.required_inodes(500_000)), (0, 5_000));
        assert_eq!(fitness.required_inodes(30_000_000), 10_000);
        let own = Fitness { min_free_space: Some(7), min_free_inodes: Some(8), ..Fitness::default() };
        assert_eq!((own.required_space(1), own.required_inodes(1)), (7, 8));
    }
}
