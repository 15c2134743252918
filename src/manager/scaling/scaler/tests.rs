use std::collections::VecDeque;
use std::sync::Condvar;
use std::time::SystemTime;

use jiff::Timestamp;

use super::*;
use crate::instance::CapacityChange;
use crate::manager::engine::{Check, EngineError, ErrorKind, FailedStart, Group, Member, MemberState};
use crate::manager::scaling::deletion::delete_instances;
use crate::manager::scaling::testing::pool;
use crate::manager::workload::{AgentState, AgentView, RemainingJobs, Snapshot};

/// The jobs and agents of a pool, which a test sets.
#[derive(Default)]
struct Jobs {
    snapshot: Mutex<Snapshot>,
    changes: Mutex<u32>,
    changed: Condvar,
    budget: Mutex<Option<u32>>,
    lost: Mutex<Vec<String>>,
    members: Mutex<Vec<String>>,
    refuses_closing: bool,
}

impl Jobs {
    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.snapshot.lock().expect("no panic"));
        self.wake();
    }
}

impl Workload for Jobs {
    fn snapshot(&self) -> Snapshot {
        self.snapshot.lock().expect("no panic").clone()
    }

    fn dismiss(&self, instance: &str, _reason: &str) -> bool {
        self.change(|snapshot| snapshot.agents.retain(|agent| agent.instance != instance));
        true
    }

    fn close_instance(&self, _instance: &str, _reason: &str, _decided_at: Instant) -> bool {
        !self.refuses_closing
    }

    fn lost(&self, instance: &str) {
        self.lost.lock().expect("no panic").push(instance.to_owned());
        self.change(|snapshot| snapshot.agents.retain(|agent| agent.instance != instance));
    }

    fn set_hold_budget(&self, jobs: u32) {
        *self.budget.lock().expect("no panic") = Some(jobs);
    }

    fn wait_for_change(&self, timeout: Duration) {
        let changes = self.changes.lock().expect("no panic");
        let (mut changes, _) =
            self.changed.wait_timeout_while(changes, timeout, |changes| *changes == 0).expect("no panic");
        *changes = 0;
    }

    fn wake(&self) {
        *self.changes.lock().expect("no panic") += 1;
        self.changed.notify_all();
    }

    fn set_members(&self, members: &[String]) {
        *self.members.lock().expect("no panic") = members.to_vec();
    }
}

/// A group that executes each call immediately and fails as the test configures.
#[derive(Default)]
struct TestGroup {
    group: Mutex<Group>,
    calls: Mutex<Vec<String>>,
    failures: Mutex<VecDeque<&'static str>>,
    started: Mutex<u32>,
    changed: Condvar,
    refuses_starts: bool,
}

impl TestGroup {
    fn new() -> Self {
        let group = Group { max_size: Some(10), protects_new: true, ..Group::default() };
        Self { group: Mutex::new(group), ..Self::default() }
    }

    fn call(&self, call: String) -> Result<(), EngineError> {
        let name = call.split(' ').next().unwrap_or_default().to_owned();
        self.calls.lock().expect("no panic").push(call);
        self.changed.notify_all();
        let mut failures = self.failures.lock().expect("no panic");
        match failures.front() {
            Some(next) if *next == name => {
                failures.pop_front();
                Err(EngineError { kind: ErrorKind::Temporary, call: name, why: "throttled".to_owned() })
            }
            _ => Ok(()),
        }
    }

    fn wait_until(&self, what: &str, is_true: impl Fn(&[String]) -> bool) {
        let calls = self.calls.lock().expect("no panic");
        let limit = Duration::from_secs(60);
        let (calls, timeout) =
            self.changed.wait_timeout_while(calls, limit, |calls| !is_true(calls)).expect("no panic");
        assert!(!timeout.timed_out(), "{what}: {calls:?}");
    }
}

impl Engine for TestGroup {
    fn group(&self) -> Result<Group, EngineError> {
        self.call("group".to_owned())?;
        Ok(self.group.lock().expect("no panic").clone())
    }

