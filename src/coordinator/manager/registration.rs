//! The registration of the agent on disk.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::AgentIdentity;
use super::protocol::Welcome;
use crate::decode;
use crate::digest::sha256;
use crate::instance::Identity;
use crate::sys;
use crate::token::Token;

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
