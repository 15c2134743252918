//! Kept connections, one pool for each route.
//!
//! A pool is created for the first URL that needs it. So the system's certificate authorities are read only if TLS is
//! used, and a redirect to another scheme or host uses the proxy for that URL.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ClientConfig;
use ureq::Agent;

use super::error::HttpError;
use super::proxy::Route;
use super::socket;
use super::tls::{self, Stamp, TlsFiles};
use super::url::parse;

use crate::sync;

/// All connections of a client.
pub(super) struct Connections {
    files: TlsFiles,
    user_agent: String,
    idle_age: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The state of the files from which `trust` was read.
    stamp: Stamp,
    trust: Option<Arc<ClientConfig>>,
    agents: Vec<KeptAgent>,
}

/// The HTTP agent of a route.
struct KeptAgent {
    route: Route,
    uses_tls: bool,
    agent: Agent,
}

impl Connections {
    pub(super) fn new(files: &TlsFiles, user_agent: &str, idle_age: Duration) -> Self {
        Self { files: files.clone(), user_agent: user_agent.to_owned(), idle_age, state: Mutex::default() }
    }

    /// The connections for a URL, and their route. Fails if the URL, the proxy in the environment, or a certificate
    /// file is unusable.
    pub(super) fn agent(&self, url: &str) -> Result<(Agent, Route), HttpError> {
        let uri = parse(url)?;
        let route = Route::from_environment(&uri).map_err(HttpError::Configuration)?;
        let uses_tls = route.needs_tls(uri.scheme_str());
        let mut state = sync::lock(&self.state);
        self.reload(&mut state);
        let known = state.agents.iter().find(|known| known.route == route && known.uses_tls == uses_tls);
        if let Some(known) = known {
            return Ok((known.agent.clone(), route));
        }
        let trust = uses_tls.then(|| self.trust(&mut state)).transpose().map_err(HttpError::Configuration)?;
        let agent = self.build(&route, trust).map_err(HttpError::Configuration)?;
        state.agents.push(KeptAgent { route: route.clone(), uses_tls, agent: agent.clone() });
        Ok((agent, route))
    }

    /// Reloads the certificate files when they have changed. If they are unusable, for example because they are being
    /// written, the previous ones stay in use, so that the agent stays connected.
    fn reload(&self, state: &mut State) {
        let stamp = self.files.stamp();
        if state.stamp == stamp {
            return;
        }
        if state.trust.is_some() {
            match tls::config(&self.files) {
                Ok(trust) => (state.trust, state.agents) = (Some(trust), Vec::new()),
                Err(why) => {
                    log::error!("cannot use the changed certificate files; keeping the previous ones error={why}");
                }
            }
        }
        state.stamp = stamp;
    }

    /// The TLS configuration, which is read from the certificate files when it is first needed.
    fn trust(&self, state: &mut State) -> Result<Arc<ClientConfig>, String> {
        match &state.trust {
            Some(trust) => Ok(Arc::clone(trust)),
            None => Ok(Arc::clone(state.trust.insert(tls::config(&self.files)?))),
        }
    }

    fn build(&self, route: &Route, trust: Option<Arc<ClientConfig>>) -> Result<Agent, String> {
        let config = socket::plain_config()
            .user_agent(self.user_agent.as_str())
            .input_buffer_size(16 * 1024)
            .output_buffer_size(16 * 1024)
            .max_idle_connections(100)
            .max_idle_age(self.idle_age.min(Duration::from_secs(90)))
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(600)))
            .timeout_global(Some(Duration::from_secs(3600)));
        socket::agent(config, route, trust)
    }
}
