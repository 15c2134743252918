//! Decides the next steps of a pool: grow, dismiss idle agents, terminate instances whose agent has left or is missing.
//!
//! The planner never terminates an instance with a job. It lowers the desired capacity only by terminating a specific
//! instance, so the cloud never chooses one.

mod dismissals;
mod growth;
mod terminations;

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;

use super::Sizing;
use super::counts::InstanceCounts;
use super::desired::DesiredCapacity;
use super::growth::Throttle;
use super::observation::{Activity, Observation};
use super::plan::{Action, Note, ScalingPlan, ScalingStep};
use super::policy::ScalingPolicy;
use super::removal::Removals;
use super::wanted::{Bounds, wanted};
use super::watchdog::{Breaker, Origin, Watchdog};
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
    /// Whether an earlier observation contained the group.
    has_seen_group: bool,
    /// The time since which most agents have been silent.
    most_silent_since: Option<Duration>,
}

/// The decision about one observation: the input of its steps, and the plan so far.
struct Round<'a> {
    now: Duration,
    observation: &'a Observation,
    group: &'a Group,
    policy: &'a ScalingPolicy,
    /// The instances after the steps of the plan.
    counts: InstanceCounts,
    plan: ScalingPlan,
}

impl<'a> Round<'a> {
    fn add_step(&mut self, action: Action, reason: String) {
        self.plan.steps.push(ScalingStep { action, reason });
    }

    /// The number of instances that the pool needs.
    fn wanted(&self) -> u32 {
        self.plan.wanted.instances
    }

    fn running_instances(&self) -> HashSet<&'a str> {
        let running = self.group.members.iter().filter(|member| member.state == MemberState::Running);
        running.map(|member| member.instance.as_str()).collect()
    }
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
            has_seen_group: false,
            most_silent_since: None,
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
            self.most_silent_since = None;
            return plan;
        };
        self.track_registrations(observation, group, &mut plan);
        plan.notes.extend(self.desired.adopt(group, observation.now.elapsed));
        let counts = self.count(observation, group);
        let mut round = Round { now: observation.now.elapsed, observation, group, policy: &policy, counts, plan };
        self.terminate_left(&mut round);
        // Time alone opens the breaker halfway, so this change stays when the watchdog is restored below.
        self.watchdog.breaker(round.now);
        let watchdog = self.watchdog.clone();
        self.terminate_overdue(&mut round);
        self.terminate_silent(&mut round);
        let throttled_for = self.grow(&mut round);
        self.dismiss(&mut round);
        round.plan.hold_budget = self.hold_budget(&round, bounds);
        round.plan.stopped = self.reason_for_stopped_growth(round.now);
        round.plan.next_decision_in = self.next_decision_in(&round).into_iter().chain(throttled_for).min();
        // The plan has counted its terminations as failures. They count when they are executed: see `step_done`.
        self.watchdog = watchdog;
        round.plan
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
                self.removals.record_termination(instance, now);
                self.watchdog.record_overdue(instance, now, self.overdue_cause());
                if *change == CapacityChange::Decrement {
                    self.desired.decrement(now);
                }
            }
        }
    }

    /// Records that a step failed, or that its response was lost.
    pub fn step_failed(&mut self, action: &Action, now: Duration) {
        match action {
            Action::SetDesiredCapacity { .. } => self.desired.record_failed_call(now),
            Action::Dismiss(_) => {}
            Action::Terminate(instance, _) => {
                self.desired.record_failed_call(now);
                self.watchdog.record_overdue(instance, now, self.overdue_cause());
                self.removals.record_failed_termination(instance, now + self.sizing.deletion_retry);
            }
        }
    }

    /// Whether the manager has terminated an instance; the group may still list it.
    pub fn is_terminated(&self, instance: &str) -> bool {
        self.removals.is_terminated(instance)
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
        let origin = match std::mem::replace(&mut self.has_seen_group, true) {
            true => Origin::Watched,
            false => Origin::Earlier,
        };
        for member in group.members.iter().filter(|member| member.state.counts()) {
            if self.removals.forget_ineffective_termination(&member.instance, now) {
                plan.notes.push(Note::Warning(format!(
                    "the group still lists a terminated instance as running; the manager terminates it again instance={}",
                    member.instance
                )));
            }
        }
        for agent in observation.agents.iter() {
            if self.removals.record_agent(agent, now) {
                plan.boots.extend(self.watchdog.record_registration(&agent.instance, now));
            }
        }
        for member in group.members.iter().filter(|member| member.state.counts()) {
            if !self.removals.is_tracked(&member.instance) {
                self.watchdog.record_unregistered(&member.instance, member.state, origin, now);
            }
        }
        let listed = |is_relevant: fn(MemberState) -> bool| -> HashSet<&str> {
            let members = group.members.iter().filter(|member| is_relevant(member.state));
            members.map(|member| member.instance.as_str()).collect()
        };
        let starting_or_running = listed(MemberState::counts);
        self.watchdog.retain(|instance| starting_or_running.contains(instance));
        // A list can be older than a termination, so an instance stays terminated while the group lists it.
        let existing = listed(|state| state != MemberState::Aside);
        self.removals.retain(|instance| existing.contains(instance) || observation.agent(instance).is_some());
    }

    /// Whether an instance is leaving, while its agent may still run.
    fn is_leaving(&self, instance: &str, observation: &Observation) -> bool {
        self.removals.is_dismissed(instance)
            || observation.agent(instance).is_some_and(|agent| matches!(agent.activity, Activity::Leaving(_)))
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

    fn reason_for_stopped_growth(&mut self, now: Duration) -> Option<String> {
        match self.watchdog.breaker(now) {
            Breaker::Closed => None,
            Breaker::Open { cause, .. } => Some(cause.clone()),
            Breaker::HalfOpen { cause } => Some(format!("{cause}; one instance is started as a test")),
        }
    }

    fn next_decision_in(&self, round: &Round) -> Option<Duration> {
        let idle = round.observation.agents.iter().filter_map(|agent| match agent.activity {
            Activity::Idle(time) if time < round.policy.idle_time => Some(round.policy.idle_time - time),
            _ => None,
        });
        idle.chain(self.watchdog.until_next(round.now)).chain(self.removals.until_next(round.now)).min()
    }
}

#[cfg(test)]
mod tests;
