//! Kept connections, one pool for each route.
//!
//! A pool is made when the first URL needs it: the system's certificate authorities are read only where TLS is used, and
//! a redirect to another scheme or host takes the proxy that is right for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use ureq::Agent;

use super::error::Error;
use super::proxy::Route;
use super::socket;
use super::tls::{self, Stamp, TlsFiles};
use super::url::parse;

/// All connections of a client.
pub(super) struct Connections {
    files: TlsFiles,
    user_agent: String,
    idle_age: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The files that `trust` was read from.
    stamp: Stamp,
    trust: Option<Arc<ClientConfig>>,
    /// By route, and by whether it uses TLS.
    agents: Vec<(Route, bool, Agent)>,
}

impl Connections {
    pub(super) fn new(files: &TlsFiles, user_agent: &str, idle_age: Duration) -> Self {
        Self { files: files.clone(), user_agent: user_agent.to_owned(), idle_age, state: Mutex::default() }
    }

    /// The connections for a URL, and the route they take. Errors: the URL, the proxy of the environment, or a
    /// certificate file cannot be used.
    pub(super) fn agent(&self, url: &str) -> Result<(Agent, Route), Error> {
        let uri = parse(url)?;
        let route = Route::of(&uri).map_err(Error::Configuration)?;
        let needs_tls = route.needs_tls(uri.scheme_str());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.reload(&mut state);
        let known = state.agents.iter().find(|(known, tls, _)| *known == route && *tls == needs_tls);
        if let Some((.., agent)) = known {
            return Ok((agent.clone(), route));
        }
        let agent = self.build(&route, needs_tls, &mut state).map_err(Error::Configuration)?;
        state.agents.push((route.clone(), needs_tls, agent.clone()));
        Ok((agent, route))
    }

    /// Reads the certificate files again when they have changed. Files that cannot be used, for example because they are
    /// being written, leave the previous ones in force, so that the agent stays connected.
    fn reload(&self, state: &mut State) {
        let stamp = self.files.stamp();
        if state.stamp == stamp {
            return;
        }
        if state.trust.is_some() {
            match tls::config(&self.files) {
                Ok(trust) => (state.trust, state.agents) = (Some(trust), Vec::new()),
                Err(why) => {
                    log::error!(
                        "changed certificate files cannot be used; the previous ones stay in force error={why}"
                    );
                }
            }
        }
        state.stamp = stamp;
    }

    fn build(&self, route: &Route, needs_tls: bool, state: &mut State) -> Result<Agent, String> {
        let config = socket::plain_config()
            .user_agent(self.user_agent.as_str())
            .input_buffer_size(16 * 1024)
            .output_buffer_size(16 * 1024)
            .max_idle_connections(100)
            .max_idle_age(self.idle_age.min(Duration::from_secs(90)))
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(600)))
            .timeout_global(Some(Duration::from_secs(3600)));
        if needs_tls && state.trust.is_none() {
            state.trust = Some(tls::config(&self.files)?);
        }
        socket::agent(config, route, state.trust.clone().filter(|_| needs_tls))
    }
}
