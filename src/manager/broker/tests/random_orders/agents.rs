//! The agents on the machines: they register, poll, run jobs, leave, restart, and fail.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::super::agents::Agent;
use super::super::super::state::{AcceptanceResult, Waiter};
use super::Fleet;
use crate::coordinator::manager::protocol::JobReport;
use crate::failure::FailureReason;
use crate::manager::engine::MemberState;
use crate::manager::server::Ticket;
use crate::manager::store::records::AgentRecord;
use crate::token::Token;

/// The machine of an instance, and its agent.
#[derive(Debug, Default)]
pub struct Machine {
    agent: AgentProcess,
    /// The agent cannot reach the manager. Its jobs run.
    pub is_partitioned: bool,
    /// The jobs that run, with their offers.
    pub jobs: BTreeSet<String>,
    offers: Vec<(String, String)>,
    /// The offer that the agent has received and not accepted.
    offer: Option<(String, String)>,
    poll: Option<Ticket>,
    /// Jobs whose end the manager does not know.
    ended: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum AgentProcess {
    /// The agent starts, and has no registration.
    #[default]
    Unregistered,
    Registered,
    Leaving,
    /// The agent has left, or died.
    Ended,
}

impl Machine {
    /// Whether the agent waits for the response to this poll.
    pub fn waits_with(&self, ticket: Ticket) -> bool {
        self.poll == Some(ticket) && !self.is_partitioned
    }

    pub fn receive_offer(&mut self, job: String, offer: String) {
        self.poll = None;
        self.offer = Some((job, offer));
    }

    /// The connection of the agent's poll ends.
    pub fn disconnect(&mut self) {
        self.poll = None;
    }

    /// The agent learns that it must leave.
    pub fn leave(&mut self) {
        self.poll = None;
        if self.agent == AgentProcess::Registered {
            self.agent = AgentProcess::Leaving;
        }
    }
}

impl Fleet {
    pub fn random_machine_acts(&mut self) {
        let count = self.machines.len() as u64;
        if count == 0 {
            return;
        }
        let index = usize::try_from(self.random.below(count)).expect("a small number");
        let instance = self.machines.keys().nth(index).expect("a machine").clone();
        if self.has_failures && self.random.one_in(8) {
            return self.machine_fails(&instance);
        }
        self.machine_acts(&instance);
    }

    fn machine(&mut self, instance: &str) -> &mut Machine {
        self.machines.get_mut(instance).expect("a machine")
    }

    fn machine_fails(&mut self, instance: &str) {
        match self.random.below(6) {
            // The agent dies with its jobs, for example with the kernel.
            0 => {
                self.log(format!("{instance} dies"));
                let machine = self.machine(instance);
                *machine = Machine { agent: AgentProcess::Ended, ..Machine::default() };
            }
            // The service manager restarts an agent that has left.
            1 if self.machine(instance).agent == AgentProcess::Ended => {
                self.log(format!("{instance} starts its agent again"));
                self.machine(instance).agent = AgentProcess::Unregistered;
            }
            2 | 3 => {
                self.log(format!("{instance} changes its partition"));
                let machine = self.machine(instance);
                machine.is_partitioned = !machine.is_partitioned;
                machine.disconnect();
            }
            // The agent leaves for its own reason.
            4 => {
                self.log(format!("{instance} leaves"));
                self.machine(instance).leave();
            }
            _ => self.now += Duration::from_secs(self.random.below(600)),
        }
    }

    /// The next action of an agent.
    pub fn machine_acts(&mut self, instance: &str) {
        let is_up = self.cloud.group.members.iter().any(|member| {
            member.instance == instance && matches!(member.state, MemberState::Running | MemberState::Terminating)
        });
        if !is_up {
            return;
        }
        if self.random.one_in(3) {
            self.end_job(instance);
        }
        let machine = self.machine(instance);
        if machine.is_partitioned {
            return;
        }
        match machine.agent {
            AgentProcess::Unregistered => self.register(instance),
            AgentProcess::Registered if machine.offer.is_some() => self.accept(instance),
            AgentProcess::Registered if machine.poll.is_none() => self.poll(instance),
            AgentProcess::Registered => self.send_heartbeat(instance),
            AgentProcess::Leaving if machine.jobs.is_empty() && machine.ended.is_empty() => {
                self.log(format!("{instance} unregisters"));
                self.machine(instance).agent = AgentProcess::Ended;
                self.remove_agent(instance);
            }
            AgentProcess::Leaving => self.send_heartbeat(instance),
            AgentProcess::Ended => {}
        }
    }

