//! Reloads the configuration. A thread fetches tokens that are stored in AWS: that may take long, and the main loop must
//! not wait.

use std::thread;
use std::time::{Duration, Instant};

use super::{Agent, Event, STACK, TOKEN_TIMEOUT};
use crate::config::{Config, Loaded};
use crate::instance::aws::secrets;
use crate::token::Token;

/// How often tokens are fetched again at most because GitLab rejects one.
const REFETCH_INTERVAL: Duration = Duration::from_secs(60);
/// The instances of a fleet do not ask AWS at the same moment: each waits a random part of this time first.
const REFETCH_JITTER: Duration = Duration::from_secs(5);

/// Why tokens are fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FetchReason {
    Reload,
    /// GitLab rejected a token: only another token makes a difference.
    Rejected,
}

/// A configuration with its tokens. Errors: a token cannot be fetched.
pub struct FetchedTokens {
    /// The number of the reload: the result of an older reload is dropped.
    number: u64,
    reason: FetchReason,
    outcome: Result<Box<Loaded>, String>,
}

impl Agent {
    /// Reads the configuration again; one that cannot be used changes nothing.
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

    /// Fetches stored tokens again after GitLab rejected one; they may have been rotated.
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
            self.apply_configuration(Err(format!("no thread to fetch tokens: {error}")));
        }
    }

    /// Goes on with a reload whose tokens are there.
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

    /// Takes over tokens that differ from those in use.
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
                log::error!("the configuration is not taken over, the one before stays in force: {why}");
                // After an instance that may not leave, nobody asks for jobs yet.
                if self.pollers.is_stopped() {
                    self.start_pollers();
                }
            }
        }
        self.supervisor.ready();
    }
}
