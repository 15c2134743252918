use super::*;
use crate::manager::engine::{FailureKind, Member};
use crate::manager::scaling::observation::Now;
use crate::manager::scaling::testing::pool;
use crate::manager::scaling::wanted::JobCounts;

const MINUTE: Duration = Duration::from_secs(60);

/// A pool and its group: the effect of each step shows in the next observation.
struct World {
    planner: Planner,
    now: Duration,
    jobs: JobCounts,
    agents: Vec<ObservedAgent>,
    group: Group,
    /// Whether the engine lists the group.
    is_group_known: bool,
}

impl World {
    fn new(executor: &str, keys: &str) -> Self {
        let group = Group { name: "group".to_owned(), max_size: Some(20), protects_new: true, ..Group::default() };
        let planner = Planner::new(Sizing::of(&pool(executor, "", keys)));
        Self {
            planner,
            now: Duration::ZERO,
            jobs: JobCounts::default(),
            agents: Vec::new(),
            group,
            is_group_known: true,
        }
    }

    fn plan(&mut self) -> ScalingPlan {
        let observation = Observation {
            now: Now { elapsed: self.now, time: "2026-07-06T12:00:00Z".parse().expect("a time") },
            jobs: self.jobs,
            agents: self.agents.clone().into(),
            group: self.is_group_known.then(|| self.group.clone()),
        };
        self.planner.plan(&observation)
    }

    /// Makes a plan, and executes its steps.
    fn step(&mut self) -> ScalingPlan {
        let plan = self.plan();
        for step in &plan.steps {
            self.planner.step_done(&step.action, self.now);
            match &step.action {
                Action::SetDesiredCapacity { to, .. } => self.group.desired = *to,
                Action::Dismiss(instance) => self.agent(instance).activity = Activity::Leaving,
                Action::Terminate(instance, change) => {
                    let member = self.group.members.iter_mut().find(|member| member.instance == *instance);
                    member.expect("a member").state = MemberState::Terminating;
                    if *change == CapacityChange::Decrement {
                        self.group.desired -= 1;
                    }
                }
            }
        }
        plan
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for agent in &mut self.agents {
            if let Activity::Idle(idle) = &mut agent.activity {
                *idle += time;
            }
        }
    }

    fn agent(&mut self, instance: &str) -> &mut ObservedAgent {
        self.agents.iter_mut().find(|agent| agent.instance == instance).expect("an agent")
    }

    fn member(&mut self, instance: &str, state: MemberState) {
        self.group.members.retain(|member| member.instance != instance);
        let instance = instance.to_owned();
        self.group.members.push(Member { instance, state, healthy: true, protected: true, detail: String::new() });
    }

    /// An instance that runs and has registered, with no job for this long.
    fn idle(&mut self, instance: &str, idle: Duration) {
        self.member(instance, MemberState::Running);
        let activity = Activity::Idle(idle);
        self.agents.push(ObservedAgent {
            instance: instance.to_owned(),
            activity,
            builds: 0,
            silent_for: Duration::ZERO,
            may_have_jobs: false,
        });
    }

    fn busy(&mut self, instance: &str) {
        self.idle(instance, Duration::ZERO);
        self.agent(instance).activity = Activity::Busy;
        self.jobs.running += 1;
    }

    fn remove_agent(&mut self, instance: &str) {
        self.agents.retain(|agent| agent.instance != instance);
    }
}

fn actions(plan: &ScalingPlan) -> Vec<Action> {
    plan.steps.iter().map(|step| step.action.clone()).collect()
}

fn set(from: u32, to: u32) -> Action {
    Action::SetDesiredCapacity { from, to }
}

fn dismiss(instance: &str) -> Action {
    Action::Dismiss(instance.to_owned())
}

fn terminate(instance: &str, change: CapacityChange) -> Action {
    Action::Terminate(instance.to_owned(), change)
}

const HOLD: &str = "max_instances = 10\n[[runners.autoscaler.policy]]\nidle_time = \"5m\"\n";

