//! `[mayfly.manager]`: the server of `mayfly manager` for its agents.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::duration;
use super::expand;
use super::reference::TokenReference;
use crate::token::Token;

/// The default port for connections of agents.
const DEFAULT_PORT: u16 = 9443;

/// The table as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Table {
    listen: Option<String>,
    certificate_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    plain_http: bool,
    agent_token: Option<Token>,
    state_dir: Option<PathBuf>,
    #[serde(deserialize_with = "duration::read")]
    registration_timeout: Option<Duration>,
}

/// `[mayfly.manager]`.
#[derive(Clone, Debug)]
pub struct Manager {
    /// The address for connections of agents: `host:port`.
    pub listen: String,
    /// The files of the server certificate and of its key; `None` for plain HTTP.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The fleet token, which agents send to register; empty until it is fetched, if it is stored in AWS.
    pub agent_token: Token,
    /// The reference to the token, if it is not in the file.
    pub agent_token_reference: Option<TokenReference>,
    /// The directory for the durable state.
    pub state_dir: Option<PathBuf>,
    /// The time within which a running instance must register; `None` for the default.
    pub registration_timeout: Option<Duration>,
}

impl Table {
    /// Checks the table. The error has the missing or invalid key, and the reason.
    pub fn interpret(self) -> Result<Manager, (&'static str, String)> {
        let given = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
        let listen = self.listen.filter(|listen| !listen.trim().is_empty());
        let listen = listen.unwrap_or_else(|| format!(":{DEFAULT_PORT}"));
        let listen = if listen.contains(':') { listen } else { format!("{listen}:{DEFAULT_PORT}") };
        crate::monitor::address::check_address(&listen).map_err(|why| ("mayfly.manager.listen", why))?;
        let certificate = match (given(self.certificate_file), given(self.key_file), self.plain_http) {
            (Some(certificate), Some(key), false) => Some((certificate, key)),
            (None, None, true) => None,
            (None, None, false) => {
                let why = "agents send their tokens to the manager: write `certificate_file` and `key_file`, or \
                           `plain_http = true` where nothing else is on the network";
                return Err(("mayfly.manager.certificate_file", why.to_owned()));
            }
            (_, _, true) => {
                let why = "`plain_http = true` and a certificate exclude each other; remove one";
                return Err(("mayfly.manager.plain_http", why.to_owned()));
            }
            _ => {
                let why = "`certificate_file` and `key_file` belong together; write both";
                return Err(("mayfly.manager.certificate_file", why.to_owned()));
            }
        };
        let token = self.agent_token.map(|token| expand::expand(token.reveal())).unwrap_or_default();
        let reference = TokenReference::read(&token).map_err(|why| ("mayfly.manager.agent_token", why))?;
        if reference.is_none() && (1..8).contains(&token.trim().len()) {
            let why = "`agent_token` is shorter than 8 characters; make one with: openssl rand -hex 24";
            return Err(("mayfly.manager.agent_token", why.to_owned()));
        }
        Ok(Manager {
            listen,
            certificate,
            agent_token: if reference.is_some() { Token::new("") } else { Token::new(token.trim()) },
            agent_token_reference: reference,
            state_dir: given(self.state_dir),
            registration_timeout: self.registration_timeout.filter(|timeout| !timeout.is_zero()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interpret(text: &str) -> Result<Manager, (&'static str, String)> {
        toml::from_str::<Table>(text).expect("a table").interpret()
    }

    #[test]
    fn plain_http_must_be_asked_for() {
        let token = "agent_token = \"0123456789abcdef\"\n";
        let files = "certificate_file = \"/c\"\nkey_file = \"/k\"\n";
        assert!(interpret(&format!("{token}{files}")).is_ok_and(|manager| manager.certificate.is_some()));
        let plain = interpret(&format!("{token}plain_http = true\nlisten = \"127.0.0.1\"\n")).expect("a table");
        assert_eq!((plain.listen.as_str(), plain.certificate), ("127.0.0.1:9443", None));
        for (text, key) in [
            ("", "certificate_file"),
            ("certificate_file = \"/c\"\n", "certificate_file"),
            ("certificate_file = \"/c\"\nkey_file = \"/k\"\nplain_http = true\n", "plain_http"),
            ("plain_http = true\nlisten = \"h:x\"\n", "listen"),
        ] {
            let error = interpret(&format!("{token}{text}")).expect_err(text);
            assert!(error.0.ends_with(key), "{error:?}");
        }
    }

    #[test]
    fn the_agents_token_may_be_stored_elsewhere() {
        let token = |text: &str| interpret(&format!("plain_http = true\nagent_token = \"{text}\"\n"));
        let stored = token("aws-ssm:/ci/agents").expect("a table");
        assert!(stored.agent_token.is_empty() && stored.agent_token_reference.is_some());
        assert!(token("short").is_err_and(|(key, why)| key.ends_with("agent_token") && !why.contains("short\"")));
        assert!(token("").is_ok(), "pools may have another proof");
    }
}
