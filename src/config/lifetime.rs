//! The lifetime of an instance: the keys of `[mayfly]`, and the tables of docker+machine and docker-autoscaler.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use super::duration;
use super::period::{Period, Zone};

/// The idle time of a policy that sets none.
const POLICY_IDLE_TIME: Duration = Duration::from_secs(300);

/// The limits of an instance's lifetime.
#[derive(Clone, Debug, Default)]
pub struct LifetimeBounds {
    /// The maximum number of jobs.
    pub max_builds: Option<u32>,
    /// The maximum age.
    pub max_age: Option<Duration>,
    /// The idle times of the runners; the longest one applies.
    pub idle: Vec<IdleTimes>,
    /// Whether `idle` comes from the tables of docker+machine or docker-autoscaler.
    pub idle_is_of_fleet: bool,
}

impl LifetimeBounds {
    /// The idle timeout at this time; `None` for no limit.
    pub fn idle_timeout(&self, now: Timestamp) -> Option<Duration> {
        self.idle.iter().filter_map(|times| times.idle_time_at(now)).max()
    }

    /// Whether the idle timeout depends on the time of day.
    pub fn has_periods(&self) -> bool {
        self.idle.iter().any(|times| !times.windows.is_empty())
    }

    /// The period that decides the idle timeout at this time, of each runner that has periods.
    pub fn policies(&self, now: Timestamp) -> Vec<String> {
        self.idle.iter().filter(|times| !times.windows.is_empty()).map(|times| times.policy(now)).collect()
    }
}

/// The idle times by period.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdleTimes {
    /// The idle time outside all periods; `None` for no limit.
    otherwise: Option<Duration>,
    windows: Vec<Window>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    periods: Vec<Period>,
    zone: Zone,
    idle_time: Duration,
}

impl IdleTimes {
    /// The same idle time at all times.
    pub fn always(idle_time: Duration) -> Self {
        Self { otherwise: Some(idle_time), windows: Vec::new() }
    }

    /// The idle time at `now`. As in gitlab-runner, the last matching section wins.
    fn idle_time_at(&self, now: Timestamp) -> Option<Duration> {
        self.window(now).map_or(self.otherwise, |window| Some(window.idle_time))
    }

    fn window(&self, now: Timestamp) -> Option<&Window> {
        let holds = |window: &&Window| {
            let clock = window.zone.clock(now);
            window.periods.iter().any(|period| period.contains(clock))
        };
        self.windows.iter().rev().find(holds)
    }

    /// The current period, as written in the file.
    fn policy(&self, now: Timestamp) -> String {
        let Some(window) = self.window(now) else { return "outside of all periods".to_owned() };
        let periods: Vec<String> = window.periods.iter().map(|period| format!("`{period}`")).collect();
        format!("{} ({})", periods.join(" "), window.zone)
    }
}

/// The limits from one runner's fleet tables.
#[derive(Clone, Debug, Default)]
pub struct FleetLimits {
    /// The maximum number of jobs.
    pub max_builds: Option<u32>,
    /// The maximum number of concurrent jobs.
    pub capacity: Option<u32>,
    pub idle: Option<IdleTimes>,
    /// The command that succeeds when the instance is ready for jobs.
    pub ready_command: Option<String>,
}

impl FleetLimits {
    /// The limits of a runner with this executor. If both tables exist, the executor decides which one applies.
    pub fn new(executor: &str, machine: Option<Machine>, autoscaler: Option<Autoscaler>) -> Self {
        let by_machine = executor == "docker+machine";
        let mut limits = match (machine, autoscaler) {
            (Some(machine), other) if by_machine || other.is_none() => machine.limits(),
            (_, Some(autoscaler)) => autoscaler.limits(),
            _ => Self::default(),
        };
        if by_machine {
            // A docker+machine machine runs one job at a time; `concurrent` counts the jobs of all machines.
            limits.capacity = Some(1);
        }
        limits
    }
}

/// The maximum number of concurrent jobs, if every runner limits it.
pub fn capacity(limits: &[FleetLimits]) -> Option<u32> {
    let capacities: Option<Vec<u32>> = limits.iter().map(|limits| limits.capacity).collect();
    capacities?.into_iter().max()
}