    fn set_desired_capacity(&self, instances: u32) -> Result<(), EngineError> {
        let mut group = self.group.lock().expect("no panic");
        self.call(format!("set_desired_capacity {instances}"))?;
        group.desired = instances;
        let listed = u32::try_from(group.members.len()).expect("the number must be small");
        for _ in listed..if self.refuses_starts { listed } else { instances } {
            let mut started = self.started.lock().expect("no panic");
            *started += 1;
            let instance = format!("i-{started}");
            group.members.push(Member {
                instance,
                state: MemberState::Running,
                healthy: true,
                protected: true,
                detail: String::new(),
            });
        }
        Ok(())
    }

    fn terminate(&self, instance: &str, capacity: CapacityChange) -> Result<(), EngineError> {
        let mut group = self.group.lock().expect("no panic");
        self.call(format!("terminate {instance} {capacity:?}"))?;
        group.members.retain(|member| member.instance != instance);
        if capacity == CapacityChange::Decrement {
            group.desired -= 1;
        }
        Ok(())
    }

    fn terminated_among(&self, instances: &[String]) -> Result<Vec<String>, EngineError> {
        Ok(instances.to_vec())
    }

    fn failed_starts(&self, _since: Timestamp) -> Result<Vec<FailedStart>, EngineError> {
        let failed = FailedStart {
            at: Timestamp::now(),
            cause: "vCPU limit".to_owned(),
            kind: crate::manager::engine::FailureKind::Quota,
        };
        Ok(if self.refuses_starts { vec![failed] } else { Vec::new() })
    }

    fn extend_termination_delay(&self, instance: &str) -> Result<(), EngineError> {
        self.call(format!("extend_termination_delay {instance}"))
    }

    fn end_termination_delay(&self, instance: &str) -> Result<(), EngineError> {
        self.call(format!("end_termination_delay {instance}"))
    }

    fn check(&self, _max_instances: Option<u32>) -> Vec<Check> {
        Vec::new()
    }

    fn check_permissions(&self) -> Vec<Check> {
        Vec::new()
    }
}

fn agent(instance: &str, state: AgentState) -> AgentView {
    AgentView {
        instance: instance.to_owned(),
        state,
        registered: SystemTime::now(),
        version: String::new(),
        capacity: 1,
        builds: 0,
        jobs: Vec::new(),
        last_heard: Instant::now(),
    }
}

/// An agent that has sent no request for this long.
fn silent(instance: &str, state: AgentState, minutes: u64) -> AgentView {
    let last_heard = Instant::now().checked_sub(Duration::from_secs(minutes * 60)).expect("a time");
    AgentView { last_heard, ..agent(instance, state) }
}

/// The events of the pool on the status page.
fn events(board: &StatusBoard, jobs: &Arc<Jobs>) -> Vec<String> {
    let view = board.view(&vec![(settings().name, jobs.clone())]);
    view.pools[0].decisions.iter().map(|decision| decision.text.clone()).collect()
}

fn settings() -> PoolSettings {
    pool(
        "docker-autoscaler",
        "",
        "update_interval = \"1s\"\nupdate_interval_when_expecting = \"50ms\"\ndeletion_retry_interval = \"50ms\"\n\
         [[runners.autoscaler.policy]]\nidle_time = \"1s\"\n",
    )
}

fn start(engine: &Arc<TestGroup>) -> (Arc<Jobs>, Arc<StatusBoard>, Scaler) {
    start_with(engine, Jobs::default())
}

fn start_with(engine: &Arc<TestGroup>, jobs: Jobs) -> (Arc<Jobs>, Arc<StatusBoard>, Scaler) {
    let (jobs, board) = (Arc::new(jobs), Arc::new(StatusBoard::new()));
    let workload: Arc<dyn Workload> = jobs.clone();
    let scaler = Scaler::start(settings(), workload, engine.clone(), Arc::clone(&board)).expect("a thread");
    (jobs, board, scaler)
}

fn has(call: &str) -> impl Fn(&[String]) -> bool {
    move |calls| calls.iter().any(|other| other == call)
}

