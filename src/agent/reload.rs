//! Reloads the configuration. A thread fetches tokens that are stored in AWS, because that may take long and the main
//! loop must not block.

use std::thread;
use std::time::{Duration, Instant};

use super::{Agent, Event, STACK, TOKEN_TIMEOUT};
use crate::config::{Config, Loaded};
use crate::instance::aws::secrets;
use crate::token::Token;

/// Minimum interval between two fetches because GitLab rejected a token.
const REFETCH_INTERVAL: Duration = Duration::from_secs(60);
/// Each instance waits a random part of this time first, so that a fleet does not call AWS at the same moment.
const REFETCH_JITTER: Duration = Duration::from_secs(5);

/// Why tokens are fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FetchReason {
    Reload,
    /// GitLab rejected a token; only a different token is useful.
    Rejected,
}

/// A configuration with its tokens, or the error of the fetch.
pub struct FetchedTokens {
    /// Number of the reload; the result of an older reload is discarded.
    number: u64,
    reason: FetchReason,
    outcome: Result<Box<Loaded>, String>,
}

impl Agent {
    /// Reloads the configuration. If it is not usable, the old one stays in use.
    pub(super) fn reload(&mut self) {
        if self.shutdown.is_some() {
            return;
        }
        self.supervisor.reloading();
        self.reloads += 1;
        match Config::load(&self.options.config) {
            Ok(loaded) if loaded.config.runners.iter().any(|runner| runner.token_reference.is_some()) => {
                self.fetch_tokens(loaded, FetchReason::Reload);
            }
            read => self.apply_configuration(read.map_err(|error| error.to_string())),
        }
    }

    /// Fetches the stored tokens again after GitLab rejected one, because they may have been rotated.
    pub(super) fn fetch_rejected_tokens(&mut self) {
        if self.shutdown.is_some() || self.last_token_fetch.is_some_and(|last| last.elapsed() < REFETCH_INTERVAL) {
            return;
        }
        self.last_token_fetch = Some(Instant::now());
        match Config::load(&self.options.config) {
            Ok(loaded) => self.fetch_tokens(loaded, FetchReason::Rejected),
            Err(error) => log::error!("stored tokens are not fetched again error={error}"),
        }
    }

    fn fetch_tokens(&mut self, mut loaded: Loaded, reason: FetchReason) {
        let (events, number) = (self.events.clone(), self.reloads);
        let fetch = move || {
            if reason == FetchReason::Rejected {
                thread::sleep(REFETCH_JITTER.mul_f64(crate::random::fraction()));
            }
            let outcome = secrets::fill_in(&mut loaded.config, TOKEN_TIMEOUT).map(|()| Box::new(loaded));
            let _ = events.send(Event::TokensFetched(FetchedTokens { number, reason, outcome }));
        };
        if let Err(error) = thread::Builder::new().name("tokens".to_owned()).stack_size(STACK).spawn(fetch) {
            self.apply_configuration(Err(format!("cannot start the thread that fetches tokens: {error}")));
        }
    }

    /// Applies a configuration when its tokens have been fetched.
    pub(super) fn handle_fetched_tokens(&mut self, fetched: FetchedTokens) {
        if fetched.number != self.reloads {
            return;
        }
        if fetched.reason == FetchReason::Rejected {
            return self.apply_new_tokens(fetched.outcome.map(|loaded| *loaded));
        }
        match self.shutdown {
            None => self.apply_configuration(fetched.outcome.map(|loaded| *loaded)),
            Some(_) => self.supervisor.ready(),
        }
    }

    /// Applies the configuration if a token differs from those in use.
    fn apply_new_tokens(&mut self, outcome: Result<Loaded, String>) {
        if self.shutdown.is_some() {
            return;
        }
        match outcome {
            Ok(loaded) => {
                let in_use = |token: &Token| self.config.runners.iter().any(|runner| runner.token == *token);
                if loaded.config.runners.iter().any(|runner| !in_use(&runner.token)) {
                    log::info!("stored tokens have changed; the runners use the new ones");
                    self.supervisor.reloading();
                    self.apply_configuration(Ok(loaded));
                }
            }
            Err(why) => log::error!("stored tokens cannot be fetched again error={why}"),
        }
    }

    fn apply_configuration(&mut self, loaded: Result<Loaded, String>) {
        match loaded.and_then(|loaded| self.adopt_configuration(loaded)) {
            Ok(()) => log::info!("configuration loaded path={}", self.options.config.display()),
            Err(why) => {
                self.monitoring.record_rejected_configuration();
                log::error!("cannot apply the configuration; the old one stays in use error={why}");
                // The pollers are stopped if the agent resumes work after the group kept the instance.
                if self.pollers.is_stopped() {
                    self.start_pollers();
                }
            }
        }
        self.supervisor.ready();
    }
}
