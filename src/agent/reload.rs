//! Reloads the configuration. A thread fetches tokens that are stored in AWS, because that may take long and the main
//! loop must not block.

use std::thread;
use std::time::{Duration, Instant};

use super::{Agent, AgentEvent, STACK};
use crate::config::{Config, LoadedConfig};
use crate::instance::aws::secrets;
use crate::sync;
use crate::token::Token;

/// Each instance waits a random part of this time first, so that a fleet does not call AWS at the same moment.
const REFETCH_JITTER: Duration = Duration::from_secs(5);

/// Interval of the retries while the agent has no usable configuration.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// The reloads of the configuration so far.
#[derive(Default)]
pub(super) struct ReloadHistory {
    /// Number of reloads.
    count: u64,
    /// When the agent last fetched tokens because GitLab rejected one.
    last_token_fetch: Option<Instant>,
}

/// The agent has no usable configuration: it finishes its jobs and does not poll.
pub(super) struct Unconfigured {
    /// The error of the configuration.
    why: String,
    /// When the agent loads the configuration again; `None` while it fetches the tokens.
    retry_at: Option<Instant>,
}

/// Why tokens are fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FetchReason {
    /// The configuration was loaded.
    Reload,
    /// GitLab rejected a token. The configuration is applied only if a fetched token differs.
    Rejected,
}

/// A configuration whose tokens were fetched.
pub struct FetchedTokens {
    /// Number of the reload; the result of an older reload is discarded.
    number: u64,
    reason: FetchReason,
    loaded: Box<LoadedConfig>,
    /// Errors: a token cannot be fetched.
    outcome: Result<(), String>,
}

impl Agent {
    /// Reloads the configuration. If it is not usable, the old one stays in use.
    pub(super) fn reload(&mut self) {
        if self.shutdown.is_some() {
            return;
        }
        self.service_manager.reloading();
        self.reloads.count += 1;
        match Config::load(&self.options.config) {
            Ok(loaded) if loaded.config.has_stored_tokens() => {
                self.fetch_tokens(loaded, FetchReason::Reload);
            }
            loaded => self.apply_configuration(loaded.map_err(|error| error.to_string())),
        }
    }

    /// Fetches the stored tokens again after GitLab rejected one, because they may have been rotated.
    pub(super) fn fetch_rejected_tokens(&mut self) {
        if self.shutdown.is_some()
            || self.reloads.last_token_fetch.is_some_and(|last| last.elapsed() < secrets::REFETCH_INTERVAL)
        {
            return;
        }
        self.reloads.last_token_fetch = Some(Instant::now());
        match Config::load(&self.options.config) {
            Ok(loaded) => self.fetch_tokens(loaded, FetchReason::Rejected),
            Err(error) => log::error!("cannot fetch the stored tokens again error={error}"),
        }
    }

    /// Fetches stored tokens in a thread; [`AgentEvent::TokensFetched`] follows.
    pub(super) fn fetch_tokens(&mut self, loaded: LoadedConfig, reason: FetchReason) {
        let (events, number, mut loaded) = (self.events.clone(), self.reloads.count, Box::new(loaded));
        // After a rejected token, the retry of an unusable configuration stays due.
        if reason == FetchReason::Reload
            && let Some(unconfigured) = &mut self.unconfigured
        {
            unconfigured.retry_at = None;
        }
        let fetch = move || {
            if reason == FetchReason::Rejected {
                // Nothing waits for this thread: a stop ends it with the process, and a reload discards its result.
                thread::sleep(REFETCH_JITTER.mul_f64(crate::random::fraction()));
            }
            let outcome = secrets::fetch_tokens(&mut loaded.config, secrets::FETCH_TIMEOUT);
            let _ = events.send(AgentEvent::TokensFetched(FetchedTokens { number, reason, loaded, outcome }));
        };
        if let Err(error) = sync::spawn("tokens", STACK, fetch) {
            self.apply_configuration(Err(format!("cannot start the thread that fetches tokens: {error}")));
        }
    }