    fn end_job(&mut self, instance: &str) {
        let machine = self.machine(instance);
        if let Some(job) = machine.jobs.pop_first() {
            machine.offers.retain(|(id, _)| *id != job);
            machine.ended.push(job.clone());
            self.log(format!("{instance} ends job {job}"));
        }
    }

    /// As `Broker::register`.
    fn register(&mut self, instance: &str) {
        let is_member = self.state.members.as_ref().is_some_and(|members| members.contains(instance));
        if !is_member {
            return;
        }
        let (number, now) = (self.number(), self.instant());
        let record = AgentRecord {
            instance: instance.to_owned(),
            boot: "b".to_owned(),
            token_hash: number.to_string(),
            version: "1".to_owned(),
            capacity: 2,
            has_own_capacity: false,
            registered: 1,
            builds: 0,
        };
        if self.state.agents.get(instance).is_some() {
            // The manager knows the agent, which died: the new one has the same state directory, and the same token.
            self.state.agents.get_mut(instance).expect("an agent").last_heard = now;
        } else {
            self.state.agents.insert(Agent { record, last_heard: now, idle_since: now, leave: None, drains: false });
        }
        self.log(format!("{instance} registers"));
        self.machine(instance).agent = AgentProcess::Registered;
    }

    /// As `Broker::handle_poll`.
    fn poll(&mut self, instance: &str) {
        let now = self.instant();
        let Some(agent) = self.state.agents.get_mut(instance) else {
            self.machine(instance).agent = AgentProcess::Unregistered;
            return;
        };
        agent.last_heard = now;
        if self.state.leave_reason(instance).is_some() {
            return self.machine(instance).leave();
        }
        let ticket = Ticket::for_test(self.number());
        let until = now + Duration::from_secs(50);
        self.state.waiting.push(Waiter { ticket, instance: instance.to_owned(), until });
        self.machine(instance).poll = Some(ticket);
        self.assign();
    }

    fn accept(&mut self, instance: &str) {
        let Some((job, offer)) = self.machine(instance).offer.take() else { return };
        let AcceptanceResult::Write(by) = self.state.accept(instance, &job, &offer, 1) else { return };
        if !self.state.confirm_acceptance(&job, by) {
            return;
        }
        self.log(format!("{instance} starts job {job}"));
        assert!(self.started_jobs.insert(job.clone()), "job {job} runs twice: {}", self.explain());
        let machine = self.machine(instance);
        machine.offers.push((job.clone(), offer));
        machine.jobs.insert(job);
    }

    /// As `Broker::handle_heartbeat`.
    fn send_heartbeat(&mut self, instance: &str) {
        let now = self.instant();
        if self.state.agents.get(instance).is_none() {
            let machine = self.machine(instance);
            // An agent that leaves does not register again.
            machine.agent = match machine.agent {
                AgentProcess::Leaving => AgentProcess::Ended,
                _ => AgentProcess::Unregistered,
            };
            return;
        }
        let machine = self.machine(instance);
        let is_leaving = machine.agent == AgentProcess::Leaving;
        let ended = std::mem::take(&mut machine.ended);
        let report = |(id, offer): &(String, String)| JobReport {
            id: id.clone(),
            offer: offer.clone(),
            phase: "script".to_owned(),
            token: Token::new("t"),
        };
        let reports: Vec<JobReport> = machine.offers.iter().map(report).collect();
        let changes = self.state.heartbeat(instance, &reports, &ended, now);
        if let Some(agent) = self.state.agents.get_mut(instance) {
            agent.drains = is_leaving;
            if is_leaving {
                agent.leave.get_or_insert_with(|| "the agent leaves".to_owned());
                self.state.take_waiters(instance);
            }
        }
        for id in &changes.ended {
            self.state.remove(id, now);
        }
        for id in &changes.vanished {
            self.state.fail(id, FailureReason::RunnerSystemFailure, String::new(), String::new(), now);
        }
        if changes.leave.is_some() {
            self.machine(instance).leave();
        }
    }
}
