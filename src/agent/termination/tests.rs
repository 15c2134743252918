use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use super::*;
use crate::instance::{Activity, Identity, NoticeHandler, TargetState};
use crate::journal::shutdown::{Boot, ShutdownState};

/// An instance with scripted answers that records the calls.
#[derive(Default)]
struct ScriptedInstance {
    terminate: Mutex<Vec<Result<TerminateResult, Refusal>>>,
    complete: Mutex<Vec<Result<(), Refusal>>>,
    calls: Mutex<Vec<String>>,
    /// The state directory; the recorded calls include the phase that is written there.
    state: Option<std::path::PathBuf>,
    /// A notice that the cloud sends during the terminate request.
    notice_during_request: Option<(Arc<ShutdownTracker>, ShutdownReason)>,
}

impl ScriptedInstance {
    fn record(&self, what: &str) {
        let phase = self
            .state
            .as_deref()
            .and_then(|state| ShutdownState::load(state, &identity()))
            .map(|(state, _)| state.phase);
        self.calls.lock().expect("no panic").push(format!("{what} {phase:?}"));
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("no panic").clone()
    }
}

impl Instance for ScriptedInstance {
    fn identity(&self) -> Identity {
        identity()
    }

    fn cloud_id(&self) -> Option<String> {
        Some("i-1".to_owned())
    }

    fn watch(&self, _: NoticeHandler) {}

    fn target_state(&self) -> Result<TargetState, Refusal> {
        Ok(TargetState::InService)
    }

    fn set_activity(&self, _: Activity) {}

    fn terminate(&self, capacity: &dyn Fn() -> CapacityChange, timeout: Duration) -> Result<TerminateResult, Refusal> {
        assert!(!timeout.is_zero());
        self.record(&format!("terminate {:?}", capacity()));
        if let Some((tracker, reason)) = &self.notice_during_request {
            tracker.add_reason(*reason);
        }
        self.terminate.lock().expect("no panic").remove(0)
    }

    fn start_hook_heartbeats(&self) {}

    fn complete_hooks(&self, _: Duration) -> Result<(), Refusal> {
        self.record("complete");
        self.complete.lock().expect("no panic").pop().unwrap_or(Ok(()))
    }
}

fn identity() -> Identity {
    Identity { instance: "i-1".to_owned(), boot: "b-1".to_owned() }
}

fn denied() -> Refusal {
    Refusal::Denied {
        action: "autoscaling:TerminateInstanceInAutoScalingGroup".to_owned(),
        code: "AccessDenied".to_owned(),
        message: "no".to_owned(),
    }
}

/// An instance that shuts down, with its state directory.
struct Case {
    directory: tempfile::TempDir,
    leave: LeaveSettings,
    instance: ScriptedInstance,
}

impl Case {
    /// The leave strategy `aws-asg` with these answers of the group. The fallback writes a line to `off`.
    fn new(answers: impl IntoIterator<Item = Result<TerminateResult, Refusal>>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let leave = LeaveSettings {
            strategy: LeaveStrategy::AwsAsg,
            poweroff_command: format!("echo $MAYFLY_LEAVE_REASON >>{}/off", directory.path().display()),
            fallback_after: Duration::ZERO,
            ..LeaveSettings::default()
        };
        let instance = ScriptedInstance {
            terminate: Mutex::new(answers.into_iter().collect()),
            state: Some(directory.path().to_owned()),
            ..ScriptedInstance::default()
        };
        Self { directory, leave, instance }
    }

    fn state(&self) -> &Path {
        self.directory.path()
    }

    /// Runs the whole termination for a reason. Returns the outcome, the recorded calls, and the number of power offs.
    fn terminate_for(self, reason: ShutdownReason) -> (TerminationOutcome, Vec<String>, usize) {
        self.resume(ShutdownState::new(&identity(), reason))
    }

    fn resume(self, state: ShutdownState) -> (TerminationOutcome, Vec<String>, usize) {
        let tracker = Arc::new(ShutdownTracker::begin(self.state(), state));
        self.run(&tracker)
    }

    fn run(self, tracker: &Arc<ShutdownTracker>) -> (TerminationOutcome, Vec<String>, usize) {
        let instance = Arc::new(self.instance);
        let termination = Termination {
            tracker: Arc::clone(tracker),
            leave: self.leave,
            instance: Arc::clone(&instance) as Arc<dyn Instance>,
            runner_managers: Vec::new(),
        };
        let outcome = termination.run();
        let off = std::fs::read_to_string(self.directory.path().join("off")).unwrap_or_default();
        (outcome, instance.calls(), off.lines().count())
    }
}

