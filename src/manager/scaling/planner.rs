//! Decides the next steps of a pool: grow, dismiss idle agents, terminate instances whose agent has left or is missing.
//!
//! The planner never terminates an instance with a job. It lowers the desired capacity only by terminating a specific
//! instance, so the cloud never chooses one.

mod terminations;

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;

use super::Sizing;
use super::counts::InstanceCounts;
use super::desired::DesiredCapacity;
use super::growth::Throttle;
use super::observation::{Activity, Observation, ObservedAgent};
use super::plan::{Action, Note, ScalingPlan, ScalingStep};
use super::policy::{Intake, ScalingPolicy};
use super::removal::Removals;
use super::wanted::{Bounds, wanted};
use super::watchdog::{Breaker, Watchdog};
use crate::instance::CapacityChange;
use crate::manager::engine::{FailedStart, Group, MemberState};

/// The decisions of one pool.
#[derive(Clone, Debug)]
pub struct Planner {
    sizing: Sizing,
    throttle: Throttle,
    watchdog: Watchdog,
    removals: Removals,
    desired: DesiredCapacity,
    /// The policy that was announced last.
    announced_policy: Option<String>,
    /// The time of the latest failed start.
    last_failed_start: Option<Timestamp>,
}

impl Planner {
    /// A planner without knowledge of the pool.
    pub fn new(sizing: Sizing) -> Self {
        Self {
            throttle: Throttle::new(sizing.growth),
            watchdog: Watchdog::new(sizing.registration_timeout, sizing.failure_threshold),
            removals: Removals::default(),
            sizing,
            desired: DesiredCapacity::default(),
            announced_policy: None,
            last_failed_start: None,
        }
    }

    /// Replaces the settings. The state of instances stays.
    pub fn change(&mut self, sizing: Sizing) {
        self.throttle.change(sizing.growth);
        self.watchdog.change(sizing.registration_timeout, sizing.failure_threshold);
        self.sizing = sizing;
    }

    /// Decides the steps that are due now.
    pub fn plan(&mut self, observation: &Observation) -> ScalingPlan {
        let policy = self.sizing.policies.at(observation.now.time).clone();
        let bounds = Bounds {
            capacity: self.sizing.capacity,
            max_instances: self.sizing.max_instances,
            group: observation.group.as_ref().map(|group| (group.min_size, group.max_size.unwrap_or(u32::MAX))),
        };
        let mut plan = ScalingPlan {
            wanted: wanted(&policy, observation.jobs, bounds),
            policy: policy.label.clone(),
            intake: Some(policy.intake),
            ..ScalingPlan::default()
        };
        self.announce_policy(&policy, &mut plan);
        let Some(group) = &observation.group else {
            // Without the group no instance can be added, so no jobs are held in advance. Idle agents still get jobs.
            return plan;
        };
        self.track_registrations(observation, group, &mut plan);
        plan.notes.extend(self.desired.adopt(group, observation.now.elapsed));
        let mut counts = self.count(observation, group);
        self.terminate_left(observation, group, &mut counts, &mut plan);
        self.terminate_overdue(observation, group, &mut counts, &mut plan);
        self.terminate_silent(observation, group, &mut counts, &mut plan);
        let throttled_for = self.grow(observation, group, counts, &mut plan);
        self.dismiss(observation, group, &policy, counts, &mut plan);
        plan.hold_budget = self.hold_budget(observation, &policy, bounds, counts);
        plan.stopped = match self.watchdog.breaker(observation.now.elapsed) {
            Breaker::Closed => None,
            Breaker::Open { cause, .. } => Some(cause.clone()),
            Breaker::HalfOpen { cause } => Some(format!("{cause}; one instance is started as a test")),
        };
        plan.next_decision_in = self.next_decision_in(observation, &policy).into_iter().chain(throttled_for).min();
        plan
    }

    /// Records instances that the group could not start. Returns messages for the operator.
    pub fn record_failed_starts(&mut self, failed: &[FailedStart], now: Duration) -> Vec<Note> {
        let mut notes = Vec::new();
        let last = self.last_failed_start;
        for start in failed.iter().filter(|start| last.is_none_or(|last| start.at > last)) {
            self.last_failed_start = Some(start.at);
            let cause = format!("{} ({}); {}", start.cause, start.kind.as_str(), start.kind.remedy());
            if self.watchdog.record_failed_start(now, start.kind, cause.clone()) {
                notes.push(Note::GrowthStopped(format!("the group cannot start instances: {cause}")));
            }
        }
        notes
    }

