//! Registers the agent with its manager, and keeps the registration on disk.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::protocol::{self, Introduction, PROTOCOL, VerifyBody, Welcome};
use super::{AgentIdentity, ManagerClient, STS_TOKEN, message};
use crate::coordinator::source::PollOutcome;
use crate::decode;
use crate::digest::sha256;
use crate::http::{HttpError, Method};
use crate::instance::Identity;
use crate::sync;
use crate::sys;
use crate::token::Token;
use crate::version::VERSION;

/// The registration on disk; it survives a restart of the agent.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredRegistration {
    url: String,
    identity: Identity,
    /// The agent's token, stored before the first request that contains it.
    pub token: Token,
    /// The manager's response; `None` until it has arrived.
    pub welcome: Option<Welcome>,
}

/// The file with the registration.
pub fn path_of(agent: &AgentIdentity) -> PathBuf {
    agent.state_dir.join(format!("manager-{}.json", &sha256(agent.url.as_bytes())[..12]))
}

/// Loads the registration of an earlier agent in this boot.
pub fn load(agent: &AgentIdentity) -> Option<StoredRegistration> {
    let kept: StoredRegistration = decode::json(&fs::read(path_of(agent)).ok()?).ok()?;
    (kept.url == agent.url && kept.identity == agent.identity).then_some(kept)
}

/// Saves the registration. A failure is only logged.
pub fn save(agent: &AgentIdentity, token: &Token, welcome: Option<&Welcome>) {
    let kept = StoredRegistration {
        url: agent.url.clone(),
        identity: agent.identity.clone(),
        token: token.clone(),
        welcome: welcome.cloned(),
    };
    let path = path_of(agent);
    let written = serde_json::to_vec(&kept).map_err(std::io::Error::other);
    let written = written.and_then(|text| sys::replace_file_synced(&path, &text));
    if let Err(error) = written {
        log::error!(
            "cannot keep the agent's token; after a restart the manager refuses this agent until the next boot path={} \
             error={error}",
            path.display()
        );
    }
}

impl ManagerClient {
    /// Registers the agent unless it is registered. The error is the outcome of the poll.
    pub(super) fn register(&self) -> Result<Token, PollOutcome> {
        let mut welcome = sync::lock(&self.welcome);
        if let Some(known) = &*welcome {
            return Ok(known.token.clone());
        }
        let agent_token = match load(&self.agent) {
            Some(kept) => kept.token,
            None => {
                let token = protocol::new_agent_token();
                save(&self.agent, &token, None);
                token
            }
        };
        let body = self.introduction(agent_token).map_err(PollOutcome::Failed)?;
        let response = match self.send(Method::Post, "runners/verify", &self.agent.fleet_token, &body) {
            Ok(response) => response,
            Err(HttpError::Configuration(why)) => return Err(PollOutcome::Misconfigured(why)),
            Err(error) => return Err(PollOutcome::Failed(error.to_string())),
        };
        #[derive(Deserialize)]
        struct VerifyResponse {
            mayfly: Welcome,
        }
        match response.status {
            200 => {
                let accepted: VerifyResponse = decode::json(&response.body).map_err(|_| {
                    PollOutcome::Failed("the manager's response to the registration cannot be decoded".to_owned())
                })?;
                log::info!(
                    "registered with the manager url={} instance={} pool={}",
                    self.agent.url,
                    self.agent.identity.instance,
                    accepted.mayfly.pool
                );
                save(&self.agent, &accepted.mayfly.token, Some(&accepted.mayfly));
                let token = accepted.mayfly.token.clone();
                *welcome = Some(accepted.mayfly);
                Ok(token)
            }
            401 | 403 | 409 | 426 => Err(PollOutcome::Refused(message(&response))),
            status => Err(PollOutcome::Failed(format!("status {status}: {}", message(&response)))),
        }
    }

    /// The agent's identity with the fleet token, or with a proof of the instance's role instead. The error is the
    /// reason why the proof cannot be signed.
    fn introduction(&self, agent_token: Token) -> Result<VerifyBody, String> {
        let mut introduction = Introduction {
            protocol: PROTOCOL,
            instance: self.agent.identity.instance.clone(),
            boot: self.agent.identity.boot.clone(),
            agent_token: Some(agent_token),
            capacity: self.agent.capacity,
            version: VERSION.to_owned(),
            labels: self.agent.labels.clone(),
            proof: None,
        };
        let mut token = Some(self.agent.fleet_token.clone());
        if self.agent.fleet_token.reveal() == STS_TOKEN {
            token = None;
            let proof = (self.agent.prove)(&introduction.binding());
            let proof = proof.map_err(|why| format!("cannot sign a proof of this instance's role: {why}"))?;
            introduction.proof = Some(proof);
        }
        Ok(VerifyBody { token, mayfly: Some(introduction) })
    }

    /// Drops the registration after a response that rejects the token: the manager lost its state, or the agent has
    /// unregistered. The agent registers again with the same token.
    pub(super) fn forget_registration(&self, token: &Token) {
        let mut welcome = sync::lock(&self.welcome);
        if welcome.as_ref().is_some_and(|known| known.token == *token) {
            log::warn!("the manager does not know this agent any more; registering again url={}", self.agent.url);
            *welcome = None;
            save(&self.agent, token, None);
        }
    }

    /// The agent's token; `None` before the registration.
    pub(super) fn token(&self) -> Option<Token> {
        sync::lock(&self.welcome).as_ref().map(|welcome| welcome.token.clone())
    }

    /// Applies the number of concurrent jobs if the manager has changed it since the registration.
    pub(super) fn apply_capacity(&self, capacity: u32) {
        let mut welcome = sync::lock(&self.welcome);
        let Some(known) = welcome.as_mut().filter(|known| known.capacity != capacity && capacity > 0) else { return };
        known.capacity = capacity;
        save(&self.agent, &known.token, Some(known));
        drop(welcome);
        (self.on_capacity)(capacity);
    }
}
