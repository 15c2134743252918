//! Growth, its limits, and the desired capacity.

use super::*;

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
fn after_a_failed_call_without_effect_a_change_by_another_client_is_reported_again() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.jobs.held = 2;
    world.step();
    world.planner.step_failed(&set(2, 3), world.now);
    for _ in 0..3 {
        world.pass(MINUTE);
        assert_eq!(world.step().notes, []);
    }
    world.group.desired = 6;
    world.pass(MINUTE);
    let plan = world.step();
    assert!(matches!(&plan.notes[..], [Note::Warning(note)] if note.contains("from 2 to 6")), "{:?}", plan.notes);
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
fn while_the_group_is_unknown_no_job_is_held_and_no_instance_is_terminated() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.is_group_known = false;
    world.jobs.held = 3;
    world.idle("a", 60 * MINUTE);
    let plan = world.step();
    assert_eq!((actions(&plan), plan.hold_budget, plan.wanted.instances), (vec![], 0, 3));
}

#[test]
fn relay_holds_no_job_and_keeps_idle_capacity() {
    let mut world =
        World::new("docker-autoscaler", "max_instances = 10\n[[runners.autoscaler.policy]]\nidle_count = 5\n");
    let plan = world.step();
    assert_eq!((actions(&plan), plan.hold_budget), (vec![set(0, 5)], 0));
    assert!(matches!(&plan.notes[..], [Note::Info(note)] if note.starts_with("policy in force: policy 1")));
}
