//! The group of the fleet: it starts and terminates machines some time after the call.

use super::Fleet;
use super::agents::Machine;
use crate::instance::CapacityChange;
use crate::manager::engine::{Group, Member, MemberState};

pub struct Cloud {
    /// The group as it is.
    pub group: Group,
    /// An earlier list, which the cloud may still return.
    pub outdated: Group,
    started: u32,
}

impl Cloud {
    pub fn new() -> Self {
        let group = Group { max_size: Some(10), protects_new: true, ..Group::default() };
        Self { outdated: group.clone(), group, started: 0 }
    }
}

impl Fleet {
    /// Removes one terminating instance, sometimes interrupts a running one, and starts at most one instance.
    pub fn cloud_acts(&mut self) {
        let group = &mut self.cloud.group;
        if !self.random.one_in(4) || !self.has_failures {
            self.cloud.outdated = group.clone();
        }
        let ended = group.members.iter().position(|member| member.state == MemberState::Terminating);
        if let Some(index) = ended {
            let member = group.members.remove(index);
            self.machines.remove(&member.instance);
        }
        if self.has_failures && self.random.one_in(40) {
            // The cloud takes an instance away, with its jobs.
            if let Some(member) = group.members.iter_mut().find(|member| member.state == MemberState::Running) {
                member.state = MemberState::Terminating;
                self.machines.insert(member.instance.clone(), Machine::default());
            }
        }
        for member in &mut group.members {
            if member.state == MemberState::Creating {
                member.state = MemberState::Running;
            }
        }
        let counted = group.members.iter().filter(|member| member.state.counts()).count();
        if counted < group.desired as usize {
            self.cloud.started += 1;
            let instance = format!("i-{}", self.cloud.started);
            group.members.push(Member {
                instance: instance.clone(),
                state: MemberState::Creating,
                healthy: true,
                protected: true,
                detail: String::new(),
            });
            self.machines.insert(instance, Machine::default());
        }
    }

    /// Executes a call to terminate. Returns false if the group has no such instance.
    pub fn terminate(&mut self, instance: &str, change: CapacityChange) -> bool {
        let group = &mut self.cloud.group;
        let member = group.members.iter_mut().find(|member| member.instance == instance && member.state.counts());
        let Some(member) = member else { return false };
        member.state = MemberState::Terminating;
        if change == CapacityChange::Decrement {
            group.desired -= 1;
        }
        let jobs = self.machines.get(instance).map(|machine| machine.jobs.clone()).unwrap_or_default();
        assert!(jobs.is_empty(), "{instance} was terminated with the jobs {jobs:?}: {}", self.explain());
        true
    }
}