/// `[runners.machine]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Machine {
    #[serde(rename = "MaxBuilds")]
    max_builds: u32,
    /// In seconds.
    #[serde(rename = "IdleTime")]
    idle_time: Option<u64>,
    autoscaling: Vec<MachineWindow>,
}

/// `[[runners.machine.autoscaling]]`: a missing key is 0 and not inherited from the table above.
#[derive(Debug, Deserialize)]
struct MachineWindow {
    #[serde(rename = "Periods", default)]
    periods: Vec<Period>,
    #[serde(rename = "Timezone", default)]
    zone: Zone,
    #[serde(rename = "IdleTime", default)]
    idle_time: u64,
}

impl Machine {
    fn limits(self) -> FleetLimits {
        let window = |window: MachineWindow| Window {
            periods: window.periods,
            zone: window.zone,
            idle_time: Duration::from_secs(window.idle_time),
        };
        let idle = IdleTimes {
            otherwise: self.idle_time.map(Duration::from_secs),
            windows: self.autoscaling.into_iter().map(window).collect(),
        };
        FleetLimits {
            max_builds: Some(self.max_builds).filter(|builds| *builds > 0),
            capacity: None,
            idle: Some(idle).filter(|idle| *idle != IdleTimes::default()),
            ready_command: None,
        }
    }
}

/// `[runners.autoscaler]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Autoscaler {
    max_use_count: u32,
    capacity_per_instance: u32,
    instance_ready_command: Option<String>,
    policy: Vec<Policy>,
}

/// `[[runners.autoscaler.policy]]`.
#[derive(Debug, Deserialize)]
struct Policy {
    #[serde(default = "every_minute", deserialize_with = "periods_of_policy")]
    periods: Vec<Period>,
    #[serde(rename = "timezone", default)]
    zone: Zone,
    #[serde(default, deserialize_with = "duration::read")]
    idle_time: Option<Duration>,
}

fn every_minute() -> Vec<Period> {
    vec![Period::always()]
}

/// Periods with five fields.
pub(super) fn periods_of_policy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Period>, D::Error> {
    struct FiveFieldPeriod(Period);

    impl<'de> Deserialize<'de> for FiveFieldPeriod {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = String::deserialize(deserializer)?;
            let fields = text.split_whitespace().count();
            if fields > 5 {
                let why = format!(
                    "`{text}` has {fields} fields; write minute hour day-of-month month day-of-week (a policy knows no \
                     seconds and no years)"
                );
                return Err(serde::de::Error::custom(why));
            }
            Period::read(&text).map(Self).map_err(serde::de::Error::custom)
        }
    }

    let periods = Vec::<FiveFieldPeriod>::deserialize(deserializer)?;
    Ok(if periods.is_empty() { every_minute() } else { periods.into_iter().map(|five| five.0).collect() })
}

