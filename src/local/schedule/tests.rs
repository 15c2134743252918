use super::*;

fn job(stage: usize, when: When, needs: Option<&[usize]>) -> ScheduledJob {
    ScheduledJob {
        stage,
        when,
        needs: needs.map(<[usize]>::to_vec),
        allow_failure: AllowFailure::No,
        delay: None,
        resource_group: None,
        selection: JobSelection::ByPipeline,
        work: JobWork::Script,
    }
}

/// Runs all jobs one after another; the jobs in `failing` fail. Returns the jobs in the order of their start.
fn run(schedule: &mut Schedule, failing: &[usize]) -> Vec<usize> {
    let mut order = Vec::new();
    loop {
        schedule.advance(Instant::now());
        let Some(job) = schedule.take_due_jobs(1, &HashSet::new()).pop() else { return order };
        order.push(job);
        let allowed = schedule.jobs[job].allow_failure == AllowFailure::Yes;
        schedule.end(
            job,
            match failing.contains(&job) {
                true if allowed => Conclusion::Warning,
                true => Conclusion::Failed,
                false => Conclusion::Success,
            },
        );
    }
}

use When::{Always, Delayed, Manual, OnFailure, OnSuccess};

#[test]
fn a_failure_skips_later_stages_except_jobs_for_failures() {
    let mut schedule = Schedule::new(vec![
        job(0, OnSuccess, None),
        job(0, OnSuccess, None),
        job(1, OnSuccess, None),
        job(1, OnFailure, None),
        job(2, Always, None),
        job(2, OnSuccess, None),
    ]);
    assert_eq!(run(&mut schedule, &[1]), [0, 1, 3, 4]);
    assert_eq!(schedule.state(2), ScheduleState::Done(Conclusion::Skipped));
    assert_eq!((schedule.status(), schedule.is_over()), (PipelineStatus::Failed, true));
}

#[test]
fn an_allowed_failure_does_not_stop_the_pipeline() {
    let may_fail = ScheduledJob { allow_failure: AllowFailure::Yes, ..job(0, OnSuccess, None) };
    let mut schedule = Schedule::new(vec![may_fail, job(1, OnSuccess, Some(&[0])), job(1, OnFailure, None)]);
    assert_eq!(run(&mut schedule, &[0]), [0, 1]);
    assert_eq!(schedule.status(), PipelineStatus::Success);
}

#[test]
fn needs_ignore_stages_and_a_skipped_need_skips() {
    let mut schedule = Schedule::new(vec![
        job(0, OnSuccess, None),
        job(1, OnSuccess, Some(&[])),
        job(2, OnSuccess, Some(&[1])),
        job(1, OnFailure, Some(&[0])),
        job(2, OnSuccess, Some(&[3])),
        job(2, Always, Some(&[3])),
    ]);
    schedule.advance(Instant::now());
    assert_eq!(schedule.take_due_jobs(9, &HashSet::new()), [0, 1]);
    schedule.end(1, Conclusion::Success);
    schedule.advance(Instant::now());
    assert_eq!(schedule.take_due_jobs(9, &HashSet::new()), [2], "job 2 does not wait for job 0");
    schedule.end(0, Conclusion::Success);
    schedule.end(2, Conclusion::Success);
    assert_eq!(run(&mut schedule, &[]), [5]);
    assert_eq!(schedule.state(4), ScheduleState::Done(Conclusion::Skipped));
}

#[test]
fn a_blocking_manual_job_blocks_later_stages_and_an_optional_one_does_not() {
    let jobs = |allow_failure| vec![ScheduledJob { allow_failure, ..job(0, Manual, None) }, job(1, OnSuccess, None)];
    let mut blocked = Schedule::new(jobs(AllowFailure::No));
    assert_eq!(blocked.advance(Instant::now()), [0]);
    assert!(
        blocked.is_over() && blocked.status() == PipelineStatus::Blocked && blocked.state(1) == ScheduleState::Waiting
    );
    blocked.start_manual_job(0);
    assert_eq!(run(&mut blocked, &[]), [0, 1]);
    let mut optional = Schedule::new(jobs(AllowFailure::Yes));
    assert_eq!(run(&mut optional, &[]), [1]);
    assert_eq!((optional.status(), optional.state(0)), (PipelineStatus::Success, ScheduleState::Manual));
}

