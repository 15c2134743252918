//! Random orders of events between a pool, its scaler, a cloud and agents that fail, checked for what must always hold:
//! the manager terminates no instance with a job, a job runs at most once, and at the end nothing is left behind.

mod agents;
mod cloud;
mod scaler;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::super::job::{Phase, PoolJob};
use super::super::state::PoolState;
use crate::coordinator::JobHandle;
use crate::failure::FailureReason;
use crate::manager::scaling::Sizing;
use crate::manager::scaling::planner::Planner;
use crate::manager::scaling::testing::pool;
use crate::token::Token;
use agents::Machine;
use cloud::Cloud;

/// The number of random orders for each configuration.
const ORDERS: u64 = 100;
/// The number of events of an order.
const EVENTS: u32 = 400;
/// The time after the last event within which everything must have ended: GitLab fails the job of an agent that has
/// died after an hour.
const END_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// The time for which a job is held.
const HOLD: Duration = Duration::from_secs(15 * 60);

/// A pool, its scaler, and the machines of its group.
struct Fleet {
    random: Random,
    started: Instant,
    now: Duration,
    settings: &'static str,
    planner: Planner,
    state: PoolState,
    cloud: Cloud,
    machines: BTreeMap<String, Machine>,
    /// Jobs that an agent has started.
    started_jobs: BTreeSet<String>,
    /// The number of jobs, offers, polls and registrations so far.
    numbers: u64,
    /// Whether agents, machines and calls may fail.
    has_failures: bool,
    /// Whether the manager closes an instance before it terminates it.
    closes_instances: bool,
    /// All events, for the message of a failed test.
    log: Vec<String>,
}

/// A generator of random numbers (splitmix64) whose numbers depend only on the seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }
}

impl Fleet {
    fn new(seed: u64, settings: &'static str) -> Self {
        Self {
            random: Random(seed),
            started: Instant::now(),
            now: Duration::ZERO,
            settings,
            planner: new_planner(settings),
            state: new_state(settings),
            cloud: Cloud::new(),
            machines: BTreeMap::new(),
            started_jobs: BTreeSet::new(),
            numbers: 0,
            has_failures: true,
            closes_instances: true,
            log: Vec::new(),
        }
    }

