//! Calculates the number of instances that a pool needs, with the reason.

use super::policy::ScalingPolicy;

/// The jobs of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobCounts {
    /// Jobs that the manager got from GitLab and that wait for an instance.
    pub held: u32,
    /// Jobs that an agent has accepted and that have not ended.
    pub running: u32,
}

/// The bounds of the number of instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The number of concurrent jobs on an instance, at least 1.
    pub capacity: u32,
    /// `max_instances` or `limit`; `None` for no limit.
    pub max_instances: Option<u32>,
    /// The minimum and maximum size of the group, if known.
    pub group: Option<(u32, u32)>,
}

/// The wanted number of instances, and how it is calculated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedInstances {
    /// The number of instances.
    pub instances: u32,
    /// The jobs that need instances.
    pub jobs: JobCounts,
    /// The idle capacity, in jobs.
    pub idle: u32,
    /// The calculation as text.
    pub reason: String,
}

impl JobCounts {
    /// The number of held and running jobs.
    pub fn active(self) -> u32 {
        self.held.saturating_add(self.running)
    }
}

impl Bounds {
    /// The maximum number of instances: the smaller one of the pool's limit and the group's.
    pub fn upper_bound(&self) -> u32 {
        self.max_instances.unwrap_or(u32::MAX).min(self.group.map_or(u32::MAX, |(_, most)| most))
    }
}

/// Calculates the wanted number of instances with a policy.
pub fn wanted(policy: &ScalingPolicy, jobs: JobCounts, bounds: Bounds) -> WantedInstances {
    let capacity = bounds.capacity.max(1);
    let active = jobs.active();
    let room = bounds.upper_bound().saturating_mul(capacity).saturating_sub(active);
    let target = policy.idle.at(active);
    let idle = target.min(room);
    let needed = active.saturating_add(idle).div_ceil(capacity);
    let least = bounds.group.map_or(0, |(least, _)| least);
    let instances = needed.min(bounds.upper_bound()).max(least);
    let mut reason = format!("{instances} wanted: {} held + {} running + {target} idle", jobs.held, jobs.running);
    if capacity > 1 {
        reason.push_str(&format!(", {capacity} jobs an instance"));
    }
    if active.saturating_add(target).div_ceil(capacity) > instances {
        match bounds.max_instances {
            Some(most) if most <= instances => reason.push_str(&format!(", at most {most}")),
            _ => reason.push_str(&format!(", the group's maximum is {}", bounds.upper_bound())),
        }
    } else if instances > needed {
        reason.push_str(&format!(", the group's minimum is {least}"));
    }
    reason.push_str(&format!("; {}", policy.label));
    WantedInstances { instances, jobs, idle, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::scaling::testing::{DYNAMIC, autoscaler, machine};

    fn instances(policy: &ScalingPolicy, running: u32, bounds: Bounds) -> u32 {
        wanted(policy, JobCounts { held: 0, running }, bounds).instances
    }

    #[test]
    fn idle_machines_of_docker_machine_by_used_ones() {
        let policies = machine(DYNAMIC);
        let bounds = Bounds { capacity: 1, max_instances: Some(40), group: None };
        let used = [0, 1, 3, 4, 5, 10, 13, 14, 20, 24, 32, 35, 40];
        for (at, expected) in [
            ("2026-07-06T20:00:00Z", [1, 1, 3, 4, 5, 10, 10, 10, 10, 10, 8, 5, 0]),
            ("2026-07-06T09:00:00Z", [5, 5, 5, 6, 7, 15, 19, 20, 20, 16, 8, 5, 0]),
            ("2026-07-11T09:00:00Z", [0; 13]),
        ] {
            let policy = policies.at(at.parse().expect("a time"));
            let idle = used.map(|running| wanted(policy, JobCounts { held: 0, running }, bounds).idle);
            assert_eq!(idle, expected, "{at}");
            let all = used.map(|running| instances(policy, running, bounds) - running);
            assert_eq!(all, expected, "{at}: one job a machine");
        }
        // Saturday in Amsterdam, Friday in UTC: the root values.
        let early = policies.at("2026-07-10T22:30:00Z".parse().expect("a time"));
        assert_eq!(early.label, "root values");
    }

    #[test]
    fn instances_of_the_autoscaler_by_jobs() {
        let policies = autoscaler("[[policy]]\nidle_count = 5\n");
        let policy = &policies.windows[0].policy;
        let bounds = Bounds { capacity: 1, max_instances: Some(10), group: None };
        assert_eq!([0, 3, 6, 10].map(|running| instances(policy, running, bounds)), [5, 8, 10, 10]);
        assert_eq!(wanted(policy, JobCounts { held: 0, running: 6 }, bounds).idle, 4);
        assert_eq!(instances(policy, 7, Bounds { capacity: 5, ..bounds }), 3);
    }

    #[test]
    fn the_reason_names_what_bounds_the_number() {
        let policies = autoscaler("[[policy]]\nidle_count = 5\ntimezone = \"UTC\"");
        let policy = &policies.windows[0].policy;
        let jobs = JobCounts { held: 1, running: 2 };
        let of = |max_instances, group| wanted(policy, jobs, Bounds { capacity: 1, max_instances, group }).reason;
        let label = "policy 1 (`* * * * *`, UTC)";
        assert_eq!(of(None, None), format!("8 wanted: 1 held + 2 running + 5 idle; {label}"));
        assert_eq!(of(Some(4), None), format!("4 wanted: 1 held + 2 running + 5 idle, at most 4; {label}"));
        let group = "3 wanted: 1 held + 2 running + 5 idle, the group's maximum is 3";
        assert_eq!(of(Some(4), Some((0, 3))), format!("{group}; {label}"));
        assert!(of(None, Some((9, 20))).contains("9 wanted: 1 held + 2 running + 5 idle, the group's minimum is 9;"));
        let packed = wanted(policy, jobs, Bounds { capacity: 4, max_instances: None, group: None });
        assert_eq!(packed.reason, format!("2 wanted: 1 held + 2 running + 5 idle, 4 jobs an instance; {label}"));
    }
}
