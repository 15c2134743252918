//! The manager: rounds of the scaler with slow and failing calls, and restarts.

use std::time::Instant;

use super::super::super::agents::Agent;
use super::super::super::job::Phase;
use super::agents::Machine;
use super::{Fleet, new_planner, new_state};
use crate::instance::CapacityChange;
use crate::manager::engine::{Group, MemberState};
use crate::manager::scaling::observation::{Now, Observation};
use crate::manager::scaling::plan::Action;
use crate::manager::server::Ticket;

/// The fate of a call to the engine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Succeeds,
    /// The call fails without an effect.
    Fails,
    /// The call has its effect, but the response is lost.
    ResponseLost,
}

impl Fleet {
    /// As `Rounds::run_once`. While a call runs, other events occur.
    pub fn round(&mut self) {
        self.expire();
        let list = match self.has_failures && self.random.one_in(5) {
            true => self.cloud.outdated.clone(),
            false => self.cloud.group.clone(),
        };
        self.read_group(&list);
        let decided_at = self.instant();
        let mut snapshot = self.state.snapshot();
        // The same seed must produce the same order of events.
        snapshot.agents.sort_by(|one, other| one.instance.cmp(&other.instance));
        let now = Now { elapsed: self.now, time: "2026-07-06T12:00:00Z".parse().expect("a time") };
        let plan = self.planner.plan(&Observation::new(now, decided_at, &snapshot, Some(list)));
        self.state.hold_budget = plan.hold_budget;
        for step in &plan.steps {
            if self.has_failures {
                (0..self.random.below(6)).for_each(|_| self.random_machine_acts());
            }
            if !self.execute(&step.action, &step.reason, decided_at) {
                break;
            }
        }
        self.assign();
    }

    fn read_group(&mut self, list: &Group) {
        let may_register = |state: MemberState| matches!(state, MemberState::Creating | MemberState::Running);
        let members = list.members.iter().filter(|member| may_register(member.state));
        let members = members.filter(|member| !self.planner.is_terminated(&member.instance));
        self.state.members = Some(members.map(|member| member.instance.clone()).collect());
        let is_listed = |instance: &str| list.members.iter().any(|member| member.instance == instance);
        let agents = self.state.agents.iter().map(|agent| agent.record.instance.clone());
        let mut lost: Vec<String> =
            agents.filter(|instance| !is_listed(instance) && !self.machines.contains_key(instance)).collect();
        lost.sort_unstable();
        lost.iter().for_each(|instance| self.remove_agent(instance));
    }

    /// As `Rounds::execute`. Returns false if the step is obsolete.
    fn execute(&mut self, action: &Action, reason: &str, decided_at: Instant) -> bool {
        let fate = match self.random.below(8) {
            0 if self.has_failures => Fate::Fails,
            1 if self.has_failures => Fate::ResponseLost,
            _ => Fate::Succeeds,
        };
        let executed = match action {
            Action::SetDesiredCapacity { to, .. } => {
                if fate != Fate::Fails {
                    self.cloud.group.desired = *to;
                }
                action.clone()
            }
            Action::Dismiss(instance) => {
                let Some(polls) = self.state.dismiss(instance, reason) else { return false };
                self.respond_with_order_to_leave(instance, &polls);
                self.log(format!("{instance} is dismissed: {reason}"));
                self.planner.step_done(action, self.now);
                return true;
            }
            Action::Terminate(instance, change) => {
                let polls = match self.closes_instances {
                    true => self.state.close_instance(instance, reason, decided_at),
                    false => Some(Vec::new()),
                };
                let Some(polls) = polls else { return false };
                self.respond_with_order_to_leave(instance, &polls);
                self.log(format!("{instance} is terminated: {reason}"));
                let change = match fate {
                    Fate::Succeeds | Fate::ResponseLost if self.terminate(instance, *change) => *change,
                    _ => CapacityChange::Keep,
                };
                Action::Terminate(instance.clone(), change)
            }
        };
        match fate {
            Fate::Succeeds => self.planner.step_done(&executed, self.now),
            Fate::Fails | Fate::ResponseLost => self.planner.step_failed(action, self.now),
        }
        true
    }

    /// The response to the polls of an agent that must leave.
    fn respond_with_order_to_leave(&mut self, instance: &str, polls: &[Ticket]) {
        if let Some(machine) = self.machines.get_mut(instance)
            && polls.iter().any(|poll| machine.waits_with(*poll))
        {
            machine.leave();
        }
    }

    /// A new manager has the records of agents and jobs, and no connections.
    pub fn restart_manager(&mut self) {
        if !self.has_failures {
            return;
        }
        self.log("the manager restarts".to_owned());
        let now = self.instant();
        let old = std::mem::replace(&mut self.state, new_state(self.settings));
        self.planner = new_planner(self.settings);
        for agent in old.agents.iter() {
            let record = agent.record.clone();
            self.state.agents.insert(Agent { record, last_heard: now, idle_since: now, leave: None, drains: false });
        }
        self.state.jobs = old.jobs;
        for job in self.state.jobs.values_mut() {
            if let Phase::Offered(_) = job.phase {
                job.phase = Phase::Held;
            }
        }
        self.machines.values_mut().for_each(Machine::disconnect);
    }
}