fn phase(tracker: &ShutdownTracker) -> ShutdownPhase {
    tracker.state().phase
}

#[test]
fn only_an_idle_instance_decrements_the_desired_capacity() {
    for (reason, capacity) in [
        (ShutdownReason::Idle, "Decrement"),
        (ShutdownReason::MaxBuilds, "Keep"),
        (ShutdownReason::MaxAge, "Keep"),
        (ShutdownReason::Rebalance, "Keep"),
        (ShutdownReason::Interruption, "Keep"),
    ] {
        let case = Case::new([Ok(TerminateResult::Requested)]);
        let expected = vec![format!("terminate {capacity} Some(Terminating)"), "complete Some(Terminating)".to_owned()];
        assert_eq!(case.terminate_for(reason), (TerminationOutcome::Done, expected, 0), "{reason:?}");
    }
}

#[test]
fn a_notice_for_an_idle_instance_keeps_the_desired_capacity() {
    for notice in [ShutdownReason::Rebalance, ShutdownReason::Interruption] {
        let case = Case::new([Ok(TerminateResult::AlreadyTerminating)]);
        let tracker =
            Arc::new(ShutdownTracker::begin(case.state(), ShutdownState::new(&identity(), ShutdownReason::Idle)));
        tracker.add_reason(notice);
        let (outcome, calls, _) = case.run(&tracker);
        assert_eq!((outcome, calls[0].as_str()), (TerminationOutcome::Done, "terminate Keep Some(Terminating)"));
    }
}

#[test]
fn an_instance_terminated_by_its_group_completes_the_hooks() {
    for strategy in [LeaveStrategy::AwsAsg, LeaveStrategy::Exit, LeaveStrategy::Poweroff] {
        let mut case = Case::new([]);
        case.leave.strategy = strategy;
        let (outcome, calls, off) = case.terminate_for(ShutdownReason::Terminated);
        assert_eq!(
            (outcome, calls, off),
            (TerminationOutcome::Done, vec!["complete Some(Terminating)".to_owned()], 0),
            "{strategy:?}"
        );
    }
}

#[test]
fn only_an_idle_instance_resumes_work_at_the_minimum_size() {
    let (outcome, calls, off) = Case::new([Err(Refusal::AtMinimum)]).terminate_for(ShutdownReason::Idle);
    assert_eq!((outcome, calls.len(), off), (TerminationOutcome::KeptByGroup, 1, 0));
    let (outcome, calls, off) = Case::new([Err(Refusal::AtMinimum)]).terminate_for(ShutdownReason::MaxBuilds);
    assert_eq!((outcome, calls.len(), off), (TerminationOutcome::Done, 1, 1));
}

#[test]
fn a_notice_prevents_resuming_work() {
    for (notice, then) in [
        (ShutdownReason::Rebalance, "terminate Keep Some(Terminating)"),
        (ShutdownReason::Terminated, "complete Some(Terminating)"),
    ] {
        let mut case = Case::new([Err(Refusal::AtMinimum), Ok(TerminateResult::Requested)]);
        let tracker =
            Arc::new(ShutdownTracker::begin(case.state(), ShutdownState::new(&identity(), ShutdownReason::Idle)));
        case.instance.notice_during_request = Some((Arc::clone(&tracker), notice));
        let (outcome, calls, off) = case.run(&tracker);
        assert_eq!(
            (outcome, calls[0].as_str(), off),
            (TerminationOutcome::Done, "terminate Decrement Some(Terminating)", 0)
        );
        assert_eq!(calls[1], then, "{notice:?}");
    }
}

#[test]
fn a_later_agent_knows_that_the_group_accepted_the_request() {
    let case = Case::new([Ok(TerminateResult::Requested)]);
    let tracker = Arc::new(ShutdownTracker::begin(case.state(), ShutdownState::new(&identity(), ShutdownReason::Idle)));
    case.run(&tracker);
    let mut state = tracker.state();
    assert!(state.is_terminated());
    state.phase = ShutdownPhase::Terminating;
    // The agent does not wait and only completes the hooks.
    let case = Case::new([]);
    let (outcome, calls, _) = case.resume(state);
    assert_eq!((outcome, calls), (TerminationOutcome::Done, vec!["complete Some(Terminating)".to_owned()]));
}

