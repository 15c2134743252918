//! Registers and removes agents. An agent's token is bound to its instance and to the boot in which it registered.

use std::sync::Arc;
use std::time::Instant;

use super::Broker;
use super::agents::Agent;
use super::job::Phase;
use crate::coordinator::manager::protocol::{Introduction, Welcome, new_agent_token};
use crate::digest::sha256;
use crate::failure::FailureReason;
use crate::manager::store::records::{AgentRecord, StoreEvent};
use crate::manager::workload::Workload;
use crate::sys;

/// The maximum number of concurrent jobs that an agent may announce.
const MAX_CAPACITY: u32 = 1000;

/// Whether an instance is a member of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The instance is a member of the group.
    Member,
    /// The instance is not a known member of the group.
    NotMember,
    /// The members are not known yet.
    Unknown,
}

/// The reason why an agent is not registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationError {
    /// The instance has an agent with another token in this boot.
    Taken,
    /// The instance is not a member of the group any more: the scaler terminates it.
    NotMember,
    /// The state cannot be written.
    Store(String),
}

impl Broker {
    /// Whether an instance is a member of the pool's group.
    pub fn admission(&self, instance: &str) -> Admission {
        match &self.lock().members {
            None => Admission::Unknown,
            Some(members) if members.contains(instance) => Admission::Member,
            Some(_) => Admission::NotMember,
        }
    }

    /// Makes the scaler read the group, because an unknown instance has tried to register.
    pub fn request_group_read(&self) {
        self.changes.ring();
    }

    /// Registers an agent whose proof and membership are established. Errors: see [`RegistrationError`].
    pub fn register(&self, introduction: &Introduction) -> Result<Welcome, RegistrationError> {
        let settings = self.settings();
        let token = introduction.agent_token.clone().unwrap_or_else(new_agent_token);
        let token_hash = sha256(token.reveal().as_bytes());
        let welcome = Welcome {
            token,
            pool: self.name.clone(),
            capacity: settings.capacity_per_instance,
            ready_command: settings.instance_ready_command.clone(),
        };
        let instance = introduction.instance.clone();
        let record = {
            let mut state = self.lock();
            if state.members.as_ref().is_some_and(|members| !members.contains(&instance)) {
                return Err(RegistrationError::NotMember);
            }
            let known = state.agents.get(&instance).filter(|agent| agent.record.boot == introduction.boot);
            match known.map(|agent| agent.record.token_hash == token_hash) {
                // The response to the first registration did not reach the agent.
                Some(true) => return Ok(welcome),
                Some(false) => return Err(RegistrationError::Taken),
                None => {}
            }
            let record = AgentRecord {
                instance: instance.clone(),
                boot: introduction.boot.clone(),
                token_hash,
                version: introduction.version.clone(),
                capacity: introduction.capacity.unwrap_or(settings.capacity_per_instance).clamp(1, MAX_CAPACITY),
                has_own_capacity: introduction.capacity.is_some(),
                registered: sys::unix_now(),
                builds: 0,
            };
            let now = Instant::now();
            let agent = Agent { record: record.clone(), last_heard: now, idle_since: now, leave: None, drains: false };
            state.agents.insert(agent);
            // The new agent can take held jobs: lower the budget now, until the scaler calculates it again.
            state.hold_budget = state.hold_budget.saturating_sub(record.capacity);
            record
        };
        let capacity = record.capacity;
        if let Err(error) = self.store.commit(StoreEvent::Agent { pool: self.name.clone(), agent: record }) {
            self.lock().agents.remove(&instance);
            return Err(RegistrationError::Store(error.to_string()));
        }
        log::info!(
            "agent registered pool={} instance={instance} version={} capacity={capacity}",
            self.name,
            introduction.version
        );
        self.changed();
        Ok(welcome)
    }

    /// The instance of the agent with this token.
    pub fn agent_of(&self, token_hash: &str) -> Option<String> {
        self.lock().agents.instance_by_token(token_hash).map(str::to_owned)
    }

    /// Unregisters an agent.
    pub fn unregister(&self, instance: &str) {
        self.remove_agent(instance, &format!("the agent on instance {instance} left while it had this job"));
    }

    /// Removes an agent: its offers become void, and its jobs fail.
    pub(super) fn remove_agent(&self, instance: &str, why: &str) {
        let (tickets, jobs, known) = {
            let mut state = self.lock();
            let tickets = state.take_waiters(instance);
            let mut jobs = Vec::new();
            for (id, job) in &mut state.jobs {
                match &job.phase {
                    Phase::Offered(offered) if offered.instance == instance => job.phase = Phase::Held,
                    Phase::Accepting(offered) if offered.instance == instance => jobs.push(id.clone()),
                    Phase::Running { by, .. } if by.instance == instance => jobs.push(id.clone()),
                    _ => {}
                }
            }
            (tickets, jobs, state.agents.remove(instance).is_some())
        };
        for ticket in tickets {
            self.responder.respond(ticket, self.stay_response());
        }
        for id in jobs {
            self.fail(&id, FailureReason::RunnerSystemFailure, why);
        }
        if known {
            self.note(StoreEvent::AgentGone { pool: self.name.clone(), instance: instance.to_owned() });
            log::info!("agent removed pool={} instance={instance}", self.name);
        }
        self.assign();
        self.changed();
    }

    /// The interface of the broker for the scaler.
    pub fn workload(self: &Arc<Self>) -> Arc<dyn Workload> {
        Arc::clone(self) as Arc<dyn Workload>
    }
}