#[test]
fn an_empty_fleet_grows_for_a_held_job_and_is_empty_again_after_it() {
    let mut world = World::new("docker-autoscaler", HOLD);
    let plan = world.step();
    assert_eq!((actions(&plan), plan.hold_budget), (vec![], 10));
    world.jobs.held = 1;
    let plan = world.step();
    assert_eq!(actions(&plan), [set(0, 1)]);
    assert!(plan.steps[0].reason.starts_with("1 wanted: 1 held + 0 running + 0 idle;"), "{}", plan.steps[0].reason);
    // Until the instance has started, the planner does not request it again.
    assert_eq!(actions(&world.step()), []);
    world.member("a", MemberState::Creating);
    world.pass(MINUTE);
    assert_eq!(actions(&world.step()), []);
    world.jobs.held = 0;
    world.busy("a");
    world.pass(MINUTE);
    let plan = world.step();
    assert_eq!((actions(&plan), plan.boots), (vec![], vec![MINUTE]));
    world.jobs.running = 0;
    world.agent("a").activity = Activity::Idle(Duration::ZERO);
    assert_eq!(world.step().next_decision_in, Some(5 * MINUTE));
    world.pass(5 * MINUTE);
    let plan = world.step();
    assert_eq!(actions(&plan), [dismiss("a")]);
    assert!(plan.steps[0].reason.starts_with("idle for 300 s; 0 wanted:"), "{}", plan.steps[0].reason);
    // The instance is terminated only after its agent has left.
    assert_eq!(actions(&world.step()), []);
    world.remove_agent("a");
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Decrement)]);
    assert_eq!((actions(&world.step()), world.group.desired), (vec![], 0));
    world.group.members.clear();
    world.pass(MINUTE);
    let plan = world.step();
    assert_eq!((actions(&plan), plan.notes), (vec![], vec![]));
}

#[test]
fn only_the_surplus_leaves_and_the_longest_idle_first() {
    let mut world =
        World::new("docker-autoscaler", "[[runners.autoscaler.policy]]\nidle_count = 1\nidle_time = \"1m\"\n");
    world.group.desired = 4;
    world.idle("a", 2 * MINUTE);
    world.idle("b", 4 * MINUTE);
    world.idle("c", 3 * MINUTE);
    world.busy("d");
    assert_eq!(actions(&world.step()), [dismiss("b"), dismiss("c")]);
    assert_eq!(actions(&world.step()), []);
}

#[test]
fn an_instance_with_a_job_is_never_terminated() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 2;
    world.busy("a");
    world.busy("b");
    world.jobs = JobCounts::default();
    world.agent("a").silent_for = 60 * MINUTE;
    for _ in 0..10 {
        world.pass(10 * MINUTE);
        assert_eq!(actions(&world.step()), []);
    }
}

#[test]
fn a_new_job_keeps_the_desired_capacity_while_an_instance_leaves() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 1;
    world.idle("a", 6 * MINUTE);
    assert_eq!(actions(&world.step()), [dismiss("a")]);
    world.remove_agent("a");
    world.jobs.held = 1;
    // The group starts a replacement itself, so there is no second call.
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Keep)]);
    assert_eq!((actions(&world.step()), world.group.desired), (vec![], 1));
}

#[test]
fn an_agent_at_its_use_limit_is_replaced_while_it_leaves() {
    let mut world = World::new("docker-autoscaler", &format!("max_use_count = 1\n{HOLD}"));
    world.group.desired = 1;
    world.busy("a");
    world.step();
    world.jobs = JobCounts { held: 1, running: 0 };
    world.agent("a").activity = Activity::Leaving;
    world.agent("a").builds = 1;
    assert_eq!(actions(&world.step()), [set(1, 2)]);
    world.remove_agent("a");
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Decrement)]);
    assert_eq!(world.group.desired, 1);
}

#[test]
fn at_the_maximum_an_agent_that_left_is_replaced_by_its_termination() {
    let mut world = World::new("docker-autoscaler", "max_use_count = 1\nmax_instances = 1\n");
    world.group.desired = 1;
    world.busy("a");
    world.step();
    world.jobs = JobCounts { held: 1, running: 0 };
    world.agent("a").activity = Activity::Leaving;
    world.agent("a").builds = 1;
    assert_eq!(actions(&world.step()), []);
    world.remove_agent("a");
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Keep)]);
}

#[test]
fn an_agent_that_restarts_keeps_its_instance_and_a_missing_one_does_not() {
    let mut world = World::new("docker-autoscaler", "[[runners.autoscaler.policy]]\nidle_count = 1\n");
    world.group.desired = 1;
    world.idle("a", Duration::ZERO);
    world.step();
    world.remove_agent("a");
    assert_eq!(actions(&world.step()), []);
    world.pass(MINUTE / 2);
    world.idle("a", Duration::ZERO);
    assert_eq!(actions(&world.step()), []);
    world.remove_agent("a");
    world.step();
    world.pass(MINUTE);
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Keep)]);
}

#[test]
fn nothing_is_terminated_because_the_manager_restarted() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 3;
    for instance in ["a", "b", "c"] {
        world.member(instance, MemberState::Running);
    }
    world.jobs.running = 2;
    assert_eq!(actions(&world.step()), []);
    world.pass(4 * MINUTE);
    assert_eq!(actions(&world.step()), []);
    world.jobs = JobCounts::default();
    world.busy("a");
    world.busy("b");
    world.idle("c", Duration::ZERO);
    world.pass(2 * MINUTE);
    assert_eq!(actions(&world.step()), []);
}