#[test]
fn a_need_that_does_not_run_decides_at_once() {
    let optional = || ScheduledJob { allow_failure: AllowFailure::Yes, ..job(0, Manual, None) };
    let mut schedule = Schedule::new(vec![
        optional(),
        job(0, OnSuccess, None),
        job(0, OnFailure, None),
        job(0, OnSuccess, Some(&[0, 1])),
        job(0, Always, Some(&[0, 1])),
        job(1, OnFailure, Some(&[1, 2])),
        job(1, OnFailure, Some(&[1])),
        job(1, OnSuccess, Some(&[3])),
        job(1, OnFailure, None),
    ]);
    schedule.advance(Instant::now());
    for skipped in [2, 3, 5, 7] {
        assert_eq!(schedule.state(skipped), ScheduleState::Done(Conclusion::Skipped), "{skipped}");
    }
    assert_eq!(run(&mut schedule, &[1]), [1, 4, 6, 8]);
    assert_eq!(schedule.state(0), ScheduleState::Manual);
}

#[test]
fn a_manual_job_that_is_started_requeues_the_jobs_that_depend_on_it() {
    let optional = || ScheduledJob { allow_failure: AllowFailure::Yes, ..job(0, Manual, None) };
    let mut schedule = Schedule::new(vec![
        optional(),
        optional(),
        job(1, OnSuccess, Some(&[0])),
        job(1, OnSuccess, Some(&[1])),
        job(2, OnSuccess, Some(&[2])),
        job(2, OnFailure, None),
    ]);
    assert_eq!(run(&mut schedule, &[]), [0; 0]);
    assert_eq!((schedule.status(), schedule.is_over()), (PipelineStatus::Skipped, true));
    schedule.start_manual_job(0);
    assert_eq!(run(&mut schedule, &[]), [0, 2, 4]);
    assert_eq!(schedule.state(3), ScheduleState::Done(Conclusion::Skipped));
    assert_eq!(schedule.state(5), ScheduleState::Done(Conclusion::Skipped));
    schedule.start_manual_job(1);
    assert_eq!(run(&mut schedule, &[3]), [1, 3, 5]);
}

#[test]
fn a_manual_job_after_a_failure_is_skipped_unless_it_was_started() {
    let mut schedule = Schedule::new(vec![job(0, OnSuccess, None), job(1, Manual, None)]);
    assert_eq!(run(&mut schedule, &[0]), [0]);
    assert_eq!(schedule.state(1), ScheduleState::Done(Conclusion::Skipped));
    let mut schedule = Schedule::new(vec![job(0, OnSuccess, None), job(1, Manual, None)]);
    schedule.start_manual_job(1);
    assert_eq!(run(&mut schedule, &[]), [0, 1]);
}

#[test]
fn delays_start_with_their_stage_and_resource_groups_run_jobs_one_by_one() {
    let now = Instant::now();
    let delayed = ScheduledJob { delay: Some(Duration::from_secs(60)), ..job(0, Delayed, None) };
    let grouped = || ScheduledJob { resource_group: Some("g".to_owned()), ..job(0, OnSuccess, None) };
    let mut schedule = Schedule::new(vec![delayed, grouped(), grouped()]);
    schedule.advance(now);
    assert_eq!(schedule.groups_in_use().count(), 0);
    assert_eq!(schedule.take_due_jobs(9, &HashSet::from(["g".to_owned()])), [0; 0], "another pipeline uses the group");
    assert_eq!(schedule.take_due_jobs(9, &HashSet::new()), [1]);
    assert_eq!(schedule.groups_in_use().collect::<Vec<_>>(), ["g"]);
    schedule.end(1, Conclusion::Success);
    assert_eq!(schedule.take_due_jobs(9, &HashSet::new()), [2]);
    schedule.end(2, Conclusion::Success);
    assert!(!schedule.is_over() && schedule.next_delay() == Some(now + Duration::from_secs(60)));
    schedule.advance(now + Duration::from_secs(61));
    assert_eq!(schedule.take_due_jobs(9, &HashSet::new()), [0]);
}

#[test]
fn earlier_stages_get_slots_first_and_triggers_need_none() {
    let trigger = ScheduledJob { work: JobWork::Trigger, ..job(1, OnSuccess, Some(&[])) };
    let mut schedule =
        Schedule::new(vec![job(1, OnSuccess, Some(&[])), job(0, OnSuccess, None), job(0, OnSuccess, None), trigger]);
    schedule.advance(Instant::now());
    assert_eq!(schedule.take_due_jobs(1, &HashSet::new()), [1, 3]);
    assert_eq!(schedule.take_due_jobs(0, &HashSet::new()), [0; 0]);
    schedule.cancel();
    assert_eq!(schedule.state(2), ScheduleState::Done(Conclusion::Canceled));
    assert!(!schedule.is_over(), "jobs 1 and 3 still run");
}

#[test]
fn a_named_job_runs_regardless_of_its_when() {
    let mut schedule = Schedule::new(vec![ScheduledJob { selection: JobSelection::ByUser, ..job(1, OnFailure, None) }]);
    assert_eq!(run(&mut schedule, &[]), [0]);
}
