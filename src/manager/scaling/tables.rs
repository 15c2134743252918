//! Interprets the keys of `[runners.autoscaler]` and `[runners.machine]` of gitlab-runner that determine a fleet's
//! size.

use std::time::Duration;

use super::growth::GrowthLimits;
use super::policy::{IdleTarget, Intake, Policies, Rounding, ScalingPolicy, Window};
use crate::config::fleet::{AutoscalerTable, FleetTable, MachinePolicyTable, MachineTable, PolicyTable};
use crate::config::period::{Period, Zone};
use crate::manager::pool::PoolSettings;

/// The idle time of a policy that sets none.
const DEFAULT_IDLE_TIME: Duration = Duration::from_secs(300);
/// The default of `scale_throttle.limit`: new instances per second.
const DEFAULT_THROTTLE_LIMIT: u32 = 100;

impl Policies {
    /// The policies of a pool's table.
    pub fn from_table(table: &FleetTable) -> Self {
        match table {
            FleetTable::Autoscaler(table) => Self::from_autoscaler(table),
            FleetTable::Machine(table) => Self::from_machine(table),
        }
    }

    /// Without a policy, and outside of all periods, the manager holds jobs and starts instances for them.
    fn from_autoscaler(table: &AutoscalerTable) -> Self {
        let otherwise = ScalingPolicy {
            label: "no policy applies".to_owned(),
            idle: IdleTarget::NONE,
            idle_time: DEFAULT_IDLE_TIME,
            intake: Intake::HoldAhead,
        };
        let windows = table.policy.iter().enumerate().map(|(number, policy)| window_of_policy(number + 1, policy));
        Self { otherwise, windows: windows.collect() }
    }

    /// The root values, and a block of values for each period.
    fn from_machine(table: &MachineTable) -> Self {
        let root = MachineIdle {
            count: table.idle_count,
            count_min: table.idle_count_min,
            factor: table.idle_scale_factor,
            seconds: table.idle_time,
        };
        let window = |(at, period): (usize, &MachinePolicyTable)| {
            let idle = MachineIdle {
                count: period.idle_count,
                count_min: period.idle_count_min,
                factor: period.idle_scale_factor,
                seconds: period.idle_time,
            };
            Window {
                periods: period.periods.clone(),
                zone: period.timezone.clone(),
                policy: idle.policy(label("autoscaling", at + 1, &period.periods, &period.timezone)),
            }
        };
        Self {
            otherwise: root.policy("root values".to_owned()),
            windows: table.autoscaling.iter().enumerate().map(window).collect(),
        }
    }
}

impl GrowthLimits {
    /// The limits of a pool.
    pub fn from_pool(pool: &PoolSettings) -> Self {
        let Some(throttle) = pool.scale_throttle else {
            return Self { in_flight: pool.max_growth, ..Self::UNLIMITED };
        };
        let rate = match throttle.limit {
            ..0 => return Self::UNLIMITED,
            0 => DEFAULT_THROTTLE_LIMIT,
            limit => u32::try_from(limit).unwrap_or(u32::MAX),
        };
        let burst = Some(throttle.burst).filter(|burst| *burst > 0).or(pool.max_instances).unwrap_or(rate);
        Self { in_flight: None, rate: Some(f64::from(rate)), burst }
    }
}

fn window_of_policy(number: usize, table: &PolicyTable) -> Window {
    let idle = IdleTarget {
        floor: table.idle_count,
        factor: table.scale_factor,
        cap: Some(table.scale_factor_limit).filter(|limit| *limit > 0),
        rounding: Rounding::Up,
    };
    // Without idle capacity, a pool that waits for an idle agent would wait forever.
    let relays = table.idle_count > 0 && table.preemptive_mode != Some(false);
    let policy = ScalingPolicy {
        label: label("policy", number, &table.periods, &table.timezone),
        idle,
        idle_time: table.idle_time.unwrap_or(DEFAULT_IDLE_TIME),
        intake: if relays { Intake::Relay } else { Intake::HoldAhead },
    };
    Window { periods: table.periods.clone(), zone: table.timezone.clone(), policy }
}

/// The four idle values of docker+machine, which a period replaces as a block.
struct MachineIdle {
    count: u32,
    count_min: u32,
    factor: f64,
    seconds: u64,
}

impl MachineIdle {
    fn policy(&self, label: String) -> ScalingPolicy {
        let idle = match self.factor > 0.0 {
            // `IdleCount` bounds the result, and a minimum below 1 counts as 1.
            true => IdleTarget {
                floor: self.count_min.max(1).min(self.count),
                factor: self.factor,
                cap: Some(self.count),
                rounding: Rounding::Down,
            },
            false => IdleTarget { floor: self.count, rounding: Rounding::Down, ..IdleTarget::NONE },
        };
        let intake = if self.count == 0 { Intake::HoldAhead } else { Intake::Relay };
        ScalingPolicy { label, idle, idle_time: Duration::from_secs(self.seconds), intake }
    }
}

