//! Waits for the user of the jobs. While that user does not exist, the machine is unfit. The agent sets up the runners
//! when the user appears, for example because the directory service answers.

use std::time::{Duration, Instant};

use nix::unistd::Uid;

use super::Agent;
use super::fitness::{RECHECK_INTERVAL, Unfit};
use crate::config::Config;
use crate::executor::user;
use crate::monitor::metrics::RunnerLabels;

/// Interval between two attempts to load the configuration after the user has appeared. Loading may fetch tokens.
const RELOAD_INTERVAL: Duration = Duration::from_secs(90);

/// The runners that wait for the user of their jobs.
pub(super) struct AwaitedUser {
    /// The user, or the pattern for one user per slot.
    name: String,
    slots: u32,
    /// Why jobs cannot run as the user.
    why: String,
    runners: Vec<RunnerLabels>,
    retry_at: Instant,
}

impl Agent {
    /// Removes the runners whose jobs cannot run because their user does not exist. If the agent already polls, it
    /// removes no runner: it rejects the configuration and keeps the old one.
    pub(super) fn remove_runners_without_user(&self, config: &mut Config) -> Option<AwaitedUser> {
        let is_polling = !self.servers.is_empty() && self.awaited_user.is_none();
        let name = self.options.user.as_deref().or(config.user.as_deref())?.to_owned();
        if is_polling || !Uid::effective().is_root() {
            return None;
        }
        let why = user::slot_users(&name, config.concurrent).err()?;
        let (runners, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut config.runners).into_iter().partition(|runner| runner.executor.has_containers());
        config.runners = runners;
        let runners: Vec<RunnerLabels> = waiting.iter().map(RunnerLabels::from).collect();
        let retry_at = Instant::now() + RECHECK_INTERVAL;
        (!runners.is_empty()).then_some(AwaitedUser { name, slots: config.concurrent, why, runners, retry_at })
    }

    /// Waits for this user from now on. The runners that have their user now are fit, and runners that are no longer
    /// configured have no status.
    pub(super) fn await_user(&mut self, awaited: Option<AwaitedUser>) {
        let before = std::mem::replace(&mut self.awaited_user, awaited);
        let polling: Vec<RunnerLabels> = self.servers.iter().map(|(runner, _)| RunnerLabels::from(&**runner)).collect();
        let waiting = self.awaited_user.iter().flat_map(|awaited| awaited.runners.iter().cloned());
        self.status.set_configured(polling.iter().cloned().chain(waiting).collect());
        for runner in before.iter().flat_map(|before| &before.runners).filter(|runner| polling.contains(runner)) {
            self.status.set(runner, &Ok(()));
        }
        if let Some(awaited) = &self.awaited_user {
            let unfit = Err(Unfit::User(awaited.why.clone()));
            for runner in &awaited.runners {
                self.status.set(runner, &unfit);
            }
        }
    }

    /// Loads the configuration again when the awaited user exists. Returns the time until the next check.
    pub(super) fn check_awaited_user(&mut self) -> Option<Duration> {
        let awaited = self.awaited_user.as_mut()?;
        let left = awaited.retry_at.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(left);
        }
        let exists = user::slot_users(&awaited.name, awaited.slots).is_ok();
        let interval = if exists { RELOAD_INTERVAL } else { RECHECK_INTERVAL };
        awaited.retry_at = Instant::now() + interval;
        if exists {
            self.reload();
        }
        Some(interval)
    }
}
