//! Collects the reports of scalers and brokers, for the status page, the JSON and the metrics.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;

use super::Workloads;
use super::history::{History, HistoryPoint, INTERVAL};
use super::view::{DecisionView, GroupView, HistoryView, InstanceView, JobView, ManagerView, PoolView};
use crate::manager::engine::{EngineError, FailedStart, Group, MemberState};
use crate::manager::scaling::plan::ScalingPlan;
use crate::manager::workload::{AgentJob, AgentState, AgentView, Snapshot};
use crate::monitor::listener::PageResponse;
use crate::monitor::text::Histogram;
use crate::sync;
use crate::version::VERSION;

/// The number of decisions that are kept for each pool.
const MAX_DECISIONS: usize = 50;
/// A scaler without a decision for this long hangs.
const DECISION_TIMEOUT: Duration = Duration::from_secs(300);
/// Histogram bounds for waiting and boot times, in seconds.
const WAIT_BOUNDS: &[f64] = &[1.0, 5.0, 15.0, 30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 900.0, 1800.0];
/// Histogram bounds for the time from an offer to its acceptance, in seconds.
const LATENCY_BOUNDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// The status of all pools.
pub struct StatusBoard {
    started: Timestamp,
    pools: Mutex<BTreeMap<String, PoolStatus>>,
}

/// The status of one pool.
pub struct PoolStatus {
    pub plan: ScalingPlan,
    decided_at: Option<Instant>,
    pub group: Option<Group>,
    pub engine_error: Option<String>,
    decisions: VecDeque<(Timestamp, String)>,
    history: History,
    /// The time at which the manager first listed each instance.
    first_listed: BTreeMap<String, Instant>,
    pub counters: Counters,
}

/// Counters and histograms, which only increase.
pub struct Counters {
    /// The number of failed calls, by the label `call`.
    pub api_errors: BTreeMap<String, u64>,
    /// Instances that could not be started, by kind.
    pub failed_starts: BTreeMap<&'static str, u64>,
    last_failed_start: Option<Timestamp>,
    pub waiting: Histogram,
    pub boot: Histogram,
    pub hand_over: Histogram,
}

impl Default for PoolStatus {
    fn default() -> Self {
        Self {
            plan: ScalingPlan::default(),
            decided_at: None,
            group: None,
            engine_error: None,
            decisions: VecDeque::new(),
            history: History::default(),
            first_listed: BTreeMap::new(),
            counters: Counters {
                api_errors: BTreeMap::new(),
                failed_starts: BTreeMap::new(),
                last_failed_start: None,
                waiting: Histogram::new(WAIT_BOUNDS),
                boot: Histogram::new(WAIT_BOUNDS),
                hand_over: Histogram::new(LATENCY_BOUNDS),
            },
        }
    }
}

impl Default for StatusBoard {
    fn default() -> Self {
        Self::new()
    }
}

impl StatusBoard {
    /// An empty board.
    pub fn new() -> Self {
        Self { started: Timestamp::now(), pools: Mutex::default() }
    }

    /// Records a decision of a scaler.
    pub fn decided(&self, pool: &str, plan: &ScalingPlan, snapshot: &Snapshot, group: Option<&Group>) {
        self.change_pool(pool, |status| {
            status.plan = plan.clone();
            status.decided_at = Some(Instant::now());
            status.group = group.cloned();
            let now = Instant::now();
            let instances = all_instances(group, snapshot);
            let existing: HashSet<&str> = instances.iter().copied().collect();
            status.first_listed.retain(|instance, _| existing.contains(instance.as_str()));
            for instance in instances {
                status.first_listed.entry(instance.to_owned()).or_insert(now);
            }
            status.history.record(Timestamp::now(), history_point(group, snapshot));
        });
    }

    /// Records an event that the page shows among the decisions.
    pub fn happened(&self, pool: &str, text: &str) {
        self.change_pool(pool, |status| {
            status.decisions.push_front((Timestamp::now(), text.to_owned()));
            status.decisions.truncate(MAX_DECISIONS);
        });
    }

    /// Records a failed call of the engine.
    pub fn engine_failed(&self, pool: &str, call: &str, error: &EngineError) {
        self.change_pool(pool, |status| {
            *status.counters.api_errors.entry(call.to_owned()).or_default() += 1;
            status.engine_error = Some(error.to_string());
        });
    }

    /// Records that the engine listed the group.
    pub fn engine_answered(&self, pool: &str) {
        self.change_pool(pool, |status| status.engine_error = None);
    }