#[test]
fn a_panic_is_an_outcome() {
    // No answers: a call to the group panics.
    let case = Case::new([]);
    let tracker = Arc::new(ShutdownTracker::begin(case.state(), ShutdownState::new(&identity(), ShutdownReason::Idle)));
    let (outcome, _, off) = case.run(&tracker);
    assert_eq!((outcome, phase(&tracker), off), (TerminationOutcome::Panicked, ShutdownPhase::Terminating, 0));
}

#[test]
fn powers_off_once_if_the_group_does_not_terminate() {
    let unreachable = Refusal::Unreachable { action: "autoscaling:X".to_owned(), why: "no route".to_owned() };
    let throttled = Refusal::Throttled { action: "autoscaling:X".to_owned(), code: "Throttling".to_owned() };
    for refusal in [denied(), throttled, unreachable, Refusal::NotInGroup] {
        let (outcome, calls, off) = Case::new([Err(refusal.clone())]).terminate_for(ShutdownReason::Idle);
        assert_eq!((outcome, calls.len(), off), (TerminationOutcome::Done, 1, 1), "{refusal:?}");
    }
}

#[test]
fn powers_off_if_a_hook_cannot_be_completed() {
    let case = Case::new([Ok(TerminateResult::Requested)]);
    case.instance.complete.lock().expect("no panic").push(Err(denied()));
    let (outcome, calls, off) = case.terminate_for(ShutdownReason::Idle);
    assert_eq!((outcome, calls.len(), off), (TerminationOutcome::Done, 2, 1));
}

#[test]
fn the_power_off_waits_for_an_external_termination() {
    let mut case = Case::new([Err(denied())]);
    case.leave.fallback_after = Duration::from_secs(600);
    let tracker = Arc::new(ShutdownTracker::begin(case.state(), ShutdownState::new(&identity(), ShutdownReason::Idle)));
    let began = Instant::now();
    std::thread::scope(|scope| {
        let terminating = scope.spawn(|| case.run(&tracker));
        while tracker.state().unregistered_at.is_none() {
            std::thread::yield_now();
        }
        tracker.add_reason(ShutdownReason::Terminated);
        let (outcome, calls, off) = terminating.join().expect("no panic");
        assert_eq!((outcome, off), (TerminationOutcome::Done, 0));
        assert_eq!(calls.last().map(String::as_str), Some("complete Some(Terminating)"));
    });
    assert!(began.elapsed() < Duration::from_secs(300), "the termination ends the wait for the power off");
}

#[test]
fn a_stop_ends_the_wait_for_the_power_off() {
    let terminated = || {
        let case = Case::new([Ok(TerminateResult::Requested)]);
        case.instance.complete.lock().expect("no panic").push(Err(denied()));
        case
    };
    for (mut case, last_call) in [(terminated(), "complete"), (Case::new([Err(denied())]), "terminate Decrement")] {
        case.leave.fallback_after = Duration::from_secs(24 * 60 * 60);
        let tracker =
            Arc::new(ShutdownTracker::begin(case.state(), ShutdownState::new(&identity(), ShutdownReason::Idle)));
        std::thread::scope(|scope| {
            let terminating = scope.spawn(|| case.run(&tracker));
            while tracker.state().unregistered_at.is_none() {
                std::thread::yield_now();
            }
            tracker.stop();
            let (outcome, calls, off) = terminating.join().expect("no panic");
            assert_eq!((outcome, off), (TerminationOutcome::Stopped, 0), "{last_call}");
            assert_eq!(calls.last().map(String::as_str), Some(&*format!("{last_call} Some(Terminating)")));
        });
        assert_eq!(phase(&tracker), ShutdownPhase::Terminating, "the next agent resumes here");
    }
}

#[test]
fn hooks_are_completed_if_the_group_already_terminates_the_instance() {
    let mut case = Case::new([Err(denied())]);
    case.leave.fallback_after = Duration::from_secs(600);
    let tracker = Arc::new(ShutdownTracker::begin(case.state(), ShutdownState::new(&identity(), ShutdownReason::Idle)));
    case.instance.notice_during_request = Some((Arc::clone(&tracker), ShutdownReason::Terminated));
    let (outcome, calls, off) = case.run(&tracker);
    assert_eq!(
        (outcome, calls.len(), calls[1].as_str(), off),
        (TerminationOutcome::Done, 2, "complete Some(Terminating)", 0)
    );
}

