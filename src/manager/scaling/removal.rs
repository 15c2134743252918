//! Tracks the instances to terminate: the manager ordered the agent to leave, or the agent left or disappeared.

use std::collections::BTreeMap;
use std::time::Duration;

use super::observation::{ObservedAgent, Work};

/// An agent that is leaving and sends no request for this long has left.
const GONE: Duration = Duration::from_secs(60);
/// An agent without a job that the manager told to leave must leave within this time.
const LEAVING: Duration = Duration::from_secs(10 * 60);
/// An agent that disappeared without a reason may be restarting for this long.
const RESTART: Duration = Duration::from_secs(60);

/// The agents of a pool, including former ones.
#[derive(Clone, Debug, Default)]
pub struct Removals(BTreeMap<String, Known>);

#[derive(Clone, Debug, Default)]
struct Known {
    builds: u32,
    leaving: bool,
    /// The time at which the manager ordered the agent to leave.
    dismissed: Option<Duration>,
    /// The time since which the instance has no agent.
    missing: Option<Duration>,
    terminated: bool,
    /// The time of the next attempt after a failed termination.
    retry: Option<Duration>,
}

impl Removals {
    /// Records a registered agent. Returns true if it was not known before.
    pub fn registered(&mut self, instance: &str, builds: u32, leaving: bool) -> bool {
        let is_new = !self.0.contains_key(instance);
        let known = self.0.entry(instance.to_owned()).or_default();
        if known.missing.take().is_some() {
            // The instance has registered again: the earlier order was for its previous agent.
            *known = Known::default();
        }
        known.builds = builds;
        known.leaving = leaving;
        is_new
    }

    /// Whether an instance has had an agent.
    pub fn has_registered(&self, instance: &str) -> bool {
        self.0.contains_key(instance)
    }

    /// Records that the manager ordered an agent to leave.
    pub fn dismissed(&mut self, instance: &str, now: Duration) {
        self.0.entry(instance.to_owned()).or_default().dismissed = Some(now);
    }

    /// Records the termination of an instance.
    pub fn terminated(&mut self, instance: &str) {
        self.0.entry(instance.to_owned()).or_default().terminated = true;
    }

    /// Records a failed termination.
    pub fn retry(&mut self, instance: &str, at: Duration) {
        self.0.entry(instance.to_owned()).or_default().retry = Some(at);
    }

    /// Whether an instance was terminated; the group may still list it.
    pub fn is_terminated(&self, instance: &str) -> bool {
        self.0.get(instance).is_some_and(|known| known.terminated)
    }

    /// Whether the manager ordered the agent to leave.
    pub fn is_dismissed(&self, instance: &str) -> bool {
        self.0.get(instance).is_some_and(|known| known.dismissed.is_some() && !known.terminated)
    }

    /// Whether an instance can be terminated now: it is not terminated yet, and no delay of a retry is pending.
    pub fn may_try(&self, instance: &str, now: Duration) -> bool {
        self.0.get(instance).is_none_or(|known| !known.terminated && known.retry.is_none_or(|retry| retry <= now))
    }

    /// The reason to terminate an instance whose agent has left; `None` if it must not be terminated now.
    pub fn is_due(
        &mut self,
        instance: &str,
        agent: Option<&ObservedAgent>,
        max_use_count: Option<u32>,
        now: Duration,
    ) -> Option<&'static str> {
        if !self.may_try(instance, now) {
            return None;
        }
        let known = self.0.get_mut(instance)?;
        if let Some(agent) = agent {
            let leaves = agent.work == Work::Leaving;
            // An agent that drains may still run jobs, also those of other servers: it leaves after them.
            let hangs =
                !agent.may_have_jobs && known.dismissed.is_some_and(|since| now.saturating_sub(since) >= LEAVING);
            return match () {
                () if leaves && agent.silent >= GONE => Some("its agent is leaving and has sent no request for 60 s"),
                () if leaves && hangs => Some("its agent did not leave within 10 minutes after the order"),
                () => None,
            };
        }
        let missing = *known.missing.get_or_insert(now);
        if known.dismissed.is_some() {
            return Some("its agent has left as ordered");
        }
        if known.leaving || max_use_count.is_some_and(|most| known.builds >= most) {
            return Some("its agent has left");
        }
        (now.saturating_sub(missing) >= RESTART).then_some("its agent has not reconnected for 60 s")
    }

    /// The time at which the next step may be due.
    pub fn next(&self, now: Duration) -> Option<Duration> {
        let due = |known: &Known| match (known.terminated, known.retry, known.missing) {
            (true, ..) => None,
            (_, Some(retry), _) => Some(retry),
            (_, _, Some(missing)) => Some(missing + RESTART),
            (_, _, None) => known.leaving.then_some(now + GONE),
        };
        self.0.values().filter_map(due).min().map(|due| due.saturating_sub(now).max(Duration::from_secs(1)))
    }

    /// Removes instances that no longer exist.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|instance, _| is_there(instance));
    }
}
