//! The registered agents of a pool, by instance and by token.

use std::collections::HashMap;
use std::time::Instant;

use crate::manager::store::records::AgentRecord;

/// A registered agent.
pub struct Agent {
    /// The part that is saved in the store.
    pub record: AgentRecord,
    /// The time of the agent's last request.
    pub last_heard: Instant,
    /// The end of the agent's last job, or its registration.
    pub idle_since: Instant,
    /// The reason, if the agent must leave.
    pub leave: Option<String>,
    /// The agent reports that it leaves. It first finishes its jobs, also those of other servers.
    pub drains: bool,
}

/// All agents of a pool, also indexed by token, because each request of an agent contains its token.
#[derive(Default)]
pub struct Agents {
    by_instance: HashMap<String, Agent>,
    /// SHA-256 of a token, and the instance of its agent.
    by_token: HashMap<String, String>,
}

impl Agents {
    /// Adds an agent; it replaces another of the same instance.
    pub fn insert(&mut self, agent: Agent) {
        let instance = agent.record.instance.clone();
        self.remove(&instance);
        self.by_token.insert(agent.record.token_hash.clone(), instance.clone());
        self.by_instance.insert(instance, agent);
    }

    /// Removes the agent of an instance.
    pub fn remove(&mut self, instance: &str) -> Option<Agent> {
        let agent = self.by_instance.remove(instance)?;
        self.by_token.remove(&agent.record.token_hash);
        Some(agent)
    }

    /// The agent of an instance.
    pub fn get(&self, instance: &str) -> Option<&Agent> {
        self.by_instance.get(instance)
    }

    /// The same, to change it. The token must stay.
    pub fn get_mut(&mut self, instance: &str) -> Option<&mut Agent> {
        self.by_instance.get_mut(instance)
    }

    /// The instance of the agent whose token has this SHA-256.
    pub fn instance_by_token(&self, hash: &str) -> Option<&str> {
        self.by_token.get(hash).map(String::as_str)
    }

    /// All agents.
    pub fn iter(&self) -> impl Iterator<Item = &Agent> {
        self.by_instance.values()
    }

    /// The same, to change them. The tokens must stay.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Agent> {
        self.by_instance.values_mut()
    }

    /// The number of agents.
    pub fn len(&self) -> usize {
        self.by_instance.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(instance: &str, token_hash: &str) -> Agent {
        let record = AgentRecord {
            instance: instance.to_owned(),
            boot: "b".to_owned(),
            token_hash: token_hash.to_owned(),
            version: "1".to_owned(),
            capacity: 1,
            has_own_capacity: false,
            registered: 1,
            builds: 0,
        };
        Agent { record, last_heard: Instant::now(), idle_since: Instant::now(), leave: None, drains: false }
    }

    #[test]
    fn a_token_is_valid_until_its_agent_is_removed_or_replaced() {
        let mut agents = Agents::default();
        agents.insert(agent("i-1", "first"));
        agents.insert(agent("i-2", "other"));
        assert_eq!((agents.instance_by_token("first"), agents.instance_by_token("other")), (Some("i-1"), Some("i-2")));
        agents.insert(agent("i-1", "second"));
        assert_eq!(
            (agents.instance_by_token("first"), agents.instance_by_token("second"), agents.len()),
            (None, Some("i-1"), 2)
        );
        assert!(agents.remove("i-1").is_some() && agents.remove("i-1").is_none());
        assert_eq!((agents.instance_by_token("second"), agents.len()), (None, 1));
    }
}