    /// Records a failed call to another service: `gitlab`, `sts`.
    pub fn api_error(&self, pool: &str, service: &str) {
        self.change_pool(pool, |status| *status.counters.api_errors.entry(service.to_owned()).or_default() += 1);
    }

    /// Records an instance that the group could not start. An instance that was reported before is not counted again.
    pub fn start_failed(&self, pool: &str, failed: &FailedStart) {
        self.change_pool(pool, |status| {
            if status.counters.last_failed_start.is_none_or(|last| failed.at > last) {
                status.counters.last_failed_start = Some(failed.at);
                *status.counters.failed_starts.entry(failed.kind.as_str()).or_default() += 1;
                status.decisions.push_front((Timestamp::now(), format!("instance not started: {}", failed.cause)));
                status.decisions.truncate(MAX_DECISIONS);
            }
        });
    }

    /// Records the time from the first listing of an instance to its registration.
    pub fn booted(&self, pool: &str, time: Duration) {
        self.change_pool(pool, |status| status.counters.boot.observe(time.as_secs_f64()));
    }

    /// Records how long a job waited for an instance.
    pub fn waited(&self, pool: &str, time: Duration) {
        self.change_pool(pool, |status| status.counters.waiting.observe(time.as_secs_f64()));
    }

    /// Records the time from an offer to its acceptance.
    pub fn handed_over(&self, pool: &str, time: Duration) {
        self.change_pool(pool, |status| status.counters.hand_over.observe(time.as_secs_f64()));
    }

    /// Removes a pool that is no longer configured.
    pub fn remove(&self, pool: &str) {
        self.lock().remove(pool);
    }

    /// Status 200 while every scaler makes decisions, else 503 with the name of a pool whose scaler hangs.
    pub fn health(&self) -> PageResponse {
        let pools = self.lock();
        let hanging =
            pools.iter().find(|(_, status)| status.decided_at.is_some_and(|at| at.elapsed() > DECISION_TIMEOUT));
        match hanging {
            Some((pool, _)) => PageResponse::text(503, format!("the scaler hangs pool={pool}\n")),
            None => PageResponse::text(200, "working\n"),
        }
    }

    /// The status of all pools.
    pub fn view(&self, workloads: &Workloads) -> ManagerView {
        let snapshots: Vec<(&str, Snapshot)> =
            workloads.iter().map(|(pool, workload)| (pool.as_str(), workload.snapshot())).collect();
        let pools = self.lock();
        let empty = PoolStatus::default();
        let view = |(name, snapshot): &(&str, Snapshot)| pool_view(name, pools.get(*name).unwrap_or(&empty), snapshot);
        ManagerView {
            kind: "manager".to_owned(),
            version: VERSION.to_owned(),
            time: whole_seconds(Timestamp::now()),
            started: whole_seconds(self.started),
            pools: snapshots.iter().map(view).collect(),
        }
    }

    /// Passes the status of a pool to `read`, for metrics.
    pub fn read_pool<T>(&self, pool: &str, read: impl FnOnce(&PoolStatus) -> T) -> T {
        read(self.lock().entry(pool.to_owned()).or_default())
    }