#[test]
fn the_fallback_time_counts_from_the_unregistration_across_restarts() {
    let case = Case::new([]);
    // The test must not depend on the uptime of the machine.
    let earlier = BootTime::from_nanos(BootTime::now().as_nanos() / 2);
    let fallback_after = earlier.elapsed() + Duration::from_millis(500);
    let mut state = ShutdownState::new(&identity(), ShutdownReason::Idle);
    state.unregistered_at = Some(earlier);
    let termination = Termination {
        tracker: Arc::new(ShutdownTracker::begin(case.state(), state)),
        leave: LeaveSettings { fallback_after, ..case.leave.clone() },
        instance: Arc::new(ScriptedInstance::default()),
        runner_managers: Vec::new(),
    };
    assert!(
        termination.time_until_power_off() <= Duration::from_millis(500),
        "{:?}",
        termination.time_until_power_off()
    );
}

#[test]
fn the_leave_command_terminates_the_instance_or_it_powers_off() {
    for (command, off) in [("exit 0", 0), ("exit 1", 1)] {
        let mut case = Case::new([]);
        case.leave.strategy = LeaveStrategy::Command;
        case.leave.command = Some(format!("echo \"$MAYFLY_LEAVE_REASON\" >{}/ran; {command}", case.state().display()));
        let ran = case.state().join("ran");
        let tracker =
            Arc::new(ShutdownTracker::begin(case.state(), ShutdownState::new(&identity(), ShutdownReason::MaxAge)));
        let path = std::path::PathBuf::from(case.state());
        let termination = Termination {
            tracker: Arc::clone(&tracker),
            leave: case.leave.clone(),
            instance: Arc::new(ScriptedInstance::default()),
            runner_managers: Vec::new(),
        };
        assert_eq!(termination.run(), TerminationOutcome::Done);
        assert_eq!(std::fs::read_to_string(ran).expect("the command must have run"), "max_age\n");
        assert_eq!(path.join("off").exists(), off == 1);
        assert_eq!(phase(&tracker), ShutdownPhase::ShutDown);
    }
}

#[test]
fn a_failed_power_off_is_final() {
    let mut case = Case::new([Err(denied())]);
    case.leave.poweroff_command = format!("echo >>{}/off; false", case.state().display());
    let tracker =
        Arc::new(ShutdownTracker::begin(case.state(), ShutdownState::new(&identity(), ShutdownReason::MaxBuilds)));
    let termination = Termination {
        tracker: Arc::clone(&tracker),
        leave: case.leave,
        instance: Arc::new(case.instance),
        runner_managers: Vec::new(),
    };
    assert_eq!(termination.run(), TerminationOutcome::Failed);
    assert_eq!(termination.run(), TerminationOutcome::Failed, "the next agent does not retry");
    let off = std::fs::read_to_string(case.directory.path().join("off")).expect("read the file");
    assert_eq!(off.lines().count(), 1);
}

#[test]
fn a_later_agent_runs_the_remaining_steps() {
    for (phase, calls, off) in [
        (ShutdownPhase::Draining, 2, 0),
        (ShutdownPhase::Unregistering, 2, 0),
        (ShutdownPhase::Terminating, 2, 0),
        (ShutdownPhase::PoweringOff, 0, 1),
        (ShutdownPhase::ShutDown, 0, 0),
    ] {
        let case = Case::new([Ok(TerminateResult::AlreadyTerminating)]);
        let mut state = ShutdownState::new(&identity(), ShutdownReason::Idle);
        state.phase = phase;
        state.save(case.state());
        let (state, boot) = ShutdownState::load(case.state(), &identity()).expect("a saved state");
        assert_eq!(boot, Boot::Current);
        let (outcome, calls_made, was_off) = case.resume(state);
        assert_eq!((outcome, calls_made.len(), was_off), (TerminationOutcome::Done, calls, off), "{phase:?}");
    }
}

#[test]
fn a_stop_notice_does_not_terminate_the_instance() {
    assert_eq!(Case::new([]).terminate_for(ShutdownReason::CloudStop), (TerminationOutcome::Done, Vec::new(), 0));
}
