//! Raises the desired capacity, and bounds the jobs that are held for new instances.

use std::time::Duration;

use super::{Planner, Round};
use crate::manager::scaling::plan::Action;
use crate::manager::scaling::policy::Intake;
use crate::manager::scaling::wanted::Bounds;
use crate::manager::scaling::watchdog::Breaker;

impl Planner {
    /// Raises the desired capacity. If the throttle limits this step, returns the time until it allows another
    /// instance.
    pub(super) fn grow(&mut self, round: &mut Round) -> Option<Duration> {
        let counts = round.counts;
        let need = round.wanted().saturating_sub(counts.staying);
        let allowed_by_breaker = self.allowed_by_breaker(round);
        let more = need.min(self.throttle.allowed(round.now, counts.starting())).min(allowed_by_breaker);
        let throttled_for = if more < need { self.throttle.until_next(more) } else { None };
        let max_instances = round.group.max_size.unwrap_or(u32::MAX).min(self.sizing.max_instances.unwrap_or(u32::MAX));
        let grown = counts.staying.saturating_add(more).saturating_add(counts.leaving).min(max_instances);
        let kept = counts.live.min(round.wanted().saturating_add(counts.leaving)).min(max_instances);
        let started = counts.live.max(round.group.min_size);
        let (to, reason) = if more > 0 && grown > counts.desired {
            let limited = match more < need {
                true => format!(", {more} of {need} now by the limit on growth"),
                false => String::new(),
            };
            (grown, format!("{}{limited}", round.plan.wanted.reason))
        } else if counts.desired < kept {
            (kept, format!("{kept} instances that exist are needed; {}", round.plan.wanted.reason))
        } else if allowed_by_breaker == 0 && round.group.protects_new && counts.desired > started {
            // This removes no running instance. It withdraws the request for instances that cannot be started.
            (started, format!("growth is stopped; the {} instances that exist stay", counts.live))
        } else {
            return throttled_for;
        };
        round.add_step(Action::SetDesiredCapacity { from: counts.desired, to }, reason);
        throttled_for
    }

    fn allowed_by_breaker(&mut self, round: &Round) -> u32 {
        match self.watchdog.breaker(round.now) {
            Breaker::Closed => u32::MAX,
            Breaker::HalfOpen { .. } => 1_u32.saturating_sub(round.counts.starting()),
            Breaker::Open { .. } => 0,
        }
    }

    /// The number of jobs that may be held in addition to those for idle agents: instances can be added for them.
    pub(super) fn hold_budget(&mut self, round: &Round, bounds: Bounds) -> u32 {
        if round.policy.intake == Intake::Relay {
            return 0;
        }
        let counts = round.counts;
        let room = bounds.upper_bound().saturating_sub(counts.ready).saturating_sub(counts.leaving);
        let in_flight = self.sizing.growth.in_flight.unwrap_or(u32::MAX);
        let instances = match self.watchdog.breaker(round.now) {
            Breaker::Closed => room.min(in_flight),
            Breaker::HalfOpen { .. } => room.min(1),
            // No more jobs are held. Instances that are already starting may still register.
            Breaker::Open { .. } => 0,
        };
        instances.saturating_mul(self.sizing.capacity).min(self.sizing.max_jobs)
    }
}