    /// Records that a step was executed.
    pub fn step_done(&mut self, action: &Action, now: Duration) {
        match action {
            Action::SetDesiredCapacity { from, to } => {
                self.throttle.take(to.saturating_sub(*from));
                self.desired.set(*to, now);
            }
            Action::Dismiss(instance) => self.removals.record_dismissal(instance, now),
            Action::Terminate(instance, change) => {
                self.removals.record_termination(instance);
                if *change == CapacityChange::Decrement {
                    self.desired.decrement(now);
                }
            }
        }
    }

    /// Records that a step failed.
    pub fn step_failed(&mut self, action: &Action, now: Duration) {
        if let Action::Terminate(instance, _) = action {
            self.removals.record_failed_termination(instance, now + self.sizing.deletion_retry);
        }
    }

    fn announce_policy(&mut self, policy: &ScalingPolicy, plan: &mut ScalingPlan) {
        if self.announced_policy.as_ref() != Some(&policy.label) {
            let text = format!(
                "policy in force: {}, idle target {}, idle time {} s, {}",
                policy.label,
                policy.idle,
                policy.idle_time.as_secs(),
                policy.intake
            );
            plan.notes.push(Note::Info(text));
            self.announced_policy = Some(policy.label.clone());
        }
    }

    fn track_registrations(&mut self, observation: &Observation, group: &Group, plan: &mut ScalingPlan) {
        let now = observation.now.elapsed;
        for agent in observation.agents.iter() {
            if self.removals.record_agent(agent) {
                plan.boots.extend(self.watchdog.record_registration(&agent.instance, now));
            }
        }
        for member in group.members.iter().filter(|member| member.state.counts()) {
            if !self.removals.has_registered(&member.instance) {
                self.watchdog.record_unregistered(&member.instance, member.state, now);
            }
        }
        let existing: HashSet<&str> = group
            .members
            .iter()
            .filter(|member| member.state.counts() || member.state == MemberState::TerminationDelayed)
            .map(|member| member.instance.as_str())
            .collect();
        let exists = |instance: &str| existing.contains(instance);
        self.watchdog.retain(exists);
        self.removals.retain(|instance| exists(instance) || observation.agent(instance).is_some());
    }

    /// Whether an instance is leaving, while its agent may still run.
    fn is_leaving(&self, instance: &str, observation: &Observation) -> bool {
        self.removals.is_dismissed(instance)
            || observation.agent(instance).is_some_and(|agent| agent.activity == Activity::Leaving)
    }

    fn count(&self, observation: &Observation, group: &Group) -> InstanceCounts {
        let members = group.members.iter().filter(|member| member.state.counts());
        let live: Vec<&str> =
            members.map(|member| member.instance.as_str()).filter(|id| !self.removals.is_terminated(id)).collect();
        let leaving = live.iter().filter(|id| self.is_leaving(id, observation)).count();
        let ready =
            live.iter().filter(|id| !self.is_leaving(id, observation) && observation.agent(id).is_some()).count();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (live, leaving, ready) = (number(live.len()), number(leaving), number(ready));
        let desired = self.desired.current(group, observation.now.elapsed);
        InstanceCounts { desired, live, leaving, ready, staying: desired.max(live).saturating_sub(leaving) }
    }

