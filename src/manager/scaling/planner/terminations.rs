//! Terminates instances whose agent has left, has not registered, or is silent.

use std::time::Duration;

use super::{Planner, Round};
use crate::instance::CapacityChange;
use crate::manager::scaling::observation::{Activity, ObservedAgent};
use crate::manager::scaling::plan::{Action, Note};
use crate::manager::scaling::watchdog::{Breaker, Overdue};

/// An idle agent that sends no request for this long is replaced.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// If most agents are silent, the manager may have lost its network, or its machine may have been suspended. The
/// manager waits this much longer for their requests.
const MANAGER_NETWORK_TIMEOUT: Duration = Duration::from_secs(5 * 60);

impl Planner {
    /// Terminates instances whose agent has left. The desired capacity is decremented if the pool does not need a
    /// replacement.
    pub(super) fn terminate_left(&mut self, round: &mut Round) {
        let (group, max_use_count) = (round.group, self.sizing.max_use_count);
        for member in group.members.iter().filter(|member| member.state.counts()) {
            let instance = member.instance.as_str();
            let agent = round.observation.agent(instance);
            let reason = self.removals.reason_to_terminate(instance, agent, max_use_count, round.now);
            let Some(reason) = reason else { continue };
            let change = match self.is_leaving(instance, round.observation) {
                true => round.counts.remove_leaving(round.wanted(), group.min_size),
                false => round.counts.remove_staying(round.wanted(), group.min_size),
            };
            let reason = format!("{reason}; {} ({})", effect(change), round.plan.wanted.reason);
            round.add_step(Action::Terminate(member.instance.clone(), change), reason);
        }
    }

    /// The cause of stopped growth if instances do not register.
    pub(super) fn overdue_cause(&self) -> String {
        format!(
            "{} instances in a row did not register within {} s; check the image, the user data and the network \
             between instances and the manager",
            self.sizing.failure_threshold,
            self.sizing.registration_timeout.as_secs()
        )
    }

    /// Replaces instances that do not register. After too many in a row, growth stops.
    pub(super) fn terminate_overdue(&mut self, round: &mut Round) {
        let min_size = round.group.min_size;
        for (instance, late) in self.watchdog.overdue(round.now) {
            let cause = self.overdue_cause();
            let was_open = matches!(self.watchdog.breaker(round.now), Breaker::Open { .. });
            let (change, effect) = match self.watchdog.record_overdue(&instance, round.now, cause.clone()) {
                Overdue::Replace => {
                    let change = round.counts.remove_staying(round.wanted(), min_size);
                    (change, effect(change))
                }
                Overdue::Stop => {
                    // While growth is stopped, the operator has this message already.
                    if !was_open {
                        round.plan.notes.push(Note::GrowthStopped(cause));
                    }
                    (round.counts.remove_staying(0, min_size), "growth is stopped")
                }
            };
            let reason = format!("it has not registered for {} s; {effect}", late.as_secs());
            round.add_step(Action::Terminate(instance, change), reason);
        }
    }

    /// Terminates instances whose idle agent sends no requests.
    pub(super) fn terminate_silent(&mut self, round: &mut Round) {
        let observation = round.observation;
        let is_silent = |agent: &&ObservedAgent| agent.silent_for >= SILENCE_TIMEOUT;
        let silent: Vec<&ObservedAgent> = observation.agents.iter().filter(is_silent).collect();
        if silent.len() * 2 <= observation.agents.len() {
            self.most_silent_since = None;
        } else {
            let since = *self.most_silent_since.get_or_insert(round.now);
            if round.now.saturating_sub(since) < MANAGER_NETWORK_TIMEOUT {
                return;
            }
        }
        let running = round.running_instances();
        let is_idle = |agent: &ObservedAgent| matches!(agent.activity, Activity::Idle(_));
        let may_terminate = |agent: &&ObservedAgent| {
            let instance = agent.instance.as_str();
            is_idle(agent)
                && running.contains(instance)
                && !self.is_leaving(instance, observation)
                && self.removals.may_terminate(instance, round.now)
        };
        let overdue: Vec<&ObservedAgent> = silent.into_iter().filter(may_terminate).collect();
        for agent in overdue {
            let change = round.counts.remove_staying(round.wanted(), round.group.min_size);
            let reason = format!(
                "its agent has no job and has been silent for {} s; {}",
                agent.silent_for.as_secs(),
                effect(change)
            );
            round.add_step(Action::Terminate(agent.instance.clone(), change), reason);
        }
    }
}

fn effect(change: CapacityChange) -> &'static str {
    match change {
        CapacityChange::Decrement => "the pool does not need it",
        CapacityChange::Keep => "another instance replaces it",
    }
}