#[test]
fn a_pool_grows_and_shrinks_to_zero_over_failed_calls() {
    let engine = Arc::new(TestGroup::new());
    engine.failures.lock().expect("no panic").extend(["group", "set_desired_capacity", "group", "terminate", "group"]);
    let (jobs, _board, scaler) = start(&engine);
    jobs.change(|snapshot| snapshot.held = 1);
    engine.wait_until("growth", |calls| calls.iter().filter(|call| *call == "set_desired_capacity 1").count() == 2);
    jobs.change(|snapshot| {
        *snapshot = Snapshot { held: 0, running: 1, agents: vec![agent("i-1", AgentState::Busy)] };
    });
    jobs.change(|snapshot| {
        *snapshot =
            Snapshot { agents: vec![agent("i-1", AgentState::Idle { since: Instant::now() })], ..Snapshot::default() };
    });
    let end = "terminate i-1 Decrement";
    engine.wait_until("an empty group", |calls| calls.iter().filter(|call| *call == end).count() == 2);
    scaler.stop();
    let group = engine.group.lock().expect("no panic");
    assert_eq!((group.desired, group.members.len()), (0, 0));
}

/// Waits for an effect that no condition variable announces.
fn wait_until(what: &str, is_true: impl Fn() -> bool) {
    let end = sync::try_until(Duration::from_secs(60), Duration::from_millis(10), || is_true().then_some(()));
    assert!(end.is_some(), "timed out waiting for {what}");
}

#[test]
fn an_instance_that_vanished_is_reported_lost() {
    let engine = Arc::new(TestGroup::new());
    let (jobs, board, scaler) = start(&engine);
    jobs.change(|snapshot| snapshot.agents = vec![agent("i-9", AgentState::Busy)]);
    wait_until("a report of the lost instance", || !jobs.lost.lock().expect("no panic").is_empty());
    scaler.stop();
    assert_eq!(*jobs.lost.lock().expect("no panic"), ["i-9"]);
    let warning = "instance lost: terminated outside of the manager instance=i-9".to_owned();
    assert!(events(&board, &jobs).contains(&warning));
}

#[test]
fn an_instance_that_the_manager_terminated_is_not_reported_as_terminated_by_another() {
    let engine = Arc::new(TestGroup::new());
    engine.set_desired_capacity(1).expect("set the desired capacity");
    let jobs = Jobs::default();
    jobs.change(|snapshot| snapshot.agents = vec![silent("i-1", AgentState::Leaving(RemainingJobs::None), 10)]);
    let (jobs, board, scaler) = start_with(&engine, jobs);
    wait_until("the end of the instance", || !jobs.lost.lock().expect("no panic").is_empty());
    scaler.stop();
    let events = events(&board, &jobs);
    assert!(events.contains(&"instance gone after its termination instance=i-1".to_owned()), "{events:?}");
}

/// The termination of an instance is delayed while its agent may have a job, and no longer than that.
#[test]
fn a_delayed_termination_ends_when_the_agent_is_silent_for_5_minutes() {
    let engine = Arc::new(TestGroup::new());
    engine.set_desired_capacity(6).expect("set the desired capacity");
    for member in &mut engine.group.lock().expect("no panic").members {
        member.state = MemberState::TerminationDelayed;
    }
    let jobs = Jobs::default();
    let (known, possible) = (RemainingJobs::Known, RemainingJobs::Possible);
    jobs.change(|snapshot| {
        snapshot.agents = vec![
            silent("i-1", AgentState::Leaving(RemainingJobs::None), 2),
            silent("i-2", AgentState::Leaving(possible), 2),
            silent("i-3", AgentState::Leaving(known), 60),
            silent("i-4", AgentState::Busy, 60),
            silent("i-5", AgentState::Leaving(RemainingJobs::None), 6),
            silent("i-6", AgentState::Leaving(possible), 6),
        ];
    });
    let (_jobs, _board, scaler) = start_with(&engine, jobs);
    engine.wait_until("a second read of the group", |calls| calls.iter().filter(|call| *call == "group").count() >= 2);
    scaler.stop();
    let calls = engine.calls.lock().expect("no panic");
    let delays: Vec<&str> = calls.iter().filter(|call| call.contains("delay")).map(String::as_str).take(6).collect();
    let extended = ["i-1", "i-2", "i-3", "i-4"].map(|instance| format!("extend_termination_delay {instance}"));
    let ended = ["i-5", "i-6"].map(|instance| format!("end_termination_delay {instance}"));
    assert_eq!(delays, [&extended[..], &ended[..]].concat());
}