    /// Raises the desired capacity. If the throttle limits this step, returns the time until it allows another
    /// instance.
    fn grow(
        &mut self,
        observation: &Observation,
        group: &Group,
        counts: InstanceCounts,
        plan: &mut ScalingPlan,
    ) -> Option<Duration> {
        let now = observation.now.elapsed;
        let need = plan.wanted.instances.saturating_sub(counts.staying);
        let allowed_by_breaker = match self.watchdog.breaker(now) {
            Breaker::Closed => u32::MAX,
            Breaker::HalfOpen { .. } => 1_u32.saturating_sub(counts.starting()),
            Breaker::Open { .. } => 0,
        };
        let allowed = self.throttle.allowed(now, counts.starting()).min(allowed_by_breaker);
        let max_instances = group.max_size.unwrap_or(u32::MAX).min(self.sizing.max_instances.unwrap_or(u32::MAX));
        let more = need.min(allowed);
        let throttled_for = if more < need { self.throttle.until_next(more) } else { None };
        let grown = counts.staying.saturating_add(more).saturating_add(counts.leaving).min(max_instances);
        let kept = counts.live.min(plan.wanted.instances.saturating_add(counts.leaving)).min(max_instances);
        let (to, reason) = if more > 0 && grown > counts.desired {
            let limited = match more < need {
                true => format!(", {more} of {need} now by the limit on growth"),
                false => String::new(),
            };
            (grown, format!("{}{limited}", plan.wanted.reason))
        } else if counts.desired < kept {
            (kept, format!("{kept} instances that exist are needed; {}", plan.wanted.reason))
        } else if allowed_by_breaker == 0 && group.protects_new && counts.desired > counts.live.max(group.min_size) {
            // This removes no running instance. It withdraws the request for instances that cannot be started.
            (
                counts.live.max(group.min_size),
                format!("growth is stopped; the {} instances that exist stay", counts.live),
            )
        } else {
            return throttled_for;
        };
        plan.steps.push(ScalingStep { action: Action::SetDesiredCapacity { from: counts.desired, to }, reason });
        throttled_for
    }

    /// Dismisses surplus agents that are idle for long enough, beginning with the longest idle one.
    fn dismiss(
        &self,
        observation: &Observation,
        group: &Group,
        policy: &ScalingPolicy,
        counts: InstanceCounts,
        plan: &mut ScalingPlan,
    ) {
        let mut surplus = counts.staying.saturating_sub(plan.wanted.instances);
        surplus = surplus.min(counts.staying.saturating_sub(group.min_size));
        if surplus == 0 {
            return;
        }
        let running = running_instances(group);
        let mut idle: Vec<(Duration, &ObservedAgent)> = observation
            .agents
            .iter()
            .filter(|agent| running.contains(agent.instance.as_str()))
            .filter(|agent| {
                !self.removals.is_dismissed(&agent.instance) && !self.removals.is_terminated(&agent.instance)
            })
            .filter_map(|agent| match agent.activity {
                Activity::Idle(time) if time >= policy.idle_time => Some((time, agent)),
                _ => None,
            })
            .collect();
        idle.sort_unstable_by(|(time_a, a), (time_b, b)| time_b.cmp(time_a).then_with(|| a.instance.cmp(&b.instance)));
        for (time, agent) in idle.into_iter().take(usize::try_from(surplus).unwrap_or(usize::MAX)) {
            plan.steps.push(ScalingStep {
                action: Action::Dismiss(agent.instance.clone()),
                reason: format!("idle for {} s; {}", time.as_secs(), plan.wanted.reason),
            });
        }
    }

    /// The number of jobs that may be held in addition to those for idle agents: instances can be added for them.
    fn hold_budget(
        &mut self,
        observation: &Observation,
        policy: &ScalingPolicy,
        bounds: Bounds,
        counts: InstanceCounts,
    ) -> u32 {
        if policy.intake == Intake::Relay {
            return 0;
        }
        let room = bounds.upper_bound().saturating_sub(counts.ready).saturating_sub(counts.leaving);
        let in_flight = self.sizing.growth.in_flight.unwrap_or(u32::MAX);
        let instances = match self.watchdog.breaker(observation.now.elapsed) {
            Breaker::Closed => room.min(in_flight),
            Breaker::HalfOpen { .. } => room.min(1),
            // No more jobs are held. Instances that are already starting may still register.
            Breaker::Open { .. } => 0,
        };
        instances.saturating_mul(self.sizing.capacity).min(self.sizing.max_jobs)
    }

    fn next_decision_in(&self, observation: &Observation, policy: &ScalingPolicy) -> Option<Duration> {
        let now = observation.now.elapsed;
        let idle = observation.agents.iter().filter_map(|agent| match agent.activity {
            Activity::Idle(time) if time < policy.idle_time => Some(policy.idle_time - time),
            _ => None,
        });
        idle.chain(self.watchdog.until_next(now)).chain(self.removals.until_next(now)).min()
    }
}

fn running_instances(group: &Group) -> HashSet<&str> {
    let running = group.members.iter().filter(|member| member.state == MemberState::Running);
    running.map(|member| member.instance.as_str()).collect()
}

#[cfg(test)]
mod tests;
