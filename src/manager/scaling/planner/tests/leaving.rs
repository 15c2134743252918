//! Agents that leave, for their own reason or as ordered, and their instances.

use super::*;

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
    world.agent("a").activity = LEAVING;
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
    world.agent("a").activity = LEAVING;
    world.agent("a").builds = 1;
    assert_eq!(actions(&world.step()), []);
    world.remove_agent("a");
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Keep)]);
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
fn an_agent_has_the_time_to_leave_after_its_last_job() {
    for jobs in [RemainingJobs::Known, RemainingJobs::Possible] {
        let mut world = World::new("docker-autoscaler", HOLD);
        world.group.desired = 1;
        world.idle("a", 6 * MINUTE);
        assert_eq!(actions(&world.step()), [dismiss("a")]);
        world.agent("a").activity = Activity::Leaving(jobs);
        for _ in 0..30 {
            world.pass(MINUTE);
            assert_eq!(actions(&world.step()), []);
        }
        world.agent("a").activity = LEAVING;
        assert_eq!(actions(&world.step()), []);
        world.pass(10 * MINUTE);
        assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Decrement)], "{jobs:?}");
    }
}

/// With `max_use_count`, an agent has the order to leave while its last job runs.
#[test]
fn the_job_of_a_leaving_agent_survives_a_partition() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 1;
    world.busy("a");
    world.agent("a").activity = Activity::Leaving(RemainingJobs::Known);
    world.step();
    world.agent("a").silent_for = 60 * MINUTE;
    world.pass(60 * MINUTE);
    assert_eq!(actions(&world.step()), []);
    // GitLab has failed the job.
    world.jobs = JobCounts::default();
    world.agent("a").activity = LEAVING;
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Decrement)]);
}

#[test]
fn an_agent_that_may_have_jobs_of_other_servers_may_be_silent_for_longer() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 1;
    world.idle("a", Duration::ZERO);
    world.agent("a").activity = Activity::Leaving(RemainingJobs::Possible);
    world.agent("a").silent_for = 4 * MINUTE;
    assert_eq!(actions(&world.step()), []);
    world.agent("a").silent_for = 5 * MINUTE;
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Decrement)]);
}

/// An agent whose slots are full with jobs of another server does not poll, and learns the order by a heartbeat.
#[test]
fn an_agent_that_has_not_been_heard_since_the_order_may_be_silent_for_longer() {
    for (silent_at_order, limit) in [(MINUTE / 2, 5 * MINUTE), (Duration::ZERO, MINUTE)] {
        let mut world = World::new("docker-autoscaler", HOLD);
        world.group.desired = 1;
        world.idle("a", 6 * MINUTE);
        world.agent("a").silent_for = silent_at_order;
        assert_eq!(actions(&world.step()), [dismiss("a")]);
        world.pass(limit - silent_at_order - Duration::from_secs(1));
        world.agent("a").silent_for = limit - Duration::from_secs(1);
        assert_eq!(actions(&world.step()), []);
        world.pass(Duration::from_secs(1));
        world.agent("a").silent_for = limit;
        assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Decrement)], "{silent_at_order:?}");
    }
}

#[test]
fn an_agent_that_leaves_for_its_own_reason_must_leave_in_time_as_well() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 1;
    world.idle("a", Duration::ZERO);
    world.agent("a").activity = LEAVING;
    assert_eq!(actions(&world.step()), []);
    world.pass(10 * MINUTE);
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Decrement)]);
}

/// The service manager restarts an agent that has left, and no round was in between.
#[test]
fn an_agent_that_registers_again_between_two_rounds_is_a_new_one() {
    let mut world = World::new("docker-autoscaler", HOLD);
    world.group.desired = 1;
    world.idle("a", 6 * MINUTE);
    assert_eq!(actions(&world.step()), [dismiss("a")]);
    world.agent("a").activity = Activity::Idle(Duration::ZERO);
    assert_eq!(actions(&world.step()), []);
    world.pass(5 * MINUTE);
    assert_eq!(actions(&world.step()), [dismiss("a")], "it is idle for long enough again");
    world.remove_agent("a");
    assert_eq!(actions(&world.step()), [terminate("a", CapacityChange::Decrement)]);
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