#[test]
fn the_steps_after_an_obsolete_one_are_not_executed() {
    let engine = Arc::new(TestGroup::new());
    engine.set_desired_capacity(1).expect("set the desired capacity");
    let jobs = Jobs { refuses_closing: true, ..Jobs::default() };
    jobs.change(|snapshot| {
        snapshot.held = 2;
        snapshot.agents = vec![silent("i-1", AgentState::Leaving(RemainingJobs::None), 10)];
    });
    let (_jobs, board, scaler) = start_with(&engine, jobs);
    engine.wait_until("a third read of the group", |calls| calls.iter().filter(|call| *call == "group").count() >= 3);
    scaler.stop();
    let steps = board.read_pool(&settings().name, |status| status.plan.steps.len());
    assert_eq!(steps, 2, "the pool needs a replacement and another instance");
    let calls = engine.calls.lock().expect("no panic");
    let changes: Vec<&String> = calls.iter().filter(|call| !call.starts_with("group")).collect();
    assert_eq!(changes, ["set_desired_capacity 1"]);
}

#[test]
fn a_group_that_cannot_start_instances_ends_hold_ahead() {
    let engine = Arc::new(TestGroup { refuses_starts: true, ..TestGroup::new() });
    let (jobs, _board, scaler) = start(&engine);
    jobs.change(|snapshot| snapshot.held = 2);
    engine.wait_until("growth that is withdrawn", has("set_desired_capacity 0"));
    wait_until("no budget for held jobs", || *jobs.budget.lock().expect("no panic") == Some(0));
    scaler.stop();
}

#[test]
fn a_reload_changes_the_policy_and_keeps_the_instances() {
    let engine = Arc::new(TestGroup::new());
    let (_jobs, _board, scaler) = start(&engine);
    engine.wait_until("the first read of the group", has("group"));
    scaler.reload(pool("docker-autoscaler", "", "[[runners.autoscaler.policy]]\nidle_count = 2\n"));
    engine.wait_until("growth by the new policy", has("set_desired_capacity 2"));
    scaler.stop();
}

#[test]
fn instances_without_a_job_are_deleted_at_shutdown() {
    let engine = TestGroup::new();
    engine.set_desired_capacity(5).expect("set the desired capacity");
    let jobs = Jobs::default();
    jobs.change(|snapshot| {
        snapshot.agents = vec![
            agent("i-1", AgentState::Leaving(RemainingJobs::None)),
            agent("i-2", AgentState::Busy),
            // With `max_use_count`, an agent has the order to leave while its last job runs.
            agent("i-3", AgentState::Leaving(RemainingJobs::Known)),
            agent("i-4", AgentState::Leaving(RemainingJobs::Possible)),
        ];
    });
    assert_eq!(delete_instances(&settings(), &jobs, &engine), 0);
    let group = engine.group().expect("a group");
    let left: Vec<&str> = group.members.iter().map(|member| member.instance.as_str()).collect();
    assert_eq!((left, group.desired), (vec!["i-2", "i-3", "i-4"], 3));
}

#[test]
fn instances_that_the_group_has_not_started_yet_are_withdrawn_at_shutdown() {
    let engine = TestGroup { refuses_starts: true, ..TestGroup::new() };
    engine.set_desired_capacity(2).expect("set the desired capacity");
    assert_eq!(delete_instances(&settings(), &Jobs::default(), &engine), 0);
    assert_eq!(engine.group().expect("a group").desired, 0);
}
