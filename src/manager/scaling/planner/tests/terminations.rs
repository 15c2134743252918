//! Instances without an agent, or with an agent that is silent.

use super::*;

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
fn if_all_agents_are_silent_the_manager_waits_longer() {
    let mut world = World::new("docker-autoscaler", "[[runners.autoscaler.policy]]\nidle_count = 1\n");
    world.group.desired = 1;
    world.idle("a", MINUTE);
    // The clock went on while the manager's machine was suspended.
    world.pass(60 * MINUTE);
    world.agent("a").silent_for = 60 * MINUTE;
    assert_eq!(actions(&world.step()), []);
    world.pass(4 * MINUTE);
    assert_eq!(actions(&world.step()), []);
    world.pass(MINUTE);
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Keep)]);
}

#[test]
fn silence_before_the_group_was_unknown_does_not_count() {
    let mut world = World::new("docker-autoscaler", "[[runners.autoscaler.policy]]\nidle_count = 1\n");
    world.group.desired = 1;
    world.idle("a", MINUTE);
    world.agent("a").silent_for = 60 * MINUTE;
    for is_group_known in [true, false, true] {
        world.is_group_known = is_group_known;
        assert_eq!(actions(&world.step()), []);
        world.pass(4 * MINUTE);
    }
    assert_eq!(actions(&world.step()), []);
    world.pass(MINUTE);
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Keep)]);
}

#[test]
fn a_termination_without_effect_is_repeated() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 1;
    world.idle("a", 6 * MINUTE);
    world.step();
    world.remove_agent("a");
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Decrement)]);
    world.member("a", MemberState::Running);
    world.pass(4 * MINUTE);
    assert_eq!(actions(&world.step()), [], "the list may be older than the termination");
    world.pass(MINUTE);
    let plan = world.step();
    assert!(matches!(&plan.notes[..], [Note::Warning(note)] if note.ends_with("instance=a")), "{:?}", plan.notes);
    assert_eq!(actions(&plan), [terminate("a", CapacityChange::Keep)], "the desired capacity is 0 already");
}

#[test]
fn the_repeated_termination_of_an_instance_that_did_not_register_is_no_second_failure() {
    let mut world = World::new("docker-autoscaler", &format!("failure_threshold = 2\n{HOLD}"));
    world.jobs.held = 1;
    world.step();
    world.member("a", MemberState::Running);
    world.step();
    for _ in 0..2 {
        world.pass(5 * MINUTE);
        let plan = world.step();
        assert_eq!((actions(&plan), plan.stopped), (vec![terminate("a", CapacityChange::Keep)], None));
        world.member("a", MemberState::Running);
        world.step();
    }
}

#[test]
fn an_instance_that_registers_while_the_plan_is_executed_is_no_failure() {
    let mut world = World::new("docker-autoscaler", &format!("failure_threshold = 1\n{HOLD}"));
    world.jobs.held = 1;
    world.step();
    world.member("a", MemberState::Running);
    world.step();
    world.pass(5 * MINUTE);
    for _ in 0..2 {
        let plan = world.plan();
        assert_eq!(actions(&plan), [terminate("a", CapacityChange::Decrement)]);
        assert!(plan.stopped.is_some(), "the plan counts on its step");
    }
    world.idle("a", Duration::ZERO);
    let plan = world.step();
    assert_eq!((actions(&plan), plan.stopped), (vec![], None));
}

#[test]
fn an_instance_that_did_not_register_is_a_failure_also_if_its_termination_fails() {
    let mut world = World::new("docker-autoscaler", &format!("failure_threshold = 1\n{HOLD}"));
    world.jobs.held = 1;
    world.step();
    world.member("a", MemberState::Running);
    world.step();
    world.pass(5 * MINUTE);
    let plan = world.plan();
    world.planner.step_failed(&plan.steps[0].action, world.now);
    let plan = world.plan();
    assert!(plan.stopped.is_some() && !actions(&plan).contains(&terminate("a", CapacityChange::Decrement)), "{plan:?}");
}

#[test]
fn a_failed_termination_ends_with_the_registration_of_a_new_agent() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 1;
    world.busy("a");
    world.agent("a").activity = LEAVING;
    world.step();
    world.pass(10 * MINUTE);
    let plan = world.plan();
    world.planner.step_failed(&plan.steps[0].action, world.now);
    world.pass(2 * MINUTE);
    world.agent("a").activity = Activity::Busy;
    let plan = world.step();
    assert_eq!((actions(&plan), plan.next_decision_in), (vec![], None), "no retry is due");
}

#[test]
fn an_instance_stays_terminated_while_the_group_lists_it() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 1;
    world.idle("a", 6 * MINUTE);
    world.step();
    world.remove_agent("a");
    world.step();
    world.step();
    // The response of the engine is older than the termination.
    world.member("a", MemberState::Running);
    world.jobs.held = 1;
    assert_eq!(actions(&world.step()), [set(0, 1)], "the terminated instance is no capacity");
}

#[test]
fn a_termination_whose_response_is_lost_is_no_change_by_another_client() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 1;
    world.idle("a", 6 * MINUTE);
    world.step();
    world.remove_agent("a");
    let plan = world.plan();
    world.planner.step_failed(&plan.steps[0].action, world.now);
    world.member("a", MemberState::Terminating);
    world.group.desired = 0;
    for _ in 0..3 {
        world.pass(MINUTE);
        let plan = world.step();
        assert_eq!((actions(&plan), plan.notes), (vec![], vec![]));
    }
}

#[test]
fn instances_whose_agents_left_before_a_restart_of_the_manager_do_not_stop_growth() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 3;
    for instance in ["a", "b", "c"] {
        world.member(instance, MemberState::Running);
    }
    world.step();
    world.pass(5 * MINUTE);
    let plan = world.step();
    let removed = ["a", "b", "c"].map(|instance| terminate(instance, CapacityChange::Decrement));
    assert_eq!((actions(&plan), plan.stopped), (removed.to_vec(), None));
}