    fn instant(&self) -> Instant {
        self.started + self.now
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn log(&mut self, event: String) {
        self.log.push(format!("{:>6} s {event}", self.now.as_secs()));
    }

    fn explain(&self) -> String {
        format!("{}\n{:#?}\n{:#?}", self.log.join("\n"), self.cloud.group, self.machines)
    }

    /// One event: time passes, and GitLab, the cloud, an agent or the manager acts.
    fn event(&mut self) {
        self.now += Duration::from_secs(self.random.below(20));
        match self.random.below(20) {
            0 | 1 => self.receive_job(),
            2..=4 => self.cloud_acts(),
            5..=7 => self.round(),
            8 if self.random.one_in(4) => self.restart_manager(),
            _ => self.random_machine_acts(),
        }
    }

    /// GitLab hands out a job, if the manager polls.
    fn receive_job(&mut self) {
        if self.state.jobs_to_request(None) == 0 {
            return;
        }
        let number = self.number();
        let handle = JobHandle { id: i64::try_from(number).expect("a small number").into(), token: Token::new("t") };
        let mut job = PoolJob::new(handle, self.instant(), HOLD);
        job.payload = Some(b"{}".to_vec().into());
        self.state.jobs.insert(number.to_string(), job);
        self.log(format!("job {number} received"));
        self.assign();
    }

    /// Offers held jobs to waiting agents.
    fn assign(&mut self) {
        loop {
            let offer = self.number().to_string();
            let Some((job, offered)) = self.state.offer(offer, self.instant()) else { return };
            self.log(format!("job {job} offered to {}", offered.instance));
            let machine = self.machines.get_mut(&offered.instance).filter(|machine| machine.waits_with(offered.ticket));
            match machine {
                Some(machine) => machine.receive_offer(job, offered.id),
                None => drop(self.state.withdraw_offer(&job, &offered.id)),
            }
        }
    }

    /// What the clock and the keeper of the broker do: offers and held jobs expire, failed jobs are delivered, and jobs
    /// whose agent has died end at GitLab.
    fn expire(&mut self) {
        let now = self.instant();
        let mut ended = Vec::new();
        for (id, job) in &mut self.state.jobs {
            match &job.phase {
                Phase::Offered(offered) if offered.until <= now => job.phase = Phase::Held,
                Phase::Held if job.hold_until <= now => ended.push(id.clone()),
                Phase::Failing { .. } => ended.push(id.clone()),
                Phase::Running { by, .. } => {
                    let runs = self.machines.get(&by.instance).is_some_and(|machine| machine.jobs.contains(id));
                    let is_old = now.saturating_duration_since(job.taken_at) >= Duration::from_secs(3600);
                    if !runs && is_old {
                        ended.push(id.clone());
                    }
                }
                Phase::Held | Phase::Offered(_) | Phase::Accepting(_) => {}
            }
        }
        for id in &ended {
            self.state.remove(id, now);
        }
    }

    /// As `Broker::remove_agent`.
    fn remove_agent(&mut self, instance: &str) {
        let now = self.instant();
        self.state.take_waiters(instance);
        let jobs: Vec<(String, bool)> = self
            .state
            .jobs
            .iter()
            .filter(|(_, job)| job.phase.instance() == Some(instance))
            .map(|(id, job)| (id.clone(), matches!(job.phase, Phase::Offered(_))))
            .collect();
        for (id, is_offered) in jobs {
            match self.state.jobs.get_mut(&id) {
                Some(job) if is_offered => job.phase = Phase::Held,
                _ => self.state.fail(&id, FailureReason::RunnerSystemFailure, String::new(), String::new(), now),
            }
        }
        self.state.agents.remove(instance);
        self.assign();
    }

    /// Lets everything end without further failures.
    fn end(&mut self) {
        self.has_failures = false;
        for machine in self.machines.values_mut() {
            machine.is_partitioned = false;
            machine.disconnect();
        }
        let until = self.now + END_TIMEOUT;
        while self.now < until {
            self.now += Duration::from_secs(20);
            self.cloud_acts();
            for instance in self.machines.keys().cloned().collect::<Vec<_>>() {
                self.machine_acts(&instance);
            }
            self.round();
        }
    }

    fn assert_nothing_is_left(&self) {
        let is_empty = self.cloud.group.members.is_empty() && self.cloud.group.desired == 0;
        assert!(is_empty, "an instance is left: {}", self.explain());
        let jobs: Vec<&String> = self.state.jobs.keys().collect();
        assert!(jobs.is_empty(), "jobs are left: {jobs:?} {}", self.explain());
    }
}

fn new_planner(settings: &str) -> Planner {
    Planner::new(Sizing::from_pool(&pool("docker-autoscaler", "", settings)))
}

fn new_state(settings: &str) -> PoolState {
    PoolState { max_use_count: pool("docker-autoscaler", "", settings).max_use_count, ..PoolState::default() }
}

const POLICY: &str = "max_instances = 4\n[[runners.autoscaler.policy]]\nidle_time = \"2m\"\n";
const ONE_JOB: &str = "max_instances = 4\nmax_use_count = 1\n[[runners.autoscaler.policy]]\nidle_time = \"2m\"\n";
const TWO_JOBS: &str =
    "max_instances = 3\ncapacity_per_instance = 2\n[[runners.autoscaler.policy]]\nidle_time = \"2m\"\n";

#[test]
fn no_order_of_events_leaves_an_instance_or_ends_a_job() {
    for settings in [POLICY, ONE_JOB, TWO_JOBS] {
        let mut jobs = 0;
        for seed in 0..ORDERS {
            let mut fleet = Fleet::new(seed, settings);
            (0..EVENTS).for_each(|_| fleet.event());
            fleet.end();
            fleet.assert_nothing_is_left();
            jobs += fleet.started_jobs.len();
        }
        assert!(jobs > 5 * ORDERS as usize, "the orders must run jobs: {jobs}");
    }
}

/// Proves that the orders contain an agent that comes back while the scaler executes its decision.
#[test]
#[should_panic(expected = "was terminated with the jobs")]
fn without_the_closing_of_instances_an_order_ends_a_job() {
    for seed in 0..ORDERS {
        let mut fleet = Fleet { closes_instances: false, ..Fleet::new(seed, POLICY) };
        (0..EVENTS).for_each(|_| fleet.event());
    }
}
