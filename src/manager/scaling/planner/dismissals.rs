//! Orders surplus agents to leave.

use std::time::Duration;

use super::{Planner, Round};
use crate::manager::scaling::observation::{Activity, ObservedAgent};
use crate::manager::scaling::plan::Action;

impl Planner {
    /// Dismisses surplus agents that are idle for long enough, beginning with the longest idle one.
    pub(super) fn dismiss(&self, round: &mut Round) {
        let staying = round.counts.staying;
        let surplus = staying.saturating_sub(round.wanted()).min(staying.saturating_sub(round.group.min_size));
        if surplus == 0 {
            return;
        }
        let surplus = usize::try_from(surplus).unwrap_or(usize::MAX);
        for (time, instance) in self.idle_instances(round).into_iter().take(surplus) {
            let reason = format!("idle for {} s; {}", time.as_secs(), round.plan.wanted.reason);
            round.add_step(Action::Dismiss(instance), reason);
        }
    }

    /// The running instances whose agent may be dismissed, the longest idle first.
    fn idle_instances(&self, round: &Round) -> Vec<(Duration, String)> {
        let running = round.running_instances();
        let stays = |agent: &ObservedAgent| {
            let instance = agent.instance.as_str();
            running.contains(instance)
                && !self.removals.is_dismissed(instance)
                && !self.removals.is_terminated(instance)
        };
        let agents = round.observation.agents.iter().filter(|agent| stays(agent));
        let mut idle: Vec<(Duration, String)> = agents
            .filter_map(|agent| match agent.activity {
                Activity::Idle(time) if time >= round.policy.idle_time => Some((time, agent.instance.clone())),
                _ => None,
            })
            .collect();
        idle.sort_unstable_by(|(time_a, a), (time_b, b)| time_b.cmp(time_a).then_with(|| a.cmp(b)));
        idle
    }
}
