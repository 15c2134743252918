//! Decides the next steps of a pool: grow, dismiss idle agents, terminate instances whose agents are gone.
//!
//! The planner never terminates an instance with a job. It lowers the desired capacity only by terminating a specific
//! instance, so the cloud never chooses one.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;

use super::Sizing;
use super::counts::InstanceCounts;
use super::desired::DesiredCapacity;
use super::growth::Throttle;
use super::observation::{Observation, ObservedAgent, Work};
use super::plan::{Action, Note, ScalingPlan, ScalingStep};
use super::policy::{Intake, ScalingPolicy};
use super::removal::Removals;
use super::wanted::{Bounds, wanted};
use super::watchdog::{Breaker, Overdue, Watchdog};
use crate::instance::CapacityChange;
use crate::manager::engine::{FailedStart, FailureKind, Group, State};

/// An idle agent that is silent for this long is replaced.
const SILENT: Duration = Duration::from_secs(5 * 60);

/// The decisions of one pool.
#[derive(Clone, Debug)]
pub struct Planner {
    sizing: Sizing,
    throttle: Throttle,
    watchdog: Watchdog,
    removals: Removals,
    desired: DesiredCapacity,
    policy: Option<String>,
    last_failure: Option<Timestamp>,
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
            policy: None,
            last_failure: None,
        }
    }

    /// Replaces the settings. The state of instances stays.
    pub fn change(&mut self, sizing: Sizing) {
        self.throttle.change(sizing.growth);
        self.watchdog.change(sizing.registration_timeout, sizing.failure_threshold);
        self.sizing = sizing;
    }

    /// Decides the steps that are due now.
    pub fn plan(&mut self, seen: &Observation) -> ScalingPlan {
        let policy = self.sizing.policies.at(seen.now.time).clone();
        let bounds = Bounds {
            capacity: self.sizing.capacity,
            max_instances: self.sizing.max_instances,
            group: seen.group.as_ref().map(|group| (group.least, group.most.unwrap_or(u32::MAX))),
        };
        let mut plan = ScalingPlan {
            wanted: wanted(&policy, seen.jobs, bounds),
            policy: policy.label.clone(),
            intake: Some(policy.intake),
            ..ScalingPlan::default()
        };
        self.announce(&policy, &mut plan);
        let Some(group) = &seen.group else {
            // Without the group no instance can be added, so no jobs are held in advance. Idle agents still get jobs.
            return plan;
        };
        self.follow_registrations(seen, group, &mut plan);
        plan.notes.extend(self.desired.adopt(group, seen.now.elapsed));
        let mut counted = self.count(seen, group);
        self.terminate_gone(seen, group, &mut counted, &mut plan);
        self.terminate_overdue(seen, group, &mut counted, &mut plan);
        self.terminate_silent(seen, group, &mut counted, &mut plan);
        let throttled = self.grow(seen, group, counted, &mut plan);
        self.dismiss(seen, group, &policy, counted, &mut plan);
        plan.hold_budget = self.hold_budget(seen, &policy, bounds, counted);
        plan.stopped = match self.watchdog.breaker(seen.now.elapsed) {
            Breaker::Closed => None,
            Breaker::Open { cause, .. } => Some(cause.clone()),
            Breaker::HalfOpen { cause } => Some(format!("{cause}; one instance is tried")),
        };
        plan.again = self.again(seen, &policy).into_iter().chain(throttled).min();
        plan
    }

    /// Processes instances that the group could not start. Returns messages for the operator.
    pub fn failed_starts(&mut self, failed: &[FailedStart], now: Duration) -> Vec<Note> {
        let mut notes = Vec::new();
        let last = self.last_failure;
        for start in failed.iter().filter(|start| last.is_none_or(|last| start.at > last)) {
            self.last_failure = Some(start.at);
            let fatal = !matches!(start.kind, FailureKind::Capacity | FailureKind::Other);
            let cause = format!("{} ({}); {}", start.cause, start.kind.as_str(), start.kind.remedy());
            if self.watchdog.not_started(now, fatal, cause.clone()) {
                notes.push(Note::GrowthStopped(format!("the group cannot start instances: {cause}")));
            }
        }
        notes
    }

    /// Records that a step was executed.
    pub fn done(&mut self, action: &Action, now: Duration) {
        match action {
            Action::SetTarget { from, to } => {
                self.throttle.take(to.saturating_sub(*from));
                self.desired.set(*to, now);
            }
            Action::Dismiss(instance) => self.removals.dismissed(instance, now),
            Action::Terminate(instance, change) => {
                self.removals.terminated(instance);
                if *change == CapacityChange::Decrement {
                    self.desired.decrement(now);
                }
            }
        }
    }

    /// Records that a step failed.
    pub fn failed(&mut self, action: &Action, now: Duration) {
        if let Action::Terminate(instance, _) = action {
            self.removals.retry(instance, now + self.sizing.deletion_retry);
        }
    }

    fn announce(&mut self, policy: &ScalingPolicy, plan: &mut ScalingPlan) {
        if self.policy.as_ref() != Some(&policy.label) {
            let text = format!(
                "policy in force: {}, idle target {}, idle time {} s, {}",
                policy.label,
                policy.idle,
                policy.idle_time.as_secs(),
                policy.intake
            );
            plan.notes.push(Note::Info(text));
            self.policy = Some(policy.label.clone());
        }
    }

    fn follow_registrations(&mut self, seen: &Observation, group: &Group, plan: &mut ScalingPlan) {
        let now = seen.now.elapsed;
        for agent in seen.agents.iter() {
            if self.removals.registered(&agent.instance, agent.builds, agent.work == Work::Leaving) {
                plan.boots.extend(self.watchdog.registered(&agent.instance, now));
            }
        }
        for member in group.members.iter().filter(|member| member.state.counts()) {
            if !self.removals.has_registered(&member.instance) {
                self.watchdog.starting(&member.instance, member.state == State::Running, now);
            }
        }
        let there: HashSet<&str> = group
            .members
            .iter()
            .filter(|member| member.state.counts() || member.state == State::TerminationDelayed)
            .map(|member| member.instance.as_str())
            .collect();
        let is_there = |instance: &str| there.contains(instance);
        self.watchdog.retain(is_there);
        self.removals.retain(|instance| is_there(instance) || seen.agent(instance).is_some());
    }

    /// Terminates instances whose agent has left; the desired capacity is decremented if the pool does not need a
    /// replacement.
    fn terminate_gone(
        &mut self,
        seen: &Observation,
        group: &Group,
        counted: &mut InstanceCounts,
        plan: &mut ScalingPlan,
    ) {
        let now = seen.now.elapsed;
        let most = self.sizing.max_use_count;
        for member in group.members.iter().filter(|member| member.state == State::Running) {
            let agent = seen.agent(&member.instance);
            let Some(why) = self.removals.is_due(&member.instance, agent, most, now) else { continue };
            let change = match self.is_leaving(&member.instance, seen) {
                true => counted.remove_leaving(plan.wanted.instances, group.least),
                false => counted.remove_staying(plan.wanted.instances, group.least),
            };
            let reason = format!("{why}; {} ({})", effect(change), plan.wanted.reason);
            plan.steps.push(ScalingStep { action: Action::Terminate(member.instance.clone(), change), reason });
        }
    }

    /// Replaces instances that do not register, until too many in a row have failed.
    fn terminate_overdue(
        &mut self,
        seen: &Observation,
        group: &Group,
        counted: &mut InstanceCounts,
        plan: &mut ScalingPlan,
    ) {
        let now = seen.now.elapsed;
        for (instance, late) in self.watchdog.overdue(now) {
            let cause = format!(
                "{} instances in a row did not register within {} s; check the image, the user data and the network \
                 between instances and the manager",
                self.sizing.failure_threshold,
                self.sizing.registration_timeout.as_secs()
            );
            let is_open = matches!(self.watchdog.breaker(now), Breaker::Open { .. });
            let (change, effect) = match self.watchdog.failed(&instance, now, cause.clone()) {
                Overdue::Replace => {
                    let change = counted.remove_staying(plan.wanted.instances, group.least);
                    (change, effect(change))
                }
                Overdue::Stop => {
                    // Those that started before it opened are no news.
                    if !is_open {
                        plan.notes.push(Note::GrowthStopped(cause));
                    }
                    (counted.remove_staying(0, group.least), "growth is stopped")
                }
            };
            plan.steps.push(ScalingStep {
                action: Action::Terminate(instance, change),
                reason: format!("it has not registered for {} s; {effect}", late.as_secs()),
            });
        }
    }

    /// An idle agent that sends no requests is dead, unless no agent sends any: then the manager has lost its network.
    fn terminate_silent(
        &mut self,
        seen: &Observation,
        group: &Group,
        counted: &mut InstanceCounts,
        plan: &mut ScalingPlan,
    ) {
        let is_silent = |agent: &&ObservedAgent| agent.silent >= SILENT;
        let silent: Vec<&ObservedAgent> = seen.agents.iter().filter(is_silent).collect();
        if silent.is_empty() || silent.len() * 2 > seen.agents.len() {
            return;
        }
        let running = running(group);
        for agent in silent.into_iter().filter(|agent| matches!(agent.work, Work::Idle(_))) {
            let runs = running.contains(agent.instance.as_str());
            let stays = !self.is_leaving(&agent.instance, seen);
            if runs && stays && self.removals.may_try(&agent.instance, seen.now.elapsed) {
                let change = counted.remove_staying(plan.wanted.instances, group.least);
                plan.steps.push(ScalingStep {
                    action: Action::Terminate(agent.instance.clone(), change),
                    reason: format!(
                        "its agent has no job and has been silent for {} s; {}",
                        agent.silent.as_secs(),
                        effect(change)
                    ),
                });
            }
        }
    }

    /// Whether an instance is leaving, while its agent may still run.
    fn is_leaving(&self, instance: &str, seen: &Observation) -> bool {
        self.removals.is_dismissed(instance) || seen.agent(instance).is_some_and(|agent| agent.work == Work::Leaving)
    }

    fn count(&self, seen: &Observation, group: &Group) -> InstanceCounts {
        let members = group.members.iter().filter(|member| member.state.counts());
        let live: Vec<&str> =
            members.map(|member| member.instance.as_str()).filter(|id| !self.removals.is_terminated(id)).collect();
        let leaving = live.iter().filter(|id| self.is_leaving(id, seen)).count();
        let ready = live.iter().filter(|id| !self.is_leaving(id, seen) && seen.agent(id).is_some()).count();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (live, leaving, ready) = (number(live.len()), number(leaving), number(ready));
        let desired = self.desired.of(group, seen.now.elapsed);
        InstanceCounts { desired, live, leaving, ready, staying: desired.max(live).saturating_sub(leaving) }
    }

    /// Raises the desired capacity. Returns when the throttle allows the rest, if it limits this step.
    fn grow(
        &mut self,
        seen: &Observation,
        group: &Group,
        counted: InstanceCounts,
        plan: &mut ScalingPlan,
    ) -> Option<Duration> {
        let now = seen.now.elapsed;
        let need = plan.wanted.instances.saturating_sub(counted.staying);
        let breaker = match self.watchdog.breaker(now) {
            Breaker::Closed => u32::MAX,
            Breaker::HalfOpen { .. } => 1_u32.saturating_sub(counted.starting()),
            Breaker::Open { .. } => 0,
        };
        let allowed = self.throttle.allowed(now, counted.starting()).min(breaker);
        let most = group.most.unwrap_or(u32::MAX).min(self.sizing.max_instances.unwrap_or(u32::MAX));
        let more = need.min(allowed);
        let throttled = if more < need { self.throttle.next(more) } else { None };
        let grown = counted.staying.saturating_add(more).saturating_add(counted.leaving).min(most);
        let kept = counted.live.min(plan.wanted.instances.saturating_add(counted.leaving)).min(most);
        let (to, reason) = if more > 0 && grown > counted.desired {
            let limited = match more < need {
                true => format!(", {more} of {need} now by the limit on growth"),
                false => String::new(),
            };
            (grown, format!("{}{limited}", plan.wanted.reason))
        } else if counted.desired < kept {
            (kept, format!("{kept} instances that exist are needed; {}", plan.wanted.reason))
        } else if breaker == 0 && group.protects_new && counted.desired > counted.live.max(group.least) {
            // No running instance is removed. Instances that cannot be started are no longer requested.
            (
                counted.live.max(group.least),
                format!("growth is stopped; the {} instances that exist stay", counted.live),
            )
        } else {
            return throttled;
        };
        plan.steps.push(ScalingStep { action: Action::SetTarget { from: counted.desired, to }, reason });
        throttled
    }

    /// Dismisses surplus agents that are idle for long enough, beginning with the longest idle one.
    fn dismiss(
        &self,
        seen: &Observation,
        group: &Group,
        policy: &ScalingPolicy,
        counted: InstanceCounts,
        plan: &mut ScalingPlan,
    ) {
        let mut surplus = counted.staying.saturating_sub(plan.wanted.instances);
        surplus = surplus.min(counted.staying.saturating_sub(group.least));
        if surplus == 0 {
            return;
        }
        let running = running(group);
        let mut idle: Vec<(Duration, &ObservedAgent)> = seen
            .agents
            .iter()
            .filter(|agent| running.contains(agent.instance.as_str()))
            .filter(|agent| {
                !self.removals.is_dismissed(&agent.instance) && !self.removals.is_terminated(&agent.instance)
            })
            .filter_map(|agent| match agent.work {
                Work::Idle(time) if time >= policy.idle_time => Some((time, agent)),
                _ => None,
            })
            .collect();
        idle.sort_unstable_by(|(one, a), (other, b)| other.cmp(one).then_with(|| a.instance.cmp(&b.instance)));
        for (time, agent) in idle.into_iter().take(usize::try_from(surplus).unwrap_or(usize::MAX)) {
            plan.steps.push(ScalingStep {
                action: Action::Dismiss(agent.instance.clone()),
                reason: format!("idle for {} s; {}", time.as_secs(), plan.wanted.reason),
            });
        }
    }

    /// The number of jobs for which instances can be added.
    fn hold_budget(
        &mut self,
        seen: &Observation,
        policy: &ScalingPolicy,
        bounds: Bounds,
        counted: InstanceCounts,
    ) -> u32 {
        if policy.intake == Intake::Relay {
            return 0;
        }
        let room = bounds.most().saturating_sub(counted.ready).saturating_sub(counted.leaving);
        let in_flight = self.sizing.growth.in_flight.unwrap_or(u32::MAX);
        let instances = match self.watchdog.breaker(seen.now.elapsed) {
            Breaker::Closed => room.min(in_flight),
            Breaker::HalfOpen { .. } => room.min(1),
            // Instances that are already starting may still register.
            Breaker::Open { .. } => 0,
        };
        instances.saturating_mul(self.sizing.capacity).min(self.sizing.max_jobs)
    }

    fn again(&self, seen: &Observation, policy: &ScalingPolicy) -> Option<Duration> {
        let now = seen.now.elapsed;
        let idle = seen.agents.iter().filter_map(|agent| match agent.work {
            Work::Idle(time) if time < policy.idle_time => Some(policy.idle_time - time),
            _ => None,
        });
        idle.chain(self.watchdog.next(now)).chain(self.removals.next(now)).min()
    }
}

fn running(group: &Group) -> HashSet<&str> {
    let running = group.members.iter().filter(|member| member.state == State::Running);
    running.map(|member| member.instance.as_str()).collect()
}

fn effect(change: CapacityChange) -> &'static str {
    match change {
        CapacityChange::Decrement => "the pool does not need it",
        CapacityChange::Keep => "another instance replaces it",
    }
}

#[cfg(test)]
mod tests;