impl Autoscaler {
    fn limits(self) -> FleetLimits {
        let window = |policy: Policy| Window {
            periods: policy.periods,
            zone: policy.zone,
            idle_time: policy.idle_time.unwrap_or(POLICY_IDLE_TIME),
        };
        let idle = IdleTimes { otherwise: None, windows: self.policy.into_iter().map(window).collect() };
        let set = |number: u32| Some(number).filter(|number| *number > 0);
        FleetLimits {
            max_builds: set(self.max_use_count),
            capacity: set(self.capacity_per_instance),
            idle: Some(idle).filter(|idle| *idle != IdleTimes::default()),
            ready_command: self.instance_ready_command.filter(|command| !command.trim().is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(text: &str) -> FleetLimits {
        FleetLimits::new("shell", Some(toml::from_str(text).expect("a table")), None)
    }

    fn autoscaler(text: &str) -> FleetLimits {
        FleetLimits::new("shell", None, Some(toml::from_str(text).expect("a table")))
    }

    fn idle_seconds(limits: &FleetLimits, at: &str) -> Option<u64> {
        let lifetime = LifetimeBounds { idle: limits.idle.clone().into_iter().collect(), ..LifetimeBounds::default() };
        lifetime.idle_timeout(at.parse().expect("a time")).map(|time| time.as_secs())
    }

    /// A fleet with more machines in office hours and none at the weekend.
    const DYNAMIC: &str = "MaxBuilds = 250\nIdleCount = 10\nIdleTime = 600\n\
        [[autoscaling]]\nPeriods = [\"* * 9-17 * * mon-fri *\"]\nTimezone = \"Europe/Amsterdam\"\nIdleTime = 3600\n\
        [[autoscaling]]\nPeriods = [\"* * * * * sat,sun *\"]\nTimezone = \"UTC\"\nIdleTime = 120\n";

    #[test]
    fn the_last_matching_section_wins() {
        let limits = machine(DYNAMIC);
        assert_eq!((limits.max_builds, limits.capacity), (Some(250), None));
        for (at, expected) in [
            ("2026-07-06T07:00:00Z", 3600), // Monday, 9:00 in Amsterdam
            ("2026-07-06T16:00:00Z", 600),  // 18:00
            ("2026-07-11T08:00:00Z", 120),  // Saturday
            ("2026-07-10T22:30:00Z", 600),  // Saturday in Amsterdam, still Friday in UTC
        ] {
            assert_eq!(idle_seconds(&limits, at), Some(expected), "{at}");
        }
        let both = machine(
            "IdleTime = 1\n[[autoscaling]]\nPeriods = [\"* * * * * * *\"]\nIdleTime = 2\n\
             [[autoscaling]]\nPeriods = [\"* * * * *\"]\nIdleTime = 3\n",
        );
        assert_eq!(idle_seconds(&both, "2026-07-06T07:00:00Z"), Some(3));
    }

    #[test]
    fn a_missing_key_of_a_section_is_not_inherited() {
        let limits = machine("IdleTime = 600\n[[autoscaling]]\nPeriods = [\"* * * * * sun *\"]\nIdleCount = 5\n");
        assert_eq!(idle_seconds(&limits, "2026-07-12T08:00:00Z"), Some(0));
        assert_eq!(idle_seconds(&limits, "2026-07-13T08:00:00Z"), Some(600));
        let without_idle_time = machine("MaxBuilds = 1\n");
        assert_eq!((without_idle_time.max_builds, without_idle_time.idle), (Some(1), None));
    }

    #[test]
    fn reads_policies_of_the_autoscaler() {
        let limits = autoscaler(
            "max_use_count = 4\ncapacity_per_instance = 2\nmax_instances = 10\n\
             [[policy]]\nidle_count = 5\n\
             [[policy]]\nperiods = [\"* 22-6 * * *\", \"* * * * sun\"]\ntimezone = \"UTC\"\nidle_time = \"20m0s\"\n",
        );
        assert_eq!((limits.max_builds, limits.capacity), (Some(4), Some(2)));
        assert_eq!(idle_seconds(&limits, "2026-07-06T12:00:00Z"), Some(300));
        assert_eq!(idle_seconds(&limits, "2026-07-06T23:00:00Z"), Some(1200));
        assert_eq!(idle_seconds(&limits, "2026-07-12T12:00:00Z"), Some(1200));
        let unbounded = autoscaler("max_use_count = 0\ncapacity_per_instance = 0\n");
        assert_eq!((unbounded.max_builds, unbounded.capacity, unbounded.idle), (None, None, None));
        let long = toml::from_str::<Autoscaler>("[[policy]]\nperiods = [\"* * * * * * *\"]\n");
        assert!(long.expect_err("seven fields must be refused").to_string().contains("write minute hour"));
    }

    #[test]
    fn the_executor_decides_which_table_applies() {
        let machine = || toml::from_str("MaxBuilds = 1\n").ok();
        let autoscaler = || toml::from_str("max_use_count = 2\n").ok();
        let builds = |executor: &str| FleetLimits::new(executor, machine(), autoscaler()).max_builds;
        assert_eq!(
            [builds("docker+machine"), builds("docker-autoscaler"), builds("instance")],
            [Some(1), Some(2), Some(2)]
        );
        assert_eq!(FleetLimits::new("shell", machine(), None).max_builds, Some(1));
        assert_eq!(FleetLimits::new("docker+machine", None, None).capacity, Some(1));
    }

    #[test]
    fn the_longest_idle_time_of_all_runners_applies() {
        let of = |seconds| IdleTimes::always(Duration::from_secs(seconds));
        let lifetime = LifetimeBounds { idle: vec![of(10), of(30)], ..LifetimeBounds::default() };
        assert_eq!(lifetime.idle_timeout(Timestamp::now()), Some(Duration::from_secs(30)));
        assert!(!lifetime.has_periods());
    }
}
