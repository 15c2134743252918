//! Terminates instances whose agent has left, has not registered, or is silent.

use std::time::Duration;

use super::{Planner, running_instances};
use crate::instance::CapacityChange;
use crate::manager::engine::{Group, MemberState};
use crate::manager::scaling::counts::InstanceCounts;
use crate::manager::scaling::observation::{Activity, Observation, ObservedAgent};
use crate::manager::scaling::plan::{Action, Note, ScalingPlan, ScalingStep};
use crate::manager::scaling::watchdog::{Breaker, Overdue};

/// An idle agent that sends no request for this long is replaced.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5 * 60);

impl Planner {
    /// Terminates instances whose agent has left. The desired capacity is decremented if the pool does not need a
    /// replacement.
    pub(super) fn terminate_left(
        &mut self,
        observation: &Observation,
        group: &Group,
        counts: &mut InstanceCounts,
        plan: &mut ScalingPlan,
    ) {
        let now = observation.now.elapsed;
        let max_use_count = self.sizing.max_use_count;
        for member in group.members.iter().filter(|member| member.state == MemberState::Running) {
            let agent = observation.agent(&member.instance);
            let reason = self.removals.reason_to_terminate(&member.instance, agent, max_use_count, now);
            let Some(reason) = reason else { continue };
            let change = match self.is_leaving(&member.instance, observation) {
                true => counts.remove_leaving(plan.wanted.instances, group.min_size),
                false => counts.remove_staying(plan.wanted.instances, group.min_size),
            };
            let reason = format!("{reason}; {} ({})", effect(change), plan.wanted.reason);
            plan.steps.push(ScalingStep { action: Action::Terminate(member.instance.clone(), change), reason });
        }
    }

    /// Replaces instances that do not register. After too many in a row, growth stops.
    pub(super) fn terminate_overdue(
        &mut self,
        observation: &Observation,
        group: &Group,
        counts: &mut InstanceCounts,
        plan: &mut ScalingPlan,
    ) {
        let now = observation.now.elapsed;
        for (instance, late) in self.watchdog.overdue(now) {
            let cause = format!(
                "{} instances in a row did not register within {} s; check the image, the user data and the network \
                 between instances and the manager",
                self.sizing.failure_threshold,
                self.sizing.registration_timeout.as_secs()
            );
            let was_open = matches!(self.watchdog.breaker(now), Breaker::Open { .. });
            let (change, effect) = match self.watchdog.record_overdue(&instance, now, cause.clone()) {
                Overdue::Replace => {
                    let change = counts.remove_staying(plan.wanted.instances, group.min_size);
                    (change, effect(change))
                }
                Overdue::Stop => {
                    // While growth is stopped, the operator has this message already.
                    if !was_open {
                        plan.notes.push(Note::GrowthStopped(cause));
                    }
                    (counts.remove_staying(0, group.min_size), "growth is stopped")
                }
            };
            plan.steps.push(ScalingStep {
                action: Action::Terminate(instance, change),
                reason: format!("it has not registered for {} s; {effect}", late.as_secs()),
            });
        }
    }

    /// Terminates instances whose idle agent sends no requests. If most agents are silent, the manager has lost its
    /// network, and no instance is terminated.
    pub(super) fn terminate_silent(
        &mut self,
        observation: &Observation,
        group: &Group,
        counts: &mut InstanceCounts,
        plan: &mut ScalingPlan,
    ) {
        let is_silent = |agent: &&ObservedAgent| agent.silent_for >= SILENCE_TIMEOUT;
        let silent: Vec<&ObservedAgent> = observation.agents.iter().filter(is_silent).collect();
        if silent.is_empty() || silent.len() * 2 > observation.agents.len() {
            return;
        }
        let running = running_instances(group);
        for agent in silent.into_iter().filter(|agent| matches!(agent.activity, Activity::Idle(_))) {
            let runs = running.contains(agent.instance.as_str());
            let stays = !self.is_leaving(&agent.instance, observation);
            if runs && stays && self.removals.may_terminate(&agent.instance, observation.now.elapsed) {
                let change = counts.remove_staying(plan.wanted.instances, group.min_size);
                plan.steps.push(ScalingStep {
                    action: Action::Terminate(agent.instance.clone(), change),
                    reason: format!(
                        "its agent has no job and has been silent for {} s; {}",
                        agent.silent_for.as_secs(),
                        effect(change)
                    ),
                });
            }
        }
    }
}

fn effect(change: CapacityChange) -> &'static str {
    match change {
        CapacityChange::Decrement => "the pool does not need it",
        CapacityChange::Keep => "another instance replaces it",
    }
}