#[test]
fn instances_that_do_not_register_are_replaced_until_there_are_three_in_a_row() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.jobs.held = 1;
    world.step();
    for (number, instance) in ["a", "b", "c"].into_iter().enumerate() {
        world.member(instance, MemberState::Running);
        assert_eq!(actions(&world.step()), []);
        world.pass(5 * MINUTE);
        let plan = world.step();
        let last = number == 2;
        let change = if last { CapacityChange::Decrement } else { CapacityChange::Keep };
        assert_eq!(actions(&plan), [terminate(instance, change)]);
        assert_eq!(plan.stopped.is_some(), last);
        assert_eq!(plan.hold_budget == 0, last);
    }
    assert_eq!(world.group.desired, 0);
    assert_eq!(actions(&world.step()), []);
    // After the pause, the planner starts exactly one instance.
    world.jobs.held = 5;
    world.pass(5 * MINUTE);
    let plan = world.step();
    assert_eq!((actions(&plan), plan.hold_budget), (vec![set(0, 1)], 1));
    world.idle("d", Duration::ZERO);
    assert_eq!(actions(&world.step()), [set(1, 5)]);
}

#[test]
fn a_quota_stops_growth_and_lowers_the_desired_capacity() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.jobs.held = 4;
    assert_eq!(actions(&world.step()), [set(0, 4)]);
    world.busy("a");
    let failed = FailedStart {
        at: "2026-07-06T12:00:00Z".parse().expect("a time"),
        cause: "vCPU limit of 2".to_owned(),
        kind: FailureKind::Quota,
    };
    let notes = world.planner.record_failed_starts(std::slice::from_ref(&failed), world.now);
    let Some(Note::GrowthStopped(note)) = notes.first() else { panic!("growth must stop") };
    assert!(note.contains("vCPU limit of 2 (quota); raise the quota"), "{note}");
    assert_eq!(world.planner.record_failed_starts(&[failed], world.now), []);
    world.jobs = JobCounts { held: 3, running: 1 };
    let plan = world.step();
    assert_eq!((actions(&plan), plan.hold_budget), (vec![set(4, 1)], 0));
    // Without scale-in protection of new instances, AWS would choose one, so the desired capacity stays.
    world.group.protects_new = false;
    world.group.desired = 4;
    world.pass(MINUTE);
    assert_eq!(actions(&world.step()), []);
}

#[test]
fn the_instance_of_an_agent_that_does_not_leave_is_terminated() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 1;
    world.idle("a", 6 * MINUTE);
    assert_eq!(actions(&world.step()), [dismiss("a")]);
    // The agent polls as before, and gets no job.
    for _ in 0..9 {
        world.pass(MINUTE);
        assert_eq!(actions(&world.step()), []);
    }
    world.pass(MINUTE);
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Decrement)]);
}

#[test]
fn the_instance_of_an_agent_that_drains_is_not_terminated_under_a_job() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 1;
    world.idle("a", 6 * MINUTE);
    assert_eq!(actions(&world.step()), [dismiss("a")]);
    // The agent has a job that this manager does not know, for example of another server.
    world.agent("a").may_have_jobs = true;
    for _ in 0..30 {
        world.pass(MINUTE);
        assert_eq!(actions(&world.step()), []);
    }
    world.agent("a").may_have_jobs = false;
    world.pass(MINUTE);
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Decrement)]);
}

#[test]
fn growth_is_limited_by_the_throttle_and_by_instances_in_flight() {
    let mut world = World::new(
        "docker-autoscaler",
        "max_instances = 10\n[runners.autoscaler.scale_throttle]\nlimit = 1\nburst = 2\n",
    );
    world.jobs.held = 5;
    let plan = world.step();
    assert_eq!(actions(&plan), [set(0, 2)]);
    assert!(plan.steps[0].reason.ends_with(", 2 of 5 now by the limit on growth"), "{}", plan.steps[0].reason);
    assert_eq!(plan.next_decision_in, Some(Duration::from_secs(1)), "the next one is due when the bucket has a token");
    // A decision between two tokens keeps the time of the next one.
    world.pass(Duration::from_millis(400));
    let plan = world.step();
    assert_eq!((actions(&plan), plan.next_decision_in), (vec![], Some(Duration::from_millis(600))));
    world.pass(Duration::from_millis(600));
    assert_eq!(actions(&world.step()), [set(2, 3)]);
    let mut world = World::new("docker+machine", "MaxGrowthRate = 1\nIdleTime = 300\n");
    world.jobs.held = 5;
    assert_eq!((actions(&world.step()), world.plan().hold_budget), (vec![set(0, 1)], 1));
    world.member("a", MemberState::Creating);
    assert_eq!(actions(&world.step()), []);
    world.jobs.held = 4;
    world.busy("a");
    let plan = world.step();
    assert_eq!(actions(&plan), [set(1, 2)], "{plan:?}");
}