    /// Applies a configuration when its tokens have been fetched.
    pub(super) fn handle_fetched_tokens(&mut self, fetched: FetchedTokens) {
        if fetched.number != self.reloads.count {
            return;
        }
        let FetchedTokens { reason, loaded, outcome, .. } = fetched;
        if reason == FetchReason::Rejected {
            return self.apply_new_tokens(outcome.map(|()| *loaded));
        }
        match (&self.shutdown, &self.unconfigured) {
            (None, _) => self.apply_configuration(outcome.map(|()| *loaded)),
            (Some(_), None) => self.service_manager.ready(),
            (Some(_), Some(_)) => self.shut_down_with(*loaded, outcome),
        }
    }

    /// Applies the parts of a configuration that a shutdown needs. The shutdown continues without a token: an instance
    /// that keeps running costs more than a runner manager that stays registered.
    fn shut_down_with(&mut self, loaded: LoadedConfig, tokens: Result<(), String>) {
        if let Err(why) = tokens {
            log::error!("shutting down without a token, so the runner manager stays registered error={why}");
        }
        if let Err(why) = self.adopt_configuration(loaded) {
            log::error!("shutting down without a part of the configuration error={why}");
            self.await_configuration(why);
        }
    }

    /// Records that the configuration is not usable, and why. The agent loads it again when the file changes, and
    /// periodically.
    pub(super) fn await_configuration(&mut self, why: String) {
        self.unconfigured = Some(Unconfigured { why, retry_at: Some(Instant::now() + RETRY_INTERVAL) });
    }

    /// Loads the configuration again if a retry is due. Otherwise returns the time until the retry.
    pub(super) fn retry_configuration(&mut self) -> Option<Duration> {
        let retry_at = self.unconfigured.as_ref()?.retry_at?;
        let left = retry_at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.reload();
        }
        Some(left)
    }

    /// True while the tokens of the first configuration are being fetched.
    pub(super) fn awaits_tokens(&self) -> bool {
        self.unconfigured.as_ref().is_some_and(|unconfigured| unconfigured.retry_at.is_none())
    }

    /// The error to exit with, if the agent has no usable configuration and nothing left to finish without one.
    pub(super) fn cannot_continue(&self) -> Option<String> {
        let unconfigured = self.unconfigured.as_ref().filter(|_| self.shutdown.is_none() && self.is_idle())?;
        Some(unconfigured.why.clone())
    }

    /// Applies the configuration if a token differs from those in use.
    fn apply_new_tokens(&mut self, outcome: Result<LoadedConfig, String>) {
        if self.shutdown.is_some() {
            return;
        }
        match outcome {
            Ok(loaded) => {
                let in_use = |token: &Token| self.config.runners.iter().any(|runner| runner.token == *token);
                if loaded.config.runners.iter().any(|runner| !in_use(&runner.token)) {
                    log::info!("stored tokens have changed; the runners use the new ones");
                    self.service_manager.reloading();
                    self.apply_configuration(Ok(loaded));
                }
            }
            Err(why) => log::error!("cannot fetch the stored tokens again error={why}"),
        }
    }

    fn apply_configuration(&mut self, loaded: Result<LoadedConfig, String>) {
        match loaded.and_then(|loaded| self.adopt_configuration(loaded)) {
            Ok(()) => log::info!("configuration loaded path={}", self.options.config.display()),
            Err(why) if self.unconfigured.is_some() => {
                self.monitoring.record_rejected_configuration();
                log::error!("the configuration still cannot be used; polling is stopped error={why}");
                self.await_configuration(why);
            }
            Err(why) => {
                self.monitoring.record_rejected_configuration();
                log::error!("cannot apply the configuration; the old one stays in use error={why}");
                // The pollers are stopped if the agent resumes work because the group kept the instance.
                if self.pollers.is_stopped() {
                    self.start_pollers();
                }
            }
        }
        self.service_manager.ready();
    }
}
