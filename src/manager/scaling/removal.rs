//! Tracks the agents of a pool, to find the instances to terminate: the agent has left, disappeared, or does not leave.

use std::collections::BTreeMap;
use std::time::Duration;

use super::observation::{Activity, ObservedAgent};
use crate::manager::workload::RemainingJobs;

/// An agent that knows that it must leave, has no job, and sends no request for this long has left.
const LEAVING_SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// The same timeout for an agent that may have jobs of other servers: these jobs continue while the manager is
/// unreachable. An agent that has not been heard since the order to leave may have such jobs without a report.
pub const DRAINING_SILENCE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// An agent that is leaving without a job must unregister within this time.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// An agent that disappeared may be restarting: it must reconnect within this time.
const AGENT_RESTART_TIMEOUT: Duration = Duration::from_secs(60);
/// If the group still lists an instance as running this long after its termination, the termination had no effect.
const TERMINATION_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// The agents of a pool, including former ones.
#[derive(Clone, Debug, Default)]
pub struct Removals(BTreeMap<String, TrackedAgent>);

#[derive(Clone, Debug, Default)]
struct TrackedAgent {
    has_registered: bool,
    builds: u32,
    departure: Departure,
    /// The time since which the agent is leaving and has no job.
    leaves_idle_since: Option<Duration>,
    /// The time since which the instance has no agent.
    missing_since: Option<Duration>,
    termination: Termination,
}

/// Whether an agent leaves, as observed last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Departure {
    #[default]
    None,
    /// The agent is leaving, for its own reason or at its maximum number of jobs.
    Leaving,
    /// The scaler ordered the agent to leave.
    Dismissed,
}

/// The termination of an instance by the manager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Termination {
    #[default]
    None,
    /// The engine accepted the call at this time; the group may still list the instance.
    Accepted(Duration),
    /// The call failed; the next attempt is due at this time.
    RetryAt(Duration),
}

impl Removals {
    /// Records a registered agent. Returns true if it is a new one.
    pub fn record_agent(&mut self, agent: &ObservedAgent, now: Duration) -> bool {
        let tracked = self.0.entry(agent.instance.clone()).or_default();
        let is_new = !tracked.has_registered;
        let is_leaving = matches!(agent.activity, Activity::Leaving(_));
        let was_leaving = tracked.departure != Departure::None;
        if tracked.missing_since.is_some() || was_leaving && !is_leaving {
            // The instance has registered again: an earlier order to leave, and a failed termination, were for its
            // previous agent.
            let termination = match tracked.termination {
                accepted @ Termination::Accepted(_) => accepted,
                Termination::None | Termination::RetryAt(_) => Termination::None,
            };
            *tracked = TrackedAgent { termination, ..TrackedAgent::default() };
        }
        tracked.has_registered = true;
        tracked.builds = agent.builds;
        tracked.departure = match is_leaving {
            true if tracked.departure == Departure::Dismissed => Departure::Dismissed,
            true => Departure::Leaving,
            false => Departure::None,
        };
        tracked.leaves_idle_since = match agent.activity {
            Activity::Leaving(RemainingJobs::None) => tracked.leaves_idle_since.or(Some(now)),
            _ => None,
        };
        is_new
    }

    /// Whether an instance has had an agent, or the manager has tried to terminate it.
    pub fn is_tracked(&self, instance: &str) -> bool {
        self.0.contains_key(instance)
    }

    /// Records that the manager ordered an agent to leave.
    pub fn record_dismissal(&mut self, instance: &str, now: Duration) {
        let tracked = self.0.entry(instance.to_owned()).or_default();
        tracked.departure = Departure::Dismissed;
        tracked.leaves_idle_since = Some(now);
    }

    /// Records the termination of an instance.
    pub fn record_termination(&mut self, instance: &str, now: Duration) {
        self.0.entry(instance.to_owned()).or_default().termination = Termination::Accepted(now);
    }

    /// Records a failed termination. The next attempt is due at `retry_at`.
    pub fn record_failed_termination(&mut self, instance: &str, retry_at: Duration) {
        self.0.entry(instance.to_owned()).or_default().termination = Termination::RetryAt(retry_at);
    }

    /// Whether an instance was terminated; the group may still list it.
    pub fn is_terminated(&self, instance: &str) -> bool {
        self.0.get(instance).is_some_and(|tracked| matches!(tracked.termination, Termination::Accepted(_)))
    }

    /// Whether the manager ordered the agent to leave.
    pub fn is_dismissed(&self, instance: &str) -> bool {
        self.0.get(instance).is_some_and(|tracked| tracked.departure == Departure::Dismissed)
            && !self.is_terminated(instance)
    }