#[test]
fn an_engine_that_stores_no_desired_capacity_causes_no_warning() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.jobs.held = 2;
    world.step();
    world.pass(MINUTE);
    (world.group.desired, world.group.desired_is_counted) = (1, true);
    let plan = world.step();
    assert_eq!(plan.notes, [], "{plan:?}");
    assert_eq!(actions(&plan), [set(1, 2)], "{plan:?}");
}

#[test]
fn a_desired_capacity_of_another_client_is_adopted_with_a_warning() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.jobs.held = 2;
    world.step();
    world.pass(MINUTE);
    world.group.desired = 6;
    let plan = world.step();
    assert!(matches!(&plan.notes[..], [Note::Warning(note)] if note.contains("from 2 to 6")), "{:?}", plan.notes);
    assert_eq!(actions(&plan), []);
    // The warning appears once.
    world.pass(MINUTE);
    assert_eq!(world.step().notes, []);
    // A desired capacity that is too low does not remove instances that are needed.
    world.busy("a");
    world.busy("b");
    world.jobs = JobCounts { held: 0, running: 2 };
    world.group.desired = 0;
    world.pass(MINUTE);
    assert_eq!(actions(&world.step()), [set(0, 2)]);
}

#[test]
fn an_outdated_group_does_not_repeat_a_step() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.jobs.held = 2;
    let plan = world.plan();
    world.planner.step_done(&plan.steps[0].action, world.now);
    // The group still reports 0.
    let plan = world.plan();
    assert_eq!((actions(&plan), plan.notes), (vec![], vec![]));
}

#[test]
fn a_silent_idle_agent_is_replaced_unless_most_are_silent() {
    let mut world =
        World::new("docker-autoscaler", "[[runners.autoscaler.policy]]\nidle_count = 3\nidle_time = \"1h\"\n");
    world.group.desired = 3;
    for instance in ["a", "b", "c"] {
        world.idle(instance, MINUTE);
        world.agent(instance).silent_for = 10 * MINUTE;
    }
    assert_eq!(actions(&world.step()), []);
    world.agent("a").silent_for = Duration::ZERO;
    world.agent("b").silent_for = Duration::ZERO;
    assert_eq!(actions(&world.step()), [terminate("c", CapacityChange::Keep)]);
}

#[test]
fn while_the_group_is_unknown_no_job_is_held_and_no_instance_is_terminated() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.is_group_known = false;
    world.jobs.held = 3;
    world.idle("a", 60 * MINUTE);
    let plan = world.step();
    assert_eq!((actions(&plan), plan.hold_budget, plan.wanted.instances), (vec![], 0, 3));
}

#[test]
fn the_minimum_of_the_group_is_kept() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.min_size = 1;
    world.group.desired = 2;
    world.idle("a", 60 * MINUTE);
    world.idle("b", 50 * MINUTE);
    assert_eq!(actions(&world.step()), [dismiss("a")]);
    world.remove_agent("a");
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Decrement)]);
    assert_eq!(actions(&world.step()), []);
}

#[test]
fn a_failed_termination_is_retried_later() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 1;
    world.idle("a", 6 * MINUTE);
    world.step();
    world.remove_agent("a");
    let plan = world.plan();
    world.planner.step_failed(&plan.steps[0].action, world.now);
    assert_eq!(actions(&world.plan()), []);
    world.pass(MINUTE);
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Decrement)]);
}

#[test]
fn members_that_do_not_count_are_not_changed() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.member("warm", MemberState::Aside);
    world.member("held", MemberState::TerminationDelayed);
    world.member("ending", MemberState::Terminating);
    world.jobs.held = 1;
    assert_eq!(actions(&world.step()), [set(0, 1)]);
    world.pass(60 * MINUTE);
    let terminated = actions(&world.step()).into_iter().any(|action| matches!(action, Action::Terminate(..)));
    assert!(!terminated);
}

#[test]
fn relay_holds_no_job_and_keeps_idle_capacity() {
    let mut world =
        World::new("docker-autoscaler", "max_instances = 10\n[[runners.autoscaler.policy]]\nidle_count = 5\n");
    let plan = world.step();
    assert_eq!((actions(&plan), plan.hold_budget), (vec![set(0, 5)], 0));
    assert!(matches!(&plan.notes[..], [Note::Info(note)] if note.starts_with("policy in force: policy 1")));
}
