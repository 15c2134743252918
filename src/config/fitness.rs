//! When a machine is fit to run jobs, and what the agent does while it is not.

use std::time::Duration;

use serde::Deserialize;

/// Free space that is wanted where nothing is configured: a twentieth of the file system,
const SPACE_DIVISOR: u64 = 20;
/// but not more than this many bytes. So an 8 GB disk keeps 400 MB, a 500 GB disk 1 GiB.
const MOST_SPACE: u64 = 1 << 30;
/// Free inodes that are wanted where nothing is configured: a hundredth of the file system's,
const INODES_DIVISOR: u64 = 100;
/// but not more than this many.
const MOST_INODES: u64 = 10_000;

/// What the agent does with a machine that stays unfit (`[mayfly] unfit`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenUnfit {
    /// It waits until the machine is fit again.
    #[default]
    Wait,
    /// After `unfit_timeout` it shuts the instance down as `leave` says; a group replaces it.
    Leave,
}

/// How long the commands that say whether a machine is ready are repeated where nothing is configured.
pub const READY_TIMEOUT: Duration = Duration::from_secs(600);

/// What must succeed before the agent asks for its first job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Lines for a shell, in order: `ready_command`, then each runner's `instance_ready_command`.
    pub commands: Vec<String>,
    /// How long they are repeated before the start fails.
    pub timeout: Duration,
}

/// The fitness keys of `[mayfly]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fitness {
    /// Free bytes wanted in the state, builds and cache directories; `None` for the default of the file system's size.
    pub min_free_space: Option<u64>,
    /// Free inodes wanted there; `None` for the default.
    pub min_free_inodes: Option<u64>,
    /// System failures in a row before a runner pauses; `None` for no pause.
    pub max_system_failures: Option<u32>,
    /// What happens to a machine that stays unfit.
    pub when_unfit: WhenUnfit,
    /// How long an unfit machine is given before [`WhenUnfit::Leave`].
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
    /// Free bytes wanted on a file system of `total` bytes.
    pub fn wanted_space(&self, total: u64) -> u64 {
        self.min_free_space.unwrap_or_else(|| (total / SPACE_DIVISOR).min(MOST_SPACE))
    }

    /// Free inodes wanted on a file system that has `total` of them; some have no fixed number and say 0.
    pub fn wanted_inodes(&self, total: u64) -> u64 {
        match total {
            0 => 0,
            total => self.min_free_inodes.unwrap_or_else(|| (total / INODES_DIVISOR).min(MOST_INODES)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_suit_small_and_large_disks() {
        let fitness = Fitness::default();
        assert_eq!(fitness.wanted_space(8_000_000_000), 400_000_000);
        assert_eq!(fitness.wanted_space(500_000_000_000), 1 << 30);
        assert_eq!((fitness.wanted_inodes(0), fitness.wanted_inodes(500_000)), (0, 5_000));
        assert_eq!(fitness.wanted_inodes(30_000_000), 10_000);
        let own = Fitness { min_free_space: Some(7), min_free_inodes: Some(8), ..Fitness::default() };
        assert_eq!((own.wanted_space(1), own.wanted_inodes(1)), (7, 8));
    }
}