    fn change_pool(&self, pool: &str, change: impl FnOnce(&mut PoolStatus)) {
        change(self.lock().entry(pool.to_owned()).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, PoolStatus>> {
        sync::lock(&self.pools)
    }
}

/// The instances of the group, and agents whose instance is not in the group.
fn all_instances<'a>(group: Option<&'a Group>, snapshot: &'a Snapshot) -> Vec<&'a str> {
    let mut all: Vec<&str> =
        group.map(|group| group.members.iter().map(|member| member.instance.as_str()).collect()).unwrap_or_default();
    let members: HashSet<&str> = all.iter().copied().collect();
    let agents = snapshot.agents.iter().map(|agent| agent.instance.as_str());
    all.extend(agents.filter(|instance| !members.contains(instance)));
    all
}

fn history_point(group: Option<&Group>, snapshot: &Snapshot) -> HistoryPoint {
    let states = states(group, snapshot);
    let count = |wanted: &[&str]| states.iter().filter(|(_, state)| wanted.contains(state)).count();
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    HistoryPoint {
        waiting: snapshot.held,
        running: snapshot.running,
        idle: number(count(&["creating", "starting", "idle"])),
        busy: number(count(&["busy"])),
    }
}

/// Every state that an instance may have on the page and in the metrics.
pub const STATES: [&str; 9] =
    ["creating", "starting", "idle", "busy", "shutting_down", "held", "terminating", "aside", "missing"];

/// The order of states on the page: hundreds of idle instances do not hide the others.
const PAGE_ORDER: [&str; 9] =
    ["missing", "held", "busy", "starting", "creating", "shutting_down", "idle", "terminating", "aside"];

/// Each instance and its state, derived from the states of the group and the agent.
pub fn states<'a>(group: Option<&'a Group>, snapshot: &'a Snapshot) -> Vec<(&'a str, &'static str)> {
    let agents: HashMap<&str, AgentState> =
        snapshot.agents.iter().map(|agent| (agent.instance.as_str(), agent.state)).collect();
    let members: HashMap<&str, MemberState> = group
        .map(|group| group.members.iter().map(|member| (member.instance.as_str(), member.state)).collect())
        .unwrap_or_default();
    let state = |instance: &str| match (members.get(instance), agents.get(instance)) {
        (Some(MemberState::Terminating), _) => "terminating",
        (Some(MemberState::TerminationDelayed), _) => "held",
        (Some(MemberState::Aside), _) => "aside",
        (_, Some(AgentState::Busy)) => "busy",
        (_, Some(AgentState::Leaving(_))) => "shutting_down",
        (None, Some(AgentState::Idle { .. })) if group.is_some() => "missing",
        (_, Some(AgentState::Idle { .. })) => "idle",
        (Some(MemberState::Creating), None) => "creating",
        (Some(MemberState::Running), None) | (None, None) => "starting",
    };
    all_instances(group, snapshot).into_iter().map(|instance| (instance, state(instance))).collect()
}

fn pool_view(name: &str, status: &PoolStatus, snapshot: &Snapshot) -> PoolView {
    let plan = &status.plan;
    let group = status.group.as_ref();
    let agents: HashMap<&str, &AgentView> =
        snapshot.agents.iter().map(|agent| (agent.instance.as_str(), agent)).collect();
    let instances = states(group, snapshot).into_iter().map(|(instance, state)| {
        let agent = agents.get(instance).copied();
        let age = status.first_listed.get(instance).map_or(Duration::ZERO, Instant::elapsed);
        instance_view(instance, state, age, agent)
    });
    let mut instances: Vec<InstanceView> = instances.collect();
    instances.sort_by_key(|instance| PAGE_ORDER.iter().position(|state| *state == instance.state));
    let (points, end) = status.history.points();
    let series = |value: fn(&HistoryPoint) -> u32| points.iter().map(value).collect();
    PoolView {
        name: name.to_owned(),
        policy: plan.policy.clone(),
        intake: plan.intake.map(|intake| intake.to_string()).unwrap_or_default(),
        wanted: plan.wanted.instances,
        reason: plan.wanted.reason.clone(),
        hold_budget: plan.hold_budget,
        stopped: plan.stopped.clone(),
        held: snapshot.held,
        running: snapshot.running,
        group: group.map(|group| GroupView {
            name: group.name.clone(),
            desired: group.desired,
            minimum: group.min_size,
            maximum: group.max_size,
        }),
        engine_error: status.engine_error.clone(),
        instances,
        decisions: status
            .decisions
            .iter()
            .map(|(time, text)| DecisionView { time: whole_seconds(*time), text: text.clone() })
            .collect(),
        history: HistoryView {
            interval_seconds: INTERVAL.as_secs(),
            end,
            waiting: series(|point| point.waiting),
            running: series(|point| point.running),
            idle: series(|point| point.idle),
            busy: series(|point| point.busy),
        },
    }
}

fn instance_view(instance: &str, state: &str, age: Duration, agent: Option<&AgentView>) -> InstanceView {
    let since = |time: SystemTime| SystemTime::now().duration_since(time).unwrap_or_default();
    let age = agent.map_or(age, |agent| age.max(since(agent.registered)));
    let idle = agent.and_then(|agent| match agent.state {
        AgentState::Idle { since } => Some(since.elapsed().as_secs()),
        _ => None,
    });
    let job = |job: &AgentJob| JobView {
        id: job.id.clone(),
        project: job.project_url_or_name.clone(),
        link: job.link.clone(),
        seconds: since(job.since).as_secs(),
        phase: job.phase.to_owned(),
    };
    InstanceView {
        instance: instance.to_owned(),
        state: state.to_owned(),
        age_seconds: age.as_secs(),
        idle_seconds: idle,
        version: agent.map(|agent| agent.version.clone()).unwrap_or_default(),
        capacity: agent.map_or(0, |agent| agent.capacity),
        builds: agent.map_or(0, |agent| agent.builds),
        silent_seconds: agent.map(|agent| agent.last_heard.elapsed().as_secs()),
        jobs: agent.map(|agent| agent.jobs.iter().map(job).collect()).unwrap_or_default(),
    }
}

/// Formats a time without a fraction of a second.
fn whole_seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}
