//! Kept connections, one pool for each way to reach a URL.
//!
//! A way is made when the first URL needs it: the authorities of the system are read only where there is TLS, and a
//! redirect to another scheme or host gets the trust and the proxy that are right there.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ureq::Agent;
use ureq::tls::TlsConfig;

use super::error::Error;
use super::proxy::{self, Proxy};
use super::socket;
use super::tls::{self, Stamp, TlsFiles};
use super::url::parse;

/// What decides which connections can serve a URL.
#[derive(Clone, PartialEq, Eq)]
struct Way {
    tls: bool,
    proxy: Option<Proxy>,
}

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
    trust: Option<TlsConfig>,
    agents: Vec<(Way, Agent)>,
}

impl Connections {
    pub(super) fn new(files: &TlsFiles, user_agent: &str, idle_age: Duration) -> Self {
        Self { files: files.clone(), user_agent: user_agent.to_owned(), idle_age, state: Mutex::default() }
    }

    /// The connections for a URL. Errors: the URL, the proxy of the environment, or a certificate file cannot be used.
    pub(super) fn agent(&self, url: &str) -> Result<Agent, Error> {
        let uri = parse(url)?;
        let proxy = proxy::of_environment(&uri).map_err(Error::Configuration)?;
        let is_tls = uri.scheme_str() == Some("https") || proxy.as_ref().is_some_and(Proxy::is_tls);
        let way = Way { tls: is_tls, proxy };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.reload(&mut state);
        if let Some((_, agent)) = state.agents.iter().find(|(known, _)| *known == way) {
            return Ok(agent.clone());
        }
        let agent = self.build(&way, &mut state)?;
        state.agents.push((way, agent.clone()));
        Ok(agent)
    }

    /// Reads the certificate files again when they have changed. What cannot be read, say a file that is just being
    /// written, leaves the old trust in force: the agent must not fall silent over it.
    fn reload(&self, state: &mut State) {
        let stamp = self.files.stamp();
        if state.stamp == stamp {
            return;
        }
        if state.trust.is_some() {
            match tls::config(&self.files) {
                Ok(trust) => (state.trust, state.agents) = (Some(trust), Vec::new()),
                Err(why) => log::error!("changed certificates cannot be used; the old ones stay in force error={why}"),
            }
        }
        state.stamp = stamp;
    }

    fn build(&self, way: &Way, state: &mut State) -> Result<Agent, Error> {
        let mut config = socket::plain_config()
            .user_agent(self.user_agent.as_str())
            .proxy(way.proxy.as_ref().map(Proxy::for_agent))
            .input_buffer_size(16 * 1024)
            .output_buffer_size(16 * 1024)
            .max_idle_connections(100)
            .max_idle_age(self.idle_age.min(Duration::from_secs(90)))
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(600)))
            .timeout_global(Some(Duration::from_secs(3600)));
        if way.tls {
            let trust = match &state.trust {
                Some(trust) => trust.clone(),
                None => tls::config(&self.files).map_err(Error::Configuration)?,
            };
            state.trust = Some(trust.clone());
            config = config.tls_config(trust);
        }
        Ok(socket::agent(config.build()))
    }
}