fn label(word: &str, number: usize, periods: &[Period], zone: &Zone) -> String {
    let periods: Vec<String> = periods.iter().map(|period| format!("`{period}`")).collect();
    format!("{word} {number} ({}, {zone})", periods.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::scaling::testing::{autoscaler, machine, pool};

    #[test]
    fn a_policy_of_the_autoscaler_has_its_idle_target_and_mode() {
        let policies = autoscaler(
            "[[policy]]\nidle_count = 4\nscale_factor = 0.5\nscale_factor_limit = 7\nidle_time = \"20m0s\"\n\
             [[policy]]\nperiods = [\"* 22-6 * * *\"]\ntimezone = \"UTC\"\npreemptive_mode = true\n",
        );
        let day = policies.at("2026-07-06T12:00:00Z".parse().expect("a time"));
        assert_eq!((day.intake, day.idle_time), (Intake::Relay, Duration::from_secs(1200)));
        assert_eq!([0, 8, 9, 100].map(|active| day.idle.at(active)), [4, 4, 5, 7]);
        let night = policies.at("2026-07-06T23:00:00Z".parse().expect("a time"));
        // Without idle capacity, no agent would ever wait for a job.
        assert_eq!((night.intake, night.idle.at(9), night.idle_time), (Intake::HoldAhead, 0, DEFAULT_IDLE_TIME));
        assert_eq!(night.label, "policy 2 (`* 22-6 * * *`, UTC)");
    }

    #[test]
    fn the_throttle_has_the_defaults_of_the_autoscaler() {
        let growth = |keys: &str| GrowthLimits::from_pool(&pool("docker-autoscaler", "limit = 4\n", keys));
        let limits = |rate, burst| GrowthLimits { in_flight: None, rate: Some(rate), burst };
        let throttle = "[runners.autoscaler.scale_throttle]\n";
        assert_eq!(growth(&format!("{throttle}limit = 2\nburst = 5\n")), limits(2.0, 5));
        assert_eq!(growth("max_instances = 9\n"), limits(100.0, 9));
        // Without `max_instances`, the bucket holds the tokens of one second. The runner's own `limit` limits jobs.
        assert_eq!(growth(""), limits(100.0, 100));
        assert_eq!(growth(&format!("{throttle}limit = 1\n")), limits(1.0, 1));
        assert_eq!(growth(&format!("max_instances = 9\n{throttle}limit = 1\n")), limits(1.0, 9));
        assert_eq!(growth(&format!("{throttle}limit = -1\nburst = 5\n")), GrowthLimits::UNLIMITED);
        let machine = GrowthLimits::from_pool(&pool("docker+machine", "", "MaxGrowthRate = 3\n"));
        assert_eq!(machine, GrowthLimits { in_flight: Some(3), ..GrowthLimits::UNLIMITED });
    }

    #[test]
    fn preemptive_mode_off_holds_jobs_in_spite_of_idle_capacity() {
        let policies = autoscaler("[[policy]]\nidle_count = 2\npreemptive_mode = false");
        assert_eq!(policies.windows[0].policy.intake, Intake::HoldAhead);
    }

    #[test]
    fn a_period_of_docker_machine_replaces_all_idle_values() {
        let policies = machine(
            "IdleCount = 10\nIdleCountMin = 2\nIdleScaleFactor = 1.5\nIdleTime = 600\nMaxBuilds = 9\n\
             [[autoscaling]]\nPeriods = [\"* * * * * sat,sun *\"]\nTimezone = \"UTC\"\nIdleTime = 120\n",
        );
        let (root, weekend) = (&policies.otherwise, &policies.windows[0].policy);
        assert_eq!([0, 2, 5, 50].map(|active| root.idle.at(active)), [2, 3, 7, 10]);
        assert_eq!((weekend.idle.at(30), weekend.intake), (0, Intake::HoldAhead));
        assert_eq!(root.intake, Intake::Relay);
        // The minimum counts only with a factor, and is at least 1 then.
        let of = |text: &str| machine(text).otherwise.idle.at(0);
        assert_eq!(of("IdleCount = 3\nIdleCountMin = 9"), 3);
        assert_eq!(of("IdleCount = 3\nIdleScaleFactor = 1"), 1);
        assert_eq!(of("IdleCountMin = 2\nIdleScaleFactor = 1.0"), 0, "IdleCount is the upper bound");
    }
}
