//! Taking over a configuration that was written anew. Tokens that are kept elsewhere are fetched by a thread: that may
//! take long, and the main loop must come round.

use std::thread;

use super::{Agent, Event, STACK, TOKEN_PATIENCE};
use crate::config::{Config, Loaded};
use crate::instance::aws::secrets;

/// A configuration with its tokens. Errors: one cannot be had.
pub struct Fetched {
    /// Of which reload this comes: an older one is of no use any more.
    number: u64,
    outcome: Result<Box<Loaded>, String>,
}

impl Agent {
    /// Reads the configuration again; one that cannot be used changes nothing.
    pub(super) fn reload(&mut self) {
        if self.leaving.is_some() {
            return;
        }
        self.supervisor.reloading();
        self.reloads += 1;
        match Config::load(&self.options.config) {
            Ok(loaded) if loaded.config.runners.iter().any(|runner| runner.token_reference.is_some()) => {
                self.fetch_tokens(loaded);
            }
            read => self.take_over(read.map_err(|error| error.to_string())),
        }
    }

    fn fetch_tokens(&mut self, mut loaded: Loaded) {
        let (events, number) = (self.events.clone(), self.reloads);
        let fetch = move || {
            let outcome = secrets::fill_in(&mut loaded.config, TOKEN_PATIENCE).map(|()| Box::new(loaded));
            let _ = events.send(Event::TokensFetched(Fetched { number, outcome }));
        };
        if let Err(error) = thread::Builder::new().name("tokens".to_owned()).stack_size(STACK).spawn(fetch) {
            self.take_over(Err(format!("no thread to fetch tokens: {error}")));
        }
    }

    /// Goes on with a reload whose tokens are there.
    pub(super) fn go_on_with(&mut self, fetched: Fetched) {
        if fetched.number != self.reloads {
            return;
        }
        match self.leaving {
            None => self.take_over(fetched.outcome.map(|loaded| *loaded)),
            Some(_) => self.supervisor.ready(),
        }
    }

    fn take_over(&mut self, loaded: Result<Loaded, String>) {
        match loaded.and_then(|loaded| self.adopt_configuration(loaded)) {
            Ok(()) => log::info!("configuration loaded path={}", self.options.config.display()),
            Err(why) => {
                self.monitoring.not_loaded();
                log::error!("the configuration is not taken over, the one before stays in force: {why}");
                // After an instance that may not leave, nobody asks for jobs yet.
                if self.generation.has_ended() {
                    self.start_pollers();
                }
            }
        }
        self.supervisor.ready();
    }
}