    /// Whether the manager may terminate an instance now: it is not terminated yet, and a retry is not delayed.
    pub fn may_terminate(&self, instance: &str, now: Duration) -> bool {
        self.0.get(instance).is_none_or(|tracked| tracked.may_terminate(now))
    }

    /// The reason to terminate an instance whose agent has left; `None` if the manager must not terminate it now.
    pub fn reason_to_terminate(
        &mut self,
        instance: &str,
        agent: Option<&ObservedAgent>,
        max_use_count: Option<u32>,
        now: Duration,
    ) -> Option<&'static str> {
        let tracked = self.0.get_mut(instance)?;
        if agent.is_none() {
            tracked.missing_since.get_or_insert(now);
        }
        if !tracked.may_terminate(now) {
            return None;
        }
        match agent {
            Some(agent) => tracked.reason_with_agent(agent, now),
            None => tracked.reason_without_agent(max_use_count, now),
        }
    }

    /// Forgets the termination of an instance that the group still lists as running after the timeout, so that the
    /// manager terminates it again. Returns true if it was forgotten.
    pub fn forget_ineffective_termination(&mut self, instance: &str, now: Duration) -> bool {
        let Some(tracked) = self.0.get_mut(instance) else { return false };
        let is_ineffective = match tracked.termination {
            Termination::Accepted(at) => now.saturating_sub(at) >= TERMINATION_TIMEOUT,
            Termination::None | Termination::RetryAt(_) => false,
        };
        if is_ineffective {
            tracked.termination = Termination::None;
        }
        is_ineffective
    }

    /// The time until the next step may be due.
    pub fn until_next(&self, now: Duration) -> Option<Duration> {
        let due = |tracked: &TrackedAgent| match (tracked.termination, tracked.missing_since) {
            (Termination::Accepted(_), _) => None,
            (Termination::RetryAt(retry_at), _) if retry_at > now => Some(retry_at),
            (_, Some(since)) => Some(since + AGENT_RESTART_TIMEOUT),
            (_, None) => (tracked.departure == Departure::Leaving).then_some(now + LEAVING_SILENCE_TIMEOUT),
        };
        self.0.values().filter_map(due).min().map(|due| due.saturating_sub(now).max(Duration::from_secs(1)))
    }

    /// Removes instances that no longer exist.
    pub fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.0.retain(|instance, _| exists(instance));
    }
}

impl TrackedAgent {
    fn may_terminate(&self, now: Duration) -> bool {
        match self.termination {
            Termination::None => true,
            Termination::Accepted(_) => false,
            Termination::RetryAt(retry_at) => retry_at <= now,
        }
    }

    fn reason_with_agent(&self, agent: &ObservedAgent, now: Duration) -> Option<&'static str> {
        let Activity::Leaving(jobs) = agent.activity else { return None };
        match jobs {
            // Silence does not end a job: the manager may have lost its network. GitLab fails the job of an agent that
            // has died, and the manager then removes the job.
            RemainingJobs::Known => None,
            RemainingJobs::Possible => (agent.silent_for >= DRAINING_SILENCE_TIMEOUT)
                .then_some("its agent is shutting down and has sent no request for 5 minutes"),
            RemainingJobs::None => {
                let leaves_for = self.leaves_idle_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
                if agent.silent_for >= DRAINING_SILENCE_TIMEOUT {
                    Some("its agent must leave and has sent no request for 5 minutes")
                } else if agent.silent_for >= LEAVING_SILENCE_TIMEOUT && agent.silent_for <= leaves_for {
                    Some("its agent is shutting down and has sent no request for 60 s")
                } else {
                    (leaves_for >= LEAVE_TIMEOUT).then_some("its agent did not leave within 10 minutes after the order")
                }
            }
        }
    }

    fn reason_without_agent(&self, max_use_count: Option<u32>, now: Duration) -> Option<&'static str> {
        match self.departure {
            Departure::Dismissed => return Some("its agent has left as ordered"),
            Departure::Leaving => return Some("its agent has left"),
            Departure::None if max_use_count.is_some_and(|most| self.builds >= most) => {
                return Some("its agent has left");
            }
            Departure::None => {}
        }
        let is_gone = self.missing_since.is_some_and(|since| now.saturating_sub(since) >= AGENT_RESTART_TIMEOUT);
        is_gone.then_some(match self.has_registered {
            true => "its agent has not reconnected for 60 s",
            false => "it has not registered, and an earlier termination had no effect",
        })
    }
}
