//! Tracks the instances to terminate: the manager ordered the agent to leave, or the agent left or disappeared.

use std::collections::BTreeMap;
use std::time::Duration;

use super::observation::{Activity, ObservedAgent};

/// An agent that is leaving and sends no request for this long has left.
const LEAVING_SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// An agent without a job must leave within this time after the manager's order.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// An agent that disappeared may be restarting: it must reconnect within this time.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// The agents of a pool, including former ones.
#[derive(Clone, Debug, Default)]
pub struct Removals(BTreeMap<String, TrackedAgent>);

#[derive(Clone, Debug, Default)]
struct TrackedAgent {
    builds: u32,
    is_leaving: bool,
    /// The time at which the manager ordered the agent to leave.
    dismissed_at: Option<Duration>,
    /// The time since which the instance has no agent.
    missing_since: Option<Duration>,
    is_terminated: bool,
    /// The time of the next attempt after a failed termination.
    retry_at: Option<Duration>,
}

impl Removals {
    /// Records a registered agent. Returns true if it is a new one.
    pub fn record_agent(&mut self, agent: &ObservedAgent) -> bool {
        let is_new = !self.0.contains_key(&agent.instance);
        let tracked = self.0.entry(agent.instance.clone()).or_default();
        if tracked.missing_since.take().is_some() {
            // The instance has registered again: an earlier order to leave was for its previous agent.
            *tracked = TrackedAgent::default();
        }
        tracked.builds = agent.builds;
        tracked.is_leaving = agent.activity == Activity::Leaving;
        is_new
    }

    /// Whether an instance has had an agent.
    pub fn has_registered(&self, instance: &str) -> bool {
        self.0.contains_key(instance)
    }

    /// Records that the manager ordered an agent to leave.
    pub fn record_dismissal(&mut self, instance: &str, now: Duration) {
        self.0.entry(instance.to_owned()).or_default().dismissed_at = Some(now);
    }

    /// Records the termination of an instance.
    pub fn record_termination(&mut self, instance: &str) {
        self.0.entry(instance.to_owned()).or_default().is_terminated = true;
    }

    /// Records a failed termination. The next attempt is due at `retry_at`.
    pub fn record_failed_termination(&mut self, instance: &str, retry_at: Duration) {
        self.0.entry(instance.to_owned()).or_default().retry_at = Some(retry_at);
    }

    /// Whether an instance was terminated; the group may still list it.
    pub fn is_terminated(&self, instance: &str) -> bool {
        self.0.get(instance).is_some_and(|tracked| tracked.is_terminated)
    }

    /// Whether the manager ordered the agent to leave.
    pub fn is_dismissed(&self, instance: &str) -> bool {
        self.0.get(instance).is_some_and(|tracked| tracked.dismissed_at.is_some() && !tracked.is_terminated)
    }

    /// Whether the manager may terminate an instance now: it is not terminated yet, and a retry is not delayed.
    pub fn may_terminate(&self, instance: &str, now: Duration) -> bool {
        self.0
            .get(instance)
            .is_none_or(|tracked| !tracked.is_terminated && tracked.retry_at.is_none_or(|retry_at| retry_at <= now))
    }

    /// The reason to terminate an instance whose agent has left; `None` if the manager must not terminate it now.
    pub fn reason_to_terminate(
        &mut self,
        instance: &str,
        agent: Option<&ObservedAgent>,
        max_use_count: Option<u32>,
        now: Duration,
    ) -> Option<&'static str> {
        if !self.may_terminate(instance, now) {
            return None;
        }
        let tracked = self.0.get_mut(instance)?;
        if let Some(agent) = agent {
            if agent.activity != Activity::Leaving {
                return None;
            }
            if agent.silent_for >= LEAVING_SILENCE_TIMEOUT {
                return Some("its agent is shutting down and has sent no request for 60 s");
            }
            // An agent that drains may still run jobs, also those of other servers. It leaves after them.
            let hangs = !agent.may_have_jobs
                && tracked.dismissed_at.is_some_and(|since| now.saturating_sub(since) >= LEAVE_TIMEOUT);
            return hangs.then_some("its agent did not leave within 10 minutes after the order");
        }
        let missing_since = *tracked.missing_since.get_or_insert(now);
        if tracked.dismissed_at.is_some() {
            return Some("its agent has left as ordered");
        }
        if tracked.is_leaving || max_use_count.is_some_and(|most| tracked.builds >= most) {
            return Some("its agent has left");
        }
        (now.saturating_sub(missing_since) >= RECONNECT_TIMEOUT).then_some("its agent has not reconnected for 60 s")
    }

    /// The time until the next step may be due.
    pub fn until_next(&self, now: Duration) -> Option<Duration> {
        let due = |tracked: &TrackedAgent| match (tracked.is_terminated, tracked.retry_at, tracked.missing_since) {
            (true, ..) => None,
            (_, Some(retry_at), _) => Some(retry_at),
            (_, _, Some(since)) => Some(since + RECONNECT_TIMEOUT),
            (_, _, None) => tracked.is_leaving.then_some(now + LEAVING_SILENCE_TIMEOUT),
        };
        self.0.values().filter_map(due).min().map(|due| due.saturating_sub(now).max(Duration::from_secs(1)))
    }

    /// Removes instances that no longer exist.
    pub fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.0.retain(|instance, _| exists(instance));
    }
}
